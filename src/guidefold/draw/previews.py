"""Previews during training: teacher, unguided and student at a few prompts and fixed seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from guidefold.draw.draw import PictureRequest, picture_requests, picture_seeds
from guidefold.draw.picture_cache import PictureCache
from guidefold.draw.pictures import Drawn, Picture, grid, png, read_picture
from guidefold.ground import CorruptFileError, InputError, Task, console, task
from guidefold.lora import Adapter
from guidefold.run import PreviewIndex, sha256, write_bytes, write_record
from guidefold.session import Session

Result = TypeVar("Result")


class Previews(PictureCache[Path]):
    """The previews of one run, in ``RUN/previews``.

    The pipeline in training draws them, so they show the student on its frozen weights as stored.
    Drawing leaves pipeline, adapter and randomness unchanged. The teacher's pictures are drawn
    once, before anything is recorded; the student's at every due step.

    Args:
        session: The run's session; its first held-out prompts are drawn.
        adapter: The adapter in training; None before one is attached, where the teacher alone can
            be drawn.

    Attributes:
        steps: The training steps that the folder's index lists.
        digests: The SHA-256 of each picture, by its name.
    """

    def __init__(self, session: Session, adapter: Adapter | None) -> None:
        super().__init__(session)
        self.adapter = adapter
        self.folder, self.index = session.run.previews, session.run.preview_index
        settings = session.settings
        count = settings.distill.preview_prompts if session.draws_pictures else 0
        self.prompts = session.held_out[:count]
        self.empty_index = PreviewIndex(
            prompts=[prompt.key for prompt in self.prompts],
            seeds=picture_seeds(settings.seed, len(self.prompts)),
            **session.compared._asdict(),
            denoising_steps=settings.evaluate.steps,
            steps=[],
        )
        stored = _matching(self.index, self.empty_index)
        self.steps = stored.steps if stored else []
        self.digests = dict(stored.sha256) if stored else {}
        if stored:
            files = [self.key(request) for column in self._teacher_requests() for request in column]
            self.kept = {path: path for path in files if self._is_intact(path)}

    def key(self, request: PictureRequest) -> Path:
        """The picture's file; the folder's index holds what all pictures depend on."""
        return self.folder / f"{request.kind}-{self.prompts.index(request.prompt)}.png"

    def store(self, request: PictureRequest, index: int, picture: Picture, batch: Drawn) -> Path:
        """Write the picture."""
        path = self.key(request)
        self._write(path, png(picture, request.facts))
        return path

    def _write(self, path: Path, data: bytes) -> None:
        write_bytes(path, data)
        self.digests[path.name] = sha256(path)

    def _write_index(self) -> None:
        drawn = {"steps": self.steps, "sha256": dict(sorted(self.digests.items()))}
        write_record(self.index, {**self.empty_index.to_json(), **drawn})

    def _is_intact(self, path: Path) -> bool:
        return path.exists() and self.digests.get(path.name, "") in ("", sha256(path))

    def missing(self, requests: Sequence[PictureRequest]) -> list[PictureRequest]:
        """The requests that are not in the cache; all of them where a file was lost."""
        if not all(self._is_intact(path) for path in self.kept.values()):
            self.kept.clear()
        return super().missing(requests)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """Switch the adapter in training on for the student, and off for the teacher."""
        if self.adapter is None:
            return nullcontext()
        if strength is None:
            return self.adapter.teacher_mode()
        return self.adapter.student_mode(strength, train=False)

    def due(self, step: int) -> bool:
        """Whether previews are drawn at a step."""
        options = self.session.settings.distill
        return bool(self.prompts) and (step % options.preview_every == 0 or step == options.steps)

    def lacks(self, step: int) -> bool:
        """Whether a due step has no pictures yet."""
        return self.due(step) and step not in self.steps

    def teacher_missing(self) -> bool:
        """Whether a picture of the teacher, guided or unguided, is not in the cache."""
        return any(map(self.missing, self._teacher_requests()))

    def work(self) -> int:
        """Denoising steps of the next drawing, summed over its pictures."""
        missing = [r for column in self._teacher_requests() for r in self.missing(column)]
        student = len(self.prompts) * self.session.settings.steps_of("student")
        return sum(request.steps for request in missing) + student

    def draw(self, step: int, progress: Task) -> Picture | None:
        """Draw and write the missing pictures, and add the step to the index.

        Args:
            step: The student's training step.
            progress: Advances with every denoising step.

        Returns:
            A grid of all three kinds; None where the pipeline draws no pictures.
        """
        columns = self._columns(step, progress)
        if columns is None:
            return None
        session = self.session
        headings = [
            f"CFG teacher\ng = {session.compared.guidance:g}",
            f"unguided\ng = {session.findings.off:g}",
            f"student\nstep {step}",
        ]
        sheet = grid(list(zip(*columns, strict=True)), headings, [p.label for p in self.prompts])
        facts = {**self.empty_index.to_json(), "steps": [step]}
        write_bytes(self.folder / f"step-{step:06d}.png", png(sheet, facts))
        # Later steps are of a training that went back to an older checkpoint: they come again.
        self.steps = [*(s for s in self.steps if s < step), step]
        self._write_index()
        return sheet

    def draw_first(self) -> None:
        """Draw the guided teacher before anything is recorded, and print where the pictures are.

        A wrong base, precision or call is seen in them at once.
        """
        guided, _ = self._teacher_requests()
        if not self.missing(guided):
            return
        total = len(guided) * self.session.settings.evaluate.steps
        with task("Drawing the teacher, denoising steps", total) as progress:
            drawn = self._attempt(lambda: self.fetch(guided, progress.advance))
        if drawn is None:
            return
        self._write_index()
        files = " ".join(str(path) for path in drawn)
        console.print(f"Pictures of the teacher, to look at first: {files}")

    def draw_teacher(self, progress: Task) -> None:
        """Draw the teacher's pictures ahead, while its weights are still in full precision.

        Args:
            progress: Advances with every denoising step.
        """
        self._columns(None, progress)

    def _columns(self, step: int | None, progress: Task) -> list[list[Picture]] | None:
        """The pictures of each kind; None, with one message, where the pipeline draws none.

        Args:
            step: The student's training step; None leaves the student out.
            progress: Advances with every denoising step.
        """

        def draw_all() -> list[list[Picture]]:
            files = [self.fetch(c, progress.advance) for c in self._teacher_requests()]
            columns = [[read_picture(path) for path in column] for column in files]
            return columns if step is None else [*columns, self._draw_student(step, progress)]

        return self._attempt(draw_all)

    def _attempt(self, draw: Callable[[], Result]) -> Result | None:
        """Draw; None, with one message for the whole run, where the pipeline draws no pictures."""
        try:
            with self.session.all_on_device():
                return draw()
        except (InputError, ValueError) as error:  # diffusers: ValueError, unknown output type
            console.print(f"No previews: {str(error).splitlines()[0]}")
            self.prompts, self.session.draws_pictures = [], False
            return None

    def _draw_student(self, step: int, progress: Task) -> list[Picture]:
        requests = picture_requests(self.session, "student", self.prompts)
        pictures = self.draw_anew(requests, progress.advance).pictures
        for k, (request, picture) in enumerate(zip(requests, pictures, strict=True)):
            data = png(picture, {**request.facts, "training_step": step})
            self._write(self.folder / f"student-{k}-step-{step:06d}.png", data)
        return pictures

    def _teacher_requests(self) -> list[list[PictureRequest]]:
        """Requests for the teacher's pictures, guided and unguided, which training leaves alone."""
        teacher = picture_requests(self.session, "teacher", self.prompts)
        return [teacher, picture_requests(self.session, "unguided", self.prompts)]


def _matching(index: Path, expected: PreviewIndex) -> PreviewIndex | None:
    """The content of an index.

    None where it is missing or damaged, or belongs to other prompts, seeds, guidance or strength:
    then all pictures are drawn again.
    """
    try:
        stored = PreviewIndex.read(index)
    except CorruptFileError:
        return None
    drawn = {"steps": expected.steps, "sha256": expected.sha256}
    if stored is None or stored.model_copy(update=drawn) != expected:
        return None
    return stored
