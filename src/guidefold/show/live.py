"""Draw teacher, unguided teacher and student on request, one comparison at a time.

Two threads share :class:`LivePictures`: the server's calls ``begin``, ``status``, ``stop`` and
``picture``, the main one draws in ``work`` until ``interrupt`` or ``close``.
"""

from __future__ import annotations

import math
import secrets
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guidefold.deliver import find_adapter, measured_dial, open_adapter
from guidefold.draw import Drawn, Picture, PictureCache, PictureRequest, png
from guidefold.ground import GuidefoldError, InputError
from guidefold.lora import SHOWN_DIGITS, STRENGTHS, adapter_off, set_strength
from guidefold.pipeline import Prompt, load_prompts
from guidefold.run import Kind, Settings, require_run
from guidefold.session import Session, open_session

NOTCHES = 20  # positions of the slider per unit of strength
TRIAL_STEPS = 2
KEPT = 32  # pictures in memory, so that moving the slider back draws nothing again
LONGEST_PROMPT = 2000  # characters
LARGEST_SEED = 2**53 - 1  # JavaScript's largest exact integer


class Comparison(BaseModel):
    """The page's request for a picture of every kind.

    Attributes:
        prompt: The prompt.
        seed: The seed, the same for every kind.
        strength: The student's strength; the teacher takes the guidance scale it stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    seed: int = Field(ge=0, le=LARGEST_SEED)
    strength: float = Field(ge=0)


@dataclass(frozen=True)
class Finished:
    """A finished picture.

    Attributes:
        id: A random id.
        data: The PNG file.
        facts: Size, costs, guidance and strength, as JSON values.
    """

    id: str
    data: bytes
    facts: dict[str, Any]


@dataclass
class Drawing:
    """A comparison that is being drawn.

    Attributes:
        comparison: The request.
        total: Denoising steps in all.
        id: A random id.
        done: Denoising steps done.
        state: The state; set last, after all other fields.
        message: The error message, if it failed.
        pictures: The finished pictures.
        stop_requested: Whether to stop at the next step.
    """

    comparison: Comparison
    total: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    done: int = 0
    state: Literal["drawing", "done", "stopped", "failed"] = "drawing"
    message: str = ""
    pictures: dict[Kind, Finished] = field(default_factory=dict)
    stop_requested: bool = False

    def advance(self, count: int) -> None:
        """Count steps; stop the drawing if that was requested."""
        self.done += count
        if self.stop_requested:
            raise _StopRequested

    def to_json(self) -> dict[str, Any]:
        """State, progress and finished pictures, as JSON values."""
        state = self.state  # first: it is written last, so all fields are at least as new
        pictures = {kind: {"id": p.id, **p.facts} for kind, p in list(self.pictures.items())}
        return {
            "state": state,
            "done": self.done,
            "total": self.total,
            "message": self.message,
            "pictures": pictures,
        }


class _StopRequested(Exception):  # noqa: N818 - not an error
    """The page has requested a stop."""


class LivePictures(PictureCache[Finished]):
    """Draws one comparison at a time, and keeps the latest pictures in memory.

    Args:
        session: The session, with the adapter loaded.

    Attributes:
        interrupted: Whether :meth:`interrupt` was called.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.interrupted = False
        self._waiting: SimpleQueue[Drawing | None] = SimpleQueue()
        self._drawing: Drawing | None = None
        self._measured = measured_dial(session)

    def key(self, request: PictureRequest) -> PictureRequest:
        """The request itself: pipeline and settings do not change while the page is open."""
        return request

    def store(
        self, request: PictureRequest, index: int, picture: Picture, batch: Drawn
    ) -> Finished:
        """Encode the picture as PNG, with its facts."""
        facts = {
            "width": picture.width,
            "height": picture.height,
            "passes": batch.passes_per_image,
            "seconds": batch.denoiser_seconds_per_image,
            "guidance": request.guidance,
            "strength": request.strength,
        }
        return Finished(secrets.token_hex(16), png(picture, request.facts), facts)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """Set the adapter's strength; None switches it off within the context."""
        if strength is None:
            return adapter_off(self.session.denoiser)
        set_strength(self.session.denoiser, strength)
        return nullcontext()

    @property
    def dial(self) -> list[tuple[float, float]]:
        """Every strength of the slider, with the teacher's guidance scale."""
        # 1e-9: rounding errors of a strength such as 35 / 20 must not add a position.
        count = math.ceil(NOTCHES * max(STRENGTHS[-1], self._measured.strongest) - 1e-9)
        strengths = {k / NOTCHES for k in range(count + 1)} | {self.session.compared.strength}
        return [(strength, self.guidance_at(strength)) for strength in sorted(strengths)]

    def guidance_at(self, strength: float) -> float:
        """The teacher's guidance scale for a strength, by the measured dial.

        Outside the marks it is the nominal scale; at or below the origin, the scale that switches
        guidance off.
        """
        off = self.session.findings.off
        scale = round(self._measured.measured_guidance(strength), SHOWN_DIGITS)
        return scale if scale > max(self._measured.origin, off) else off

    def begin(self, comparison: Comparison) -> str | None:
        """Queue a comparison for drawing.

        Returns:
            The drawing's id; None while another drawing is in progress.

        Raises:
            InputError: The prompt is empty, or the strength is beyond the dial.
        """
        if not comparison.prompt.strip():
            raise InputError("prompt: an empty one", "Say what to draw.")
        strongest = self.dial[-1][0]
        if comparison.strength > strongest:
            raise InputError(
                f"strength: {comparison.strength:g}, beyond the dial",
                f"Use one from 0 to {strongest:g}.",
            )
        if self._drawing is not None and self._drawing.state == "drawing":
            return None
        missing = set(self.missing(list(self._requests(comparison).values())))
        self._drawing = Drawing(comparison, max(1, sum(request.steps for request in missing)))
        self._waiting.put(self._drawing)
        return self._drawing.id

    def status(self, drawing: str) -> dict[str, Any] | None:
        """:meth:`Drawing.to_json` of the last drawing; None for any other id."""
        last = self._drawing
        return last.to_json() if last is not None and last.id == drawing else None

    def stop(self, drawing: str) -> bool:
        """Stop a drawing at its next step.

        Returns:
            Whether the id is the last drawing's.
        """
        last = self._drawing
        if last is None or last.id != drawing:
            return False
        last.stop_requested = True
        return True

    def picture(self, picture: str) -> bytes | None:
        """The PNG file of a picture; None where its id is unknown or no longer kept."""
        for finished in list(self.kept.values()):
            if finished.id == picture:
                return finished.data
        return None

    def work(self) -> None:
        """Draw queued comparisons, until :meth:`close`."""
        while (drawing := self._waiting.get()) is not None:
            self._draw_all(drawing)

    def close(self) -> None:
        """End :meth:`work` after the drawing in progress."""
        self._waiting.put(None)

    def interrupt(self) -> None:
        """End :meth:`work` at the next step of the drawing in progress; a signal handler may."""
        self.interrupted = True
        if self._drawing is not None:
            self._drawing.stop_requested = True
        self.close()

    def try_out(self) -> None:
        """Draw a few steps, to check that the pipeline returns a picture.

        Raises:
            InputError: It returns a video, or no picture at all.
        """
        session = self.session
        off, strength = session.findings.off, session.compared.strength
        trial = PictureRequest("student", session.held_out[0], 0, off, TRIAL_STEPS, strength)
        if self.draw_anew([trial], lambda count: None).frames:
            raise InputError(
                f"{self.session.run}: its pipeline makes videos, and the page shows pictures",
                "Draw them with 'guidefold sample'.",
            )

    def _draw_all(self, drawing: Drawing) -> None:
        state: Literal["done", "stopped", "failed"] = "failed"
        try:
            for kind, request in self._requests(drawing.comparison).items():
                drawing.pictures[kind] = self._finish(request, drawing)
            state = "done"
        except _StopRequested:
            state = "stopped"
        except GuidefoldError as error:
            drawing.message = str(error)
        except Exception:  # one prompt's failure must not end the page
            traceback.print_exc()
            drawing.message = "The drawing failed; the terminal says why."
        drawing.state = state

    def _requests(self, comparison: Comparison) -> dict[Kind, PictureRequest]:
        """A request for each kind; the student first, as its picture is what users wait for."""
        prompt, seed, strength = Prompt.of(comparison.prompt), comparison.seed, comparison.strength
        steps, off = self.session.settings.steps_of, self.session.findings.off
        scale = self.guidance_at(strength)
        # Where guidance is off, the teacher is the unguided one: equal requests, drawn once.
        teacher: Kind = "unguided" if scale == off else "teacher"
        return {
            "student": PictureRequest("student", prompt, seed, off, steps("student"), strength),
            "teacher": PictureRequest(teacher, prompt, seed, scale, steps(teacher)),
            "unguided": PictureRequest("unguided", prompt, seed, off, steps("unguided")),
        }

    def _finish(self, request: PictureRequest, drawing: Drawing) -> Finished:
        """The finished picture of a request, from memory or drawn now."""
        (finished,) = self.fetch([request], drawing.advance)
        self.kept[request] = self.kept.pop(request)  # move to the end: the oldest is dropped first
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return finished


@contextmanager
def open_live(settings: Settings) -> Iterator[LivePictures]:
    """Open a trained run for drawing on request.

    Args:
        settings: The run's settings.

    Raises:
        InputError: No run, no adapter, or a pipeline that needs more than a prompt or makes no
            pictures.
    """
    find_adapter(require_run(settings.run))
    _check_prompts(settings)
    with open_session(settings) as session:
        open_adapter(session, session.compared.strength)
        live = LivePictures(session)
        live.try_out()
        yield live


def _check_prompts(settings: Settings) -> None:
    """Refuse rows with more than a prompt: the page has no fields for other arguments."""
    for prompt in load_prompts(settings.prompts.path):
        if prompt.columns or not prompt.text:
            raise InputError(
                f"{prompt.source}: the run's pipeline is given more than a prompt, for which the "
                "page has no room",
                "Draw with 'guidefold sample RUN --inputs FILE.jsonl'.",
            )
