"""Pictures while training: teacher, unguided and student, at a few prompts and fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from guidefold.adapter import Adapter
from guidefold.errors import CorruptFileError, InputError
from guidefold.progress import Task, console
from guidefold.run.records import PreviewIndex
from guidefold.runs import write_bytes, write_json
from guidefold.sample import Picture, draw_session, grid, picture_seeds, png
from guidefold.session import Session
from guidefold.settings import KINDS, Kind


class Previews:
    """The pictures of one run, in ``RUN/previews``.

    Drawn by the pipeline that is trained, so that they show the student as it is, on frozen weights
    as they are stored; they leave it, its adapter and all randomness as they were.

    Args:
        session: The run; the first of its held-out prompts are drawn.
        adapter: The student's.

    Attributes:
        steps: Those that the folder's index names.
    """

    def __init__(self, session: Session, adapter: Adapter) -> None:
        self.session, self.adapter = session, adapter
        self.folder, self.index = session.run.previews, session.run.preview_index
        asked = session.settings
        self.prompts = session.held_out[: asked.distill.preview_prompts]
        self.seeds = picture_seeds(asked.seed, len(self.prompts))
        self.about = PreviewIndex(
            prompts=[prompt.key for prompt in self.prompts],
            seeds=self.seeds,
            **session.compared._asdict(),
            denoising_steps=asked.evaluate.steps,
            steps=[],
        )
        self.teacher_drawn = False
        self.steps = _indexed(self.index, self.about)

    def due(self, step: int) -> bool:
        """Whether a step is one of those that are drawn."""
        asked = self.session.settings.distill
        return bool(self.prompts) and (step % asked.preview_every == 0 or step == asked.steps)

    def missing(self, step: int) -> bool:
        """Whether a due step has no pictures yet."""
        return self.due(step) and step not in self.steps

    def teacher_missing(self) -> bool:
        """Whether the teacher's own pictures have yet to be drawn."""
        return bool(self.prompts) and not self._teacher_stands()

    def work(self) -> int:
        """Denoising steps of the next drawing, counted picture by picture."""
        kinds = 1 if self._teacher_stands() else len(KINDS)
        return kinds * len(self.prompts) * self.session.settings.evaluate.steps

    def draw(self, step: int, progress: Task) -> Picture | None:
        """Draw what is missing, write it, and name the step in the index.

        Args:
            step: How long the student was trained.
            progress: Told of every denoising step.

        Returns:
            All three kinds side by side; None where the pipeline draws no pictures, which is said
            once.
        """
        columns = self._columns(KINDS, step, progress)
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
        self.teacher_drawn = self._columns(KINDS[:2], 0, progress) is not None

    def _columns(
        self, kinds: Sequence[Kind], step: int, progress: Task
    ) -> list[list[Picture]] | None:
        """The pictures of several kinds; None, said once, where the pipeline draws none."""
        try:
            with self.session.whole():
                return [self._column(kind, step, progress) for kind in kinds]
        except (InputError, ValueError) as error:  # diffusers' word for an unknown output type
            console.print(f"No previews: {str(error).splitlines()[0]}", markup=False)
            self.prompts = []
            return None

    def _column(self, kind: Kind, step: int, progress: Task) -> list[Picture]:
        """The pictures of one kind; what does not change while training is drawn once."""
        files = self._files(kind, step)
        if kind != "student" and self._teacher_stands():
            return [_read(file) for file in files]
        student = kind == "student"
        strength, guidance = self.session.compared.strength, self.session.guidance_of(kind)
        mode = self.adapter.student_mode(strength, train=False) if student else None
        with mode or self.adapter.teacher_mode():
            drawn = draw_session(self.session, self.prompts, self.seeds, guidance, progress)
        for file, picture in zip(files, drawn.pictures, strict=True):
            write_bytes(file, png(picture))
        return drawn.pictures

    def _files(self, kind: Kind, step: int) -> list[Path]:
        ending = f"-step-{step:06d}" if kind == "student" else ""
        return [self.folder / f"{kind}-{k}{ending}.png" for k in range(len(self.prompts))]

    def _teacher_stands(self) -> bool:
        """Whether teacher and unguided teacher were drawn, and by what the index says."""
        files = [file for kind in KINDS[:2] for file in self._files(kind, 0)]
        named = self.teacher_drawn or bool(self.steps)
        return named and all(file.exists() for file in files)


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


def _read(path: Path) -> Picture:
    with Image.open(path) as picture:
        picture.load()
        return picture
