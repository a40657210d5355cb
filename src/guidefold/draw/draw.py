"""Draw requested pictures with the stock pipeline, and count passes and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from guidefold.draw.pictures import Drawn, Picture
from guidefold.ground import InputError, derive_seed, kind_of, planned_steps
from guidefold.listen import Listener, naming_rows, run, run_inputs
from guidefold.pipeline import Prompt
from guidefold.run import Kind
from guidefold.session import Session


@dataclass(frozen=True)
class PictureRequest:
    """All that one picture depends on, besides the pipeline and ``pipeline.call``.

    Attributes:
        kind: Teacher, unguided teacher or student.
        prompt: The prompt.
        seed: The seed of the first state.
        guidance: The value of the pipeline's guidance argument.
        steps: Denoising steps.
        strength: The adapter's strength; None for the teacher, which has no adapter.
    """

    kind: Kind
    prompt: Prompt
    seed: int
    guidance: float
    steps: int
    strength: float | None = None

    @property
    def name(self) -> str:
        """The kind with its guidance scale or strength, for file names: ``teacher-g5``."""
        scales = {"teacher": f"-g{self.guidance:g}", "student": f"-s{self.strength or 0:g}"}
        return self.kind + scales.get(self.kind, "")

    @property
    def facts(self) -> dict[str, Any]:
        """The request as JSON values, for a picture file's metadata."""
        return {
            "kind": self.kind,
            "prompt": self.prompt.label,
            "seed": self.seed,
            "guidance": self.guidance,
            "strength": self.strength,
            "steps": self.steps,
        }


def picture_requests(
    session: Session,
    kind: Kind,
    prompts: Sequence[Prompt],
    seeds: Sequence[int] | None = None,
    *,
    guidance: float | None = None,
    strength: float | None = None,
    steps: int | None = None,
) -> list[PictureRequest]:
    """Requests for pictures of one kind.

    Args:
        session: The session, whose settings give what is None here.
        kind: Teacher, unguided teacher or student.
        prompts: One per picture.
        seeds: One per picture.
        guidance: The guidance scale.
        strength: The student's strength.
        steps: Denoising steps.
    """
    if seeds is None:
        seeds = picture_seeds(session.settings.seed, len(prompts))
    if guidance is None:
        guidance = session.guidance_of(kind)
    if strength is None and kind == "student":
        strength = session.compared.strength
    if steps is None:
        steps = session.settings.steps_of(kind)
    return [
        PictureRequest(kind, prompt, seed, guidance, steps, strength)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def picture_seeds(seed: int, count: int) -> list[int]:
    """The seeds of a run's pictures, the same for every kind."""
    return [derive_seed(seed, "picture", k) for k in range(count)]


def draw(
    session: Session, requests: Sequence[PictureRequest], on_step: Callable[[int], None]
) -> Drawn:
    """Draw with a session's pipeline in its present state.

    Args:
        session: The session; for a student, its adapter is loaded at the requested strength.
        requests: Requests that differ in prompt and seed only.
        on_step: Called at every step with the number of pictures in the batch.

    Raises:
        InputError: The pipeline makes neither pictures nor videos.
    """
    drawn, passes, seconds = Drawn(), 0, 0.0
    settings, findings = session.settings, session.findings
    guidance, steps = requests[0].guidance, requests[0].steps
    one_by_one = findings.layout is None or any(request.prompt.columns for request in requests)
    size = 1 if one_by_one else settings.evaluate.batch_size
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        prompts = [request.prompt for request in batch]
        inputs = run_inputs(session.pipeline, findings, settings.pipeline, prompts, guidance, steps)
        with (
            naming_rows(prompts),
            planned_steps(steps * len(batch), on_step) as count,
            Listener(
                session.pipeline, session.denoisers, on_step=partial(count, len(batch))
            ) as listener,
        ):
            seeds = [request.seed for request in batch]
            result = run(session.pipeline, inputs, seeds, output_type="pil")
        _add_result(drawn, result, len(batch))
        calls = [call for step in listener.steps for call in step.calls]
        passes += sum(call.rows for call in calls)
        seconds += sum(call.seconds for call in calls)
    drawn.passes_per_image = passes / len(requests)
    drawn.denoiser_seconds_per_image = seconds / len(requests)
    return drawn


def _add_result(drawn: Drawn, result: Any, count: int) -> None:
    """Add the pictures or videos of a pipeline's result."""
    items = list(result[0])
    if len(items) != count or not all(isinstance(item, Picture | list) for item in items):
        raise InputError(
            f"the pipeline returned {kind_of(result[0])}, neither pictures nor videos",
            "Guidefold folds its guidance, but cannot draw what it makes: use the adapter in "
            "diffusers.",
        )
    for item in items:
        if isinstance(item, list):
            drawn.frames.append(item)
            drawn.pictures.append(item[len(item) // 2])
        else:
            drawn.pictures.append(item)
