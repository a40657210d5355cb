"""Teacher, unguided teacher and student side by side, drawn on request, one comparison at a time.

One thread requests (:meth:`LivePictures.begin`, :meth:`LivePictures.status`,
:meth:`LivePictures.stop`, :meth:`LivePictures.picture`), another draws
(:meth:`LivePictures.work`).
"""

from __future__ import annotations

import math
import secrets
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guidefold.deliver import open_adapter, read_dial
from guidefold.draw import Drawn, Picture, PictureCache, PictureRequest, png
from guidefold.ground import GuidefoldError, InputError
from guidefold.lora import STRENGTHS, adapter_off, set_strength
from guidefold.pipeline import Prompt, load_prompts
from guidefold.run import Kind, Settings, require_run
from guidefold.session import Session, open_session

NOTCHES = 20  # of the dial, from one strength to the next whole one
TRIAL_STEPS = 2
KEPT = 32  # pictures; of one prompt and seed, only those that the dial changes are drawn again
LONGEST_PROMPT = 2000  # characters
LARGEST_SEED = 2**53 - 1  # a page's script counts no further


class Comparison(BaseModel):
    """What the page requests: a picture of every kind.

    Attributes:
        prompt: What to draw.
        seed: The same for every kind.
        strength: The student's; the teacher's guidance scale is what it stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    seed: int = Field(ge=0, le=LARGEST_SEED)
    strength: float = Field(ge=0)


@dataclass(frozen=True)
class Finished:
    """A picture.

    Attributes:
        id: Opaque.
        data: PNG.
        about: What the page says of it, as JSON.
    """

    id: str
    data: bytes
    about: dict[str, Any]


@dataclass
class Drawing:
    """A comparison that is being drawn.

    Attributes:
        comparison: What is drawn.
        total: Denoising steps in all.
        done: Denoising steps done.
        state: How it stands; set last, when all else is.
        message: What went wrong, in words.
        pictures: Those that are finished.
        stop_requested: Whether to end at the next step.
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
        """Count a step; end the drawing where that was requested."""
        self.done += count
        if self.stop_requested:
            raise _StopRequested

    def to_json(self) -> dict[str, Any]:
        """How it stands, as plain values."""
        state = self.state  # read first: what it promises is there
        pictures = {kind: {"id": p.id, **p.about} for kind, p in list(self.pictures.items())}
        return {
            "state": state,
            "done": self.done,
            "total": self.total,
            "message": self.message,
            "pictures": pictures,
        }


class _StopRequested(Exception):  # noqa: N818 - not an error
    """The page asked to stop."""


