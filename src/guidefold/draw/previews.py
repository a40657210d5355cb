"""Pictures while training: teacher, unguided and student, at a few prompts and fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from guidefold.draw.draw import PictureRequest, picture_requests, picture_seeds
from guidefold.draw.picture_cache import PictureCache
from guidefold.draw.pictures import Drawn, Picture, grid, png, read_picture
from guidefold.ground import CorruptFileError, InputError, Task, console
from guidefold.lora import Adapter
from guidefold.run import PreviewIndex, write_bytes, write_json
from guidefold.session import Session


class Previews(PictureCache[Path]):
    """The pictures of one run, in ``RUN/previews``.

    Drawn by the pipeline that is trained, so that they show the student as it is, on frozen weights
    as they are stored; they leave it, its adapter and all randomness as they were. The teacher's
    are kept; the student's are drawn at every due step.

    Args:
        session: The run; the first of its held-out prompts are drawn.
        adapter: The student's.

    Attributes:
        steps: Those that the folder's index names.
    """

    def __init__(self, session: Session, adapter: Adapter) -> None:
        super().__init__(session)
        self.adapter = adapter
        self.folder, self.index = session.run.previews, session.run.preview_index
        asked = session.settings
        self.prompts = session.held_out[: asked.distill.preview_prompts]
        self.about = PreviewIndex(
            prompts=[prompt.key for prompt in self.prompts],
            seeds=picture_seeds(asked.seed, len(self.prompts)),
            **session.compared._asdict(),
            denoising_steps=asked.evaluate.steps,
            steps=[],
        )
        self.steps = _indexed(self.index, self.about)
        if self.steps:
            files = [self.key(request) for requests in self._fixed() for request in requests]
            self.kept = dict(zip(files, files, strict=True))

    def key(self, request: PictureRequest) -> Path:
        """A picture's file; the index says what the pictures depend on."""
        return self.folder / f"{request.kind}-{self.prompts.index(request.prompt)}.png"

    def store(self, request: PictureRequest, index: int, picture: Picture, batch: Drawn) -> Path:
        """Write the picture."""
        path = self.key(request)
        write_bytes(path, png(picture))
        return path

    def missing(self, requests: Sequence[PictureRequest]) -> list[PictureRequest]:
        """The requests that have yet to be drawn: all, where a file was lost."""
        if not all(path.exists() for path in self.kept.values()):
            self.kept.clear()
        return super().missing(requests)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """The adapter as it is now, on for the student only."""
        if strength is None:
            return self.adapter.teacher_mode()
        return self.adapter.student_mode(strength, train=False)

    def due(self, step: int) -> bool:
        """Whether a step is one of those that are drawn."""
        asked = self.session.settings.distill
        return bool(self.prompts) and (step % asked.preview_every == 0 or step == asked.steps)

    def lacks(self, step: int) -> bool:
        """Whether a due step has no pictures yet."""
        return self.due(step) and step not in self.steps

    def teacher_missing(self) -> bool:
        """Whether the teacher's own pictures have yet to be drawn."""
        return any(map(self.missing, self._fixed()))

    def work(self) -> int:
        """Denoising steps of the next drawing, counted picture by picture."""
        count = sum(len(self.missing(requests)) for requests in self._fixed()) + len(self.prompts)
        return count * self.session.settings.evaluate.steps

    def draw(self, step: int, progress: Task) -> Picture | None:
        """Draw what is missing, write it, and name the step in the index.

        Args:
            step: How long the student was trained.
            progress: Told of every denoising step.

        Returns:
            All three kinds side by side; None where the pipeline draws no pictures, which is said
            once.
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
        write_bytes(self.folder / f"step-{step:06d}.png", png(sheet))
        self.steps = [*(s for s in self.steps if s < step), step]  # later ones are drawn again
        write_json(self.index, {**self.about.to_json(), "steps": self.steps})
        return sheet

    def draw_teacher(self, progress: Task) -> None:
        """Draw what does not change while training, ahead of the student's.

        For those who will have no teacher later on.

        Args:
            progress: Told of every denoising step.
        """
        self._columns(None, progress)

    def _columns(self, step: int | None, progress: Task) -> list[list[Picture]] | None:
        """The pictures of each kind; None, said once, where the pipeline draws none.

        Args:
            step: How long the student was trained; None leaves the student out.
            progress: Told of every denoising step.
        """
        try:
            with self.session.all_on_device():
                fixed = [self.fetch(requests, progress.advance) for requests in self._fixed()]
                columns = [[read_picture(path) for path in column] for column in fixed]
                return columns if step is None else [*columns, self._students(step, progress)]
        except (InputError, ValueError) as error:  # diffusers' word for an unknown output type
            console.print(f"No previews: {str(error).splitlines()[0]}", markup=False)
            self.prompts = []
            return None

    def _students(self, step: int, progress: Task) -> list[Picture]:
        requests = picture_requests(self.session, "student", self.prompts)
        pictures = self.draw_anew(requests, progress.advance).pictures
        for k, picture in enumerate(pictures):
            write_bytes(self.folder / f"student-{k}-step-{step:06d}.png", png(picture))
        return pictures

    def _fixed(self) -> list[list[PictureRequest]]:
        """What training changes nothing about: the teacher, guided and unguided."""
        teacher = picture_requests(self.session, "teacher", self.prompts)
        return [teacher, picture_requests(self.session, "unguided", self.prompts)]


def _indexed(index: Path, about: PreviewIndex) -> list[int]:
    """The steps that an index names.

    None where it is damaged, for then its pictures are drawn again; nor where it is of other
    prompts or of another guidance scale, for pictures of those do not belong beside these.
    """
    try:
        stored = PreviewIndex.read(index)
    except CorruptFileError:
        return []
    same = stored is not None and stored.model_copy(update={"steps": about.steps}) == about
    return stored.steps if stored is not None and same else []
