"""What the files of a run hold: a class for each kind of file, checked as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from guidefold.ground import CorruptFileError, plural
from guidefold.run.files import LINE_REMEDY, read_json, read_lines
from guidefold.run.settings import KINDS, Kind

AGAIN = "Write it anew: 'guidefold evaluate RUN', or 'guidefold distill RUN' for previews."


class Record(BaseModel):
    """A table in a JSON file; keys that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @classmethod
    def read(cls, path: Path, remedy: str = AGAIN) -> Self | None:
        """Read a file of a run that may not be there yet.

        Args:
            path: The file.
            remedy: What to do where it is damaged.

        Returns:
            Its content; None where there is no file.

        Raises:
            CorruptFileError: It is no JSON or no table, or lacks a key.
        """
        return cls.check(read_json(path, remedy), path, remedy) if path.exists() else None

    @classmethod
    def read_lines(cls, path: Path) -> list[Self]:
        """Read every line of a JSON-lines file; none where there is no file.

        Raises:
            CorruptFileError: A line is no JSON or no table, or lacks a key.
        """
        lines = enumerate(read_lines(path), 1)
        return [cls.check(line, f"{path}:{number}", LINE_REMEDY) for number, line in lines]

    @classmethod
    def check(cls, value: object, place: Path | str, remedy: str) -> Self:
        """Make a record of JSON that was read.

        Args:
            value: The JSON.
            place: Where it was read, for messages.
            remedy: What to do where it is damaged.

        Raises:
            CorruptFileError: It is no table, or lacks a key.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise CorruptFileError(f"{place}: {_problem(error)}", remedy) from error

    def to_json(self) -> dict[str, Any]:
        """The table in the order of its fields; optional ones that were not given are left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class NoiseLevel(Record):
    """Residual guidance of so many states in a range of timesteps: 1 nothing folded, 0 all."""

    low: float
    high: float
    residual: float
    states: int


class Residual(Record):
    """Residual guidance: its mean over noise levels, and each of them."""

    mean: float
    levels: list[NoiseLevel]


class ResidualGuidance(Record):
    """Residual guidance at the states that the teacher visits, and at the student's own."""

    teacher_states: Residual
    student_states: Residual


class KindResults(Record):
    """What was measured of one kind of pictures.

    Attributes:
        alignment: Share of pictures that show their prompts; None without a judge.
        saturation: HSV's, 0..1.
        passes_per_image: Samples through the denoiser.
        denoiser_seconds_per_image: Time inside the denoiser.
        denoiser_seconds_per_image_fused: The same, the adapter fused; of a student whose weights
            are not quantised.
        alignment_over_teacher_95: Bounds of the alignment over the teacher's; of the student alone.
        clip_score: By a CLIP model; None without one.
        frechet_distance: Of the pictures as a set from the teacher's; None without features.
        recall: Share of the teacher's pictures that are covered; None without features.
        diversity: Mean distance of two pictures of one prompt, in features; None where it was not
            measured.
    """

    alignment: float | None = None
    saturation: float | None = None
    passes_per_image: float
    denoiser_seconds_per_image: float
    denoiser_seconds_per_image_fused: float | None = None
    alignment_over_teacher_95: tuple[float, float] | None = None
    clip_score: float | None = None
    frechet_distance: float | None = None
    recall: float | None = None
    diversity: float | None = None


class GainKept(Record):
    """How much of what guidance adds to a score the student keeps.

    Attributes:
        share: 1 all, 0 nothing; above 1 where the student's score exceeds the teacher's.
        interval_95: Bounds of the share over resampled prompts.
    """

    share: float
    interval_95: tuple[float, float]


class FewStepResults(Record):
    """What was measured of a student that takes fewer steps than the teacher.

    Attributes:
        steps: The student's denoising steps per picture.
        teacher: The guided teacher at as many steps.
    """

    steps: int
    teacher: KindResults


class CategoryResults(Record):
    """Each kind's alignment within a category of prompts."""

    prompts: int
    teacher: float
    unguided: float
    student: float


