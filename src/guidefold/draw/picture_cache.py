"""Pictures that are drawn once: what was drawn by the same request is taken, the rest is drawn."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from guidefold.draw.draw import PictureRequest, draw
from guidefold.draw.pictures import Drawn, Picture, png, read_picture
from guidefold.ground import Task
from guidefold.pipeline import pipeline_identity
from guidefold.run import MANIFEST, PictureLine, append_line, read_json, sha256, write_bytes
from guidefold.session import Session

Kept = TypeVar("Kept")


class PictureCache(ABC, Generic[Kept]):
    """Pictures of one run, each kept in some form under all that it depends on.

    Args:
        session: Whose pictures.

    Attributes:
        kept: What is kept of each picture, by its key.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.kept: dict[Hashable, Kept] = {}

    @abstractmethod
    def key(self, request: PictureRequest) -> Hashable:
        """All that a picture depends on and that changes while the cache is in use."""

    @abstractmethod
    def store(self, request: PictureRequest, index: int, picture: Picture, batch: Drawn) -> Kept:
        """Keep a picture.

        Args:
            request: What was drawn.
            index: Its place among the requests.
            picture: The picture.
            batch: All that was drawn with it; its costs are means.
        """

    def draw_anew(
        self, requests: Sequence[PictureRequest], on_step: Callable[[int], None]
    ) -> Drawn:
        """Draw requests that differ in prompt and seed only, whether they are kept or not."""
        with self.adapter_at(requests[0].strength):
            return draw(self.session, requests, on_step)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """Set the adapter for a drawing: None switches it off. Here the caller has done so."""
        return nullcontext()

    def missing(self, requests: Sequence[PictureRequest]) -> list[PictureRequest]:
        """The requests that have yet to be drawn."""
        return [request for request in requests if self.key(request) not in self.kept]

    def fetch(
        self,
        requests: Sequence[PictureRequest],
        on_step: Callable[[int], None],
        on_found: Callable[[int], None] = lambda steps: None,
    ) -> list[Kept]:
        """Draw what is missing, and return what is kept of every request.

        Batches are cut as if nothing were kept, and drawn whole: the order of sums within a batch
        turns last bits, so a stopped drawing ends with the pictures of one that never stopped.

        Args:
            requests: Alike in all but prompt and seed.
            on_step: Told, at every step, of how many pictures.
            on_found: Told of the steps of pictures that were drawn before.
        """
        size = self.session.settings.evaluate.batch_size
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            if not self.missing(batch):
                on_found(len(batch) * batch[0].steps)
                continue
            drawn = self.draw_anew(batch, on_step)
            for k, (request, picture) in enumerate(zip(batch, drawn.pictures, strict=True)):
                self.kept[self.key(request)] = self.store(request, first + k, picture, drawn)
        return [self.kept[self.key(request)] for request in requests]


class EvaluationPictures(PictureCache[PictureLine]):
    """The pictures in ``RUN/evaluation``; a stopped measurement goes on with them.

    Kept is each picture's line of ``pictures.jsonl``. Its key is the line's ``of``, which holds the
    weights' digests as well: pictures of another pipeline or adapter are not taken for these.

    Args:
        session: Whose pictures; a student's adapter must be loaded, at the requested strength.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.folder, self.file = session.run.evaluation, session.run.pictures
        self.folder.mkdir(exist_ok=True)
        self._pipeline = pipeline_identity(session.pipeline)
        for line in PictureLine.read_lines(self.file):
            path = self.folder / line.file
            if path.exists() and sha256(path) == line.sha256:
                self.kept[_canonical(line.of)] = line

    def draw(self, requests: Sequence[PictureRequest], progress: Task) -> Drawn:
        """Pictures with their files and costs: those that stand already, and the rest drawn now.

        Args:
            requests: Alike in all but prompt and seed.
            progress: Told of the steps of all pictures.
        """
        lines = self.fetch(requests, progress.advance, on_found=progress.advance)
        return Drawn(
            pictures=[read_picture(self.folder / line.file) for line in lines],
            files=[line.file for line in lines],
            passes_per_image=sum(line.passes for line in lines) / len(lines),
            denoiser_seconds_per_image=sum(line.seconds for line in lines) / len(lines),
        )

    def key(self, request: PictureRequest) -> str:
        """The line's ``of``, as text."""
        return _canonical(self._describe(request))

    def store(
        self, request: PictureRequest, index: int, picture: Picture, batch: Drawn
    ) -> PictureLine:
        """Write the picture, then its line."""
        path = self.folder / f"{_stem(request)}-{index:04d}.png"
        write_bytes(path, png(picture))
        line = PictureLine(
            file=path.name,
            sha256=sha256(path),
            passes=batch.passes_per_image,
            seconds=batch.denoiser_seconds_per_image,
            of=self._describe(request),
        )
        append_line(self.file, line.to_json())
        return line

    def _describe(self, request: PictureRequest) -> dict[str, Any]:
        """All that a picture depends on, as JSON."""
        asked = self.session.settings.pipeline
        student = {}
        if request.kind == "student":
            manifest = read_json(self.session.run.adapter / MANIFEST)
            weights = {n: e["sha256"] for n, e in manifest.items() if n.endswith(".safetensors")}
            student = {"adapter": weights, "strength": request.strength}
        return {
            "kind": request.kind,
            "pipeline": self._pipeline,
            "guidance": request.guidance,
            "steps": request.steps,
            "call": asked.call,
            "negative_prompt": asked.negative_prompt,
            "guided_share": asked.guided_share,
            **student,
            "prompt": request.prompt.key,
            "seed": request.seed,
        }


def _stem(request: PictureRequest) -> str:
    """How the names of files begin, one for each scale or strength."""
    scales = {"teacher": f"-g{request.guidance:g}", "student": f"-s{request.strength or 0:g}"}
    return request.kind + scales.get(request.kind, "")


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
