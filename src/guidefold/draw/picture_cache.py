"""A cache of pictures: each request is drawn once."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Generic, TypeVar

from guidefold.draw.draw import PictureRequest, draw
from guidefold.draw.pictures import Drawn, Picture, png, read_picture
from guidefold.ground import Task
from guidefold.pipeline import pipeline_identity
from guidefold.run import (
    AGAIN,
    MANIFEST,
    PictureLine,
    append_line,
    read_json,
    sha256,
    within,
    write_bytes,
)
from guidefold.session import Session

Kept = TypeVar("Kept")


class PictureCache(ABC, Generic[Kept]):
    """A cache of one run's pictures; subclasses decide where and in which form they are kept.

    Args:
        session: The session that draws them.

    Attributes:
        kept: The stored form of each picture, by its key.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.kept: dict[Hashable, Kept] = {}

    @abstractmethod
    def key(self, request: PictureRequest) -> Hashable:
        """The cache key: all that a picture depends on and that varies within this cache."""

    @abstractmethod
    def store(self, request: PictureRequest, index: int, picture: Picture, batch: Drawn) -> Kept:
        """Store a picture.

        Args:
            request: The picture's request.
            index: Its index among the requests.
            picture: The picture.
            batch: The batch that it was drawn in; costs are means over the batch.
        """

    def draw_anew(
        self, requests: Sequence[PictureRequest], on_step: Callable[[int], None]
    ) -> Drawn:
        """Draw requests that differ in prompt and seed only, without looking into the cache."""
        with self.adapter_at(requests[0].strength):
            return draw(self.session, requests, on_step)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """Set the adapter's strength for a drawing; None switches the adapter off.

        By default this does nothing: the caller has loaded and set the adapter.
        """
        return nullcontext()

    def missing(self, requests: Sequence[PictureRequest]) -> list[PictureRequest]:
        """The requests that are not in the cache."""
        return [request for request in requests if self.key(request) not in self.kept]

    def fetch(
        self,
        requests: Sequence[PictureRequest],
        on_step: Callable[[int], None],
        on_cached: Callable[[int], None] = lambda steps: None,
        number: int = 0,
    ) -> list[Kept]:
        """Draw the missing requests, and return the stored form of all.

        Batches are the same whatever is cached, and a batch with a gap is drawn in full: floating-
        point sums depend on the batch, so only then does a resumed drawing equal, bit for bit, one
        that never stopped.

        Args:
            requests: Requests that differ in prompt and seed only.
            on_step: Called at every step with the number of pictures in the batch.
            on_cached: Called with the number of steps that cached pictures save.
            number: The number of the first picture, in the names of files.
        """
        size = self.session.settings.evaluate.batch_size
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            if not self.missing(batch):
                on_cached(len(batch) * batch[0].steps)
                continue
            drawn = self.draw_anew(batch, on_step)
            for k, (request, picture) in enumerate(zip(batch, drawn.pictures, strict=True)):
                place = number + first + k
                self.kept[self.key(request)] = self.store(request, place, picture, drawn)
        return [self.kept[self.key(request)] for request in requests]


class EvaluationPictures(PictureCache[PictureLine]):
    """The pictures in ``RUN/evaluation``, with which a stopped evaluation goes on.

    The stored form of a picture is its line of ``pictures.jsonl``, and its key is the line's
    ``of``. That holds digests of the weights as well, so that pictures of another pipeline or
    adapter never match.

    Args:
        session: The session; to draw a student, its adapter must be loaded at the requested
            strength.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.folder, self.file = session.run.evaluation, session.run.pictures
        self.folder.mkdir(exist_ok=True)
        self._pipeline = pipeline_identity(session.pipeline)
        for line in PictureLine.read_lines(self.file):
            path = within(self.folder, line.file, self.file, AGAIN)
            if path.exists() and sha256(path) == line.sha256:
                self.kept[_canonical(line.of)] = line

    def draw(self, requests: Sequence[PictureRequest], progress: Task, *, first: int = 0) -> Drawn:
        """The requested pictures with their files and costs; missing ones are drawn.

        Args:
            requests: Requests that differ in prompt and seed only.
            progress: Advances by the steps of all pictures, cached ones included.
            first: The number of the first picture, in the names of files.
        """
        advance = progress.advance
        lines = self.fetch(requests, advance, on_cached=advance, number=first)
        return Drawn(
            pictures=[read_picture(self.folder / line.file) for line in lines],
            files=[line.file for line in lines],
            passes_per_image=sum(line.passes for line in lines) / len(lines),
            denoiser_seconds_per_image=sum(line.seconds for line in lines) / len(lines),
        )

    def key(self, request: PictureRequest) -> str:
        """The line's ``of`` as text."""
        return _canonical(self._describe(request))

    def store(
        self, request: PictureRequest, index: int, picture: Picture, batch: Drawn
    ) -> PictureLine:
        """Write the picture file, then its line."""
        usual = self.session.settings.steps_of(request.kind)
        steps = "" if request.steps == usual else f"-{request.steps}-steps"
        path = self.folder / f"{request.name}{steps}-{index:04d}.png"
        write_bytes(path, png(picture, request.facts))
        line = PictureLine(
            file=path.name,
            sha256=sha256(path),
            passes=batch.passes_per_image,
            seconds=batch.denoiser_seconds_per_image,
            of=self._describe(request),
        )
        append_line(self.file, line.to_json())
        return line

    @cached_property
    def _weights(self) -> dict[str, str]:
        """The checksums of the run's adapter, by file."""
        manifest = read_json(self.session.run.adapter / MANIFEST)
        return {n: e["sha256"] for n, e in manifest.items() if n.endswith(".safetensors")}

    def _describe(self, request: PictureRequest) -> dict[str, Any]:
        """All that a picture depends on, as JSON."""
        settings = self.session.settings.pipeline
        student = {}
        if request.kind == "student":
            student = {"adapter": self._weights, "strength": request.strength}
        return {
            "kind": request.kind,
            "pipeline": self._pipeline,
            "guidance": request.guidance,
            "steps": request.steps,
            "call": settings.call,
            "negative_prompt": settings.negative_prompt,
            "guided_share": settings.guided_share,
            **student,
            "prompt": request.prompt.key,
            "seed": request.seed,
        }


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