class LivePictures(PictureCache[Finished]):
    """Draws one comparison at a time, and keeps the latest pictures in memory.

    Args:
        session: Whose pictures; its adapter is loaded.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._waiting: SimpleQueue[Drawing | None] = SimpleQueue()
        self._drawing: Drawing | None = None
        self._measured = replace(session.dial, marks=read_dial(session.run.adapter).marks)

    def key(self, request: PictureRequest) -> PictureRequest:
        """The request: the pipeline and the settings of its call stay as they are."""
        return request

    def store(
        self, request: PictureRequest, index: int, picture: Picture, batch: Drawn
    ) -> Finished:
        """A picture as the page takes it."""
        about = {
            "width": picture.width,
            "height": picture.height,
            "passes": batch.passes_per_image,
            "seconds": batch.denoiser_seconds_per_image,
            "guidance": request.guidance,
            "strength": request.strength,
        }
        return Finished(secrets.token_hex(16), png(picture), about)

    def adapter_at(self, strength: float | None) -> AbstractContextManager[None]:
        """The adapter at a strength; off for the teacher."""
        if strength is None:
            return adapter_off(self.session.denoiser)
        set_strength(self.session.denoiser, strength)
        return nullcontext()

    @property
    def dial(self) -> list[tuple[float, float]]:
        """Every strength that can be asked for, with the teacher's guidance scale."""
        count = math.ceil(NOTCHES * max(STRENGTHS[-1], self._measured.strongest) - 1e-9)
        strengths = {k / NOTCHES for k in range(count + 1)} | {self.session.compared.strength}
        return [(strength, self.guidance_at(strength)) for strength in sorted(strengths)]

    def guidance_at(self, strength: float) -> float:
        """The teacher's guidance scale beside a strength, as the dial was measured.

        Beyond the marks it is what the strength was trained for; the scale that is off where that
        is all.
        """
        off = self.session.findings.off
        scale = round(self._measured.measured_guidance(strength), 2)
        return scale if scale > max(self._measured.origin, off) else off

    def begin(self, comparison: Comparison) -> str | None:
        """Have a comparison drawn.

        Returns:
            The drawing's id; None while another one is drawn.

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
        steps = self.session.settings.evaluate.steps
        self._drawing = Drawing(comparison, max(1, len(missing) * steps))
        self._waiting.put(self._drawing)
        return self._drawing.id

    def status(self, drawing: str) -> dict[str, Any] | None:
        """How a drawing stands, as plain values; None where it is not the last one."""
        last = self._drawing
        return last.to_json() if last is not None and last.id == drawing else None

    def stop(self, drawing: str) -> bool:
        """End a drawing at its next step.

        Returns:
            Whether it is the last one.
        """
        last = self._drawing
        if last is None or last.id != drawing:
            return False
        last.stop_requested = True
        return True

    def picture(self, picture: str) -> bytes | None:
        """A picture as PNG; None where there is none of that id, or not any more."""
        for finished in list(self.kept.values()):
            if finished.id == picture:
                return finished.data
        return None

    def work(self) -> None:
        """Draw what is asked for, until :meth:`close`."""
        while (drawing := self._waiting.get()) is not None:
            self._draw_all(drawing)

    def close(self) -> None:
        """Let :meth:`work` come to its end after what it draws now."""
        self._waiting.put(None)

    def try_out(self) -> None:
        """Draw a few steps, to see that a picture comes.

        Raises:
            InputError: It is a video, or nothing to look at.
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
        except Exception:  # what one prompt brings about does not take the page away
            traceback.print_exc()
            drawing.message = "The drawing failed; the terminal says why."
        drawing.state = state

    def _requests(self, comparison: Comparison) -> dict[Kind, PictureRequest]:
        """A request for each kind, the one that is asked for most first."""
        prompt, seed, strength = Prompt.of(comparison.prompt), comparison.seed, comparison.strength
        steps, off = self.session.settings.evaluate.steps, self.session.findings.off
        scale = self.guidance_at(strength)
        # Where guidance is off, the teacher is the unguided one: equal requests, drawn once.
        teacher: Kind = "unguided" if scale == off else "teacher"
        return {
            "student": PictureRequest("student", prompt, seed, off, steps, strength),
            "teacher": PictureRequest(teacher, prompt, seed, scale, steps),
            "unguided": PictureRequest("unguided", prompt, seed, off, steps),
        }

    def _finish(self, request: PictureRequest, drawing: Drawing) -> Finished:
        """A picture: the one that stands already, or drawn now."""
        (finished,) = self.fetch([request], drawing.advance)
        self.kept[request] = self.kept.pop(request)  # the last to go
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return finished


@contextmanager
def open_live(settings: Settings) -> Iterator[LivePictures]:
    """Open a trained run to draw on request.

    Args:
        settings: The run's.

    Raises:
        InputError: No run, no adapter, or a pipeline that needs more than a prompt or makes no
            pictures.
    """
    require_run(settings.run)
    _check_prompts(settings)
    with open_session(settings) as session:
        open_adapter(session, session.compared.strength)
        live = LivePictures(session)
        live.try_out()
        yield live


def _check_prompts(settings: Settings) -> None:
    """A page has room for a prompt, not for what else a pipeline's call may take."""
    for prompt in load_prompts(settings.prompts.path):
        if prompt.columns or not prompt.text:
            raise InputError(
                f"{prompt.source}: the run's pipeline is given more than a prompt, for which the "
                "page has no room",
                "Draw with 'guidefold sample RUN --inputs FILE.jsonl'.",
            )