class Results(Record):
    """What ``results.json`` holds.

    Attributes:
        categories: By category of prompt; empty without a judge.
        residual_guidance: On recorded states; with few steps, the step residual.
        few_steps: Of a student that takes fewer steps than the teacher; None of any other.
        gain_kept: By score (``alignment``, ``clip_score``, ``saturation``), where guidance adds to
            it for certain; empty in old files.
        relative_distance: ``E|student - teacher|^2 / E|unguided - teacher|^2`` over pixels.
        guidance: The teacher's guidance scale.
        strength: The student's.
        prompts: How many held-out prompts were drawn.
        steps: Denoising steps per picture; with few steps, the teacher's.
        trained_steps: Optimizer steps of the measured adapter.
        adapter_bytes: Of the adapter's files.
        denoiser_bytes: Of the denoiser's weights.
        versions: Of the libraries, by name.
        machine: On which it was measured.
    """

    teacher: KindResults
    unguided: KindResults
    student: KindResults
    categories: dict[str, CategoryResults] = {}
    residual_guidance: ResidualGuidance
    few_steps: FewStepResults | None = None
    gain_kept: dict[str, GainKept] = {}
    relative_distance: float
    guidance: float
    strength: float
    prompts: int
    steps: int
    trained_steps: int
    adapter_bytes: int
    denoiser_bytes: int
    versions: dict[str, str]
    machine: str

    def of(self, kind: Kind) -> KindResults:
        """What was measured of one kind of pictures."""
        found: KindResults = getattr(self, kind)
        return found

    def rows(self) -> list[tuple[Kind, str, KindResults]]:
        """The rows of a table: kind, what its name needs besides, and what was measured."""
        few = self.few_steps
        if few is None:
            return [(kind, "", self.of(kind)) for kind in KINDS]
        long, short = (f", {plural(count, 'step')}" for count in (self.steps, few.steps))
        teachers: list[tuple[Kind, str, KindResults]] = [
            ("teacher", long, self.teacher),
            ("teacher", short, few.teacher),
        ]
        return [*teachers, *((k, short, self.of(k)) for k in KINDS if k != "teacher")]


class PromptPictures(Record):
    """The pictures of one prompt.

    Attributes:
        prompt: Its label.
        seed: Of every kind's picture.
        category: The prompt's; None without a judge.
        files: Each kind's picture, within the folder of the measurement.
        aligned: For each kind, whether its picture shows the prompt; empty without a judge.
    """

    prompt: str
    seed: int
    category: str | None = None
    files: dict[Kind, str]
    aligned: dict[Kind, bool] = {}


class StrengthPictures(Record):
    """The files at one strength and the guidance scale that it stands for, prompt by prompt."""

    strength: float
    guidance: float
    teacher: list[str]
    student: list[str]


class PictureIndex(Record):
    """What ``evaluation/index.json`` holds: pictures by prompt, and by strength."""

    pictures: list[PromptPictures]
    dial: list[StrengthPictures]


class PreviewIndex(Record):
    """What ``previews/previews.json`` holds; ``sha256`` by picture, empty in old files."""

    prompts: list[str]
    seeds: list[int] = []
    guidance: float | None = None
    strength: float | None = None
    denoising_steps: int | None = None
    steps: list[int]
    sha256: dict[str, str] = {}


class ProbeRecord(Record):
    """What ``probe.json`` holds, as far as pages show it; findings have a class of their own."""

    pipeline: str


class CheckpointState(Record):
    """What a checkpoint's ``state.json`` holds.

    Attributes:
        step: Optimizer steps so far.
        rank: The adapter's.
        scaler: Of mixed precision, as torch's; None without one.
        training_seconds: Time that those steps took.
        settings: Those it was trained with, by dotted name; empty in old files.
        log_lines: How many lines ``log.jsonl`` had; None in old files.
    """

    step: int
    rank: int
    scaler: dict[str, Any] | None = None
    training_seconds: float = 0.0
    settings: dict[str, Any] = {}
    log_lines: int | None = None


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in words."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"'{name}' is not in it"
    return f"'{name}' is damaged: {first['msg']}" if name else "holds no table"
