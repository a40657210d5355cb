"""A run's teacher, unguided teacher and student, drawn on request, one request at a time.

One thread asks (:meth:`Easel.begin`, :meth:`Easel.status`, :meth:`Easel.stop`,
:meth:`Easel.picture`), another draws (:meth:`Easel.work`).
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

from guidefold.about import read_dial
from guidefold.adapter import adapter_off, set_strength
from guidefold.deliver.trained import open_adapter
from guidefold.errors import GuidefoldError, InputError
from guidefold.lora.dial import STRENGTHS
from guidefold.prompts import Prompt, load_prompts
from guidefold.run.folder import require_run
from guidefold.sample import Drawn, draw, png
from guidefold.session import Session, open_session
from guidefold.settings import Kind, Settings

ORDER: tuple[Kind, ...] = ("student", "teacher", "unguided")  # the one that is asked for most first
NOTCHES = 20  # of the dial, from one strength to the next whole one
TRIAL_STEPS = 2
KEPT = 32  # pictures; of one prompt and seed, only those that the dial changes are drawn again
LONGEST_PROMPT = 2000  # characters
LARGEST_SEED = 2**53 - 1  # a page's script counts no further


class Wish(BaseModel):
    """What somebody wants to see.

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
class Look:
    """All that a picture depends on, beside the run.

    Attributes:
        prompt: What was drawn.
        seed: Of its first state.
        guidance: The value of the pipeline's guidance argument.
        strength: The adapter's; None where it is off.
    """

    prompt: str
    seed: int
    guidance: float
    strength: float | None


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
    """A wish on its way.

    Attributes:
        wish: What is wanted.
        total: Denoising steps in all.
        done: Denoising steps done.
        state: How it stands; set last, when all else is.
        message: What went wrong, in words.
        pictures: Those that are finished.
        unwanted: Whether somebody asked to stop.
    """

    wish: Wish
    total: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    done: int = 0
    state: Literal["drawing", "done", "stopped", "failed"] = "drawing"
    message: str = ""
    pictures: dict[Kind, Finished] = field(default_factory=dict)
    unwanted: bool = False

    def advance(self, count: int) -> None:
        """Count a step; where nobody wants the drawing any more, end it."""
        self.done += count
        if self.unwanted:
            raise _Unwanted

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


class _Unwanted(Exception):  # noqa: N818 - not an error
    """Somebody asked to stop."""


class Easel:
    """Draws what it is asked for, one wish at a time.

    Args:
        session: Whose pictures; its adapter is loaded.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._wishes: SimpleQueue[Drawing | None] = SimpleQueue()
        self._drawing: Drawing | None = None
        self._finished: dict[Look, Finished] = {}
        self._measured = replace(session.dial, marks=read_dial(session.run.adapter).marks)

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

    def begin(self, wish: Wish) -> str | None:
        """Have a wish drawn.

        Returns:
            The drawing's id; None while another one is drawn.

        Raises:
            InputError: The prompt is empty, or the strength is beyond the dial.
        """
        if not wish.prompt.strip():
            raise InputError("prompt: an empty one", "Say what to draw.")
        strongest = self.dial[-1][0]
        if wish.strength > strongest:
            raise InputError(
                f"strength: {wish.strength:g}, beyond the dial",
                f"Use one from 0 to {strongest:g}.",
            )
        if self._drawing is not None and self._drawing.state == "drawing":
            return None
        missing = {look for look in self._looks(wish).values() if look not in self._finished}
        steps = self.session.settings.evaluate.steps
        self._drawing = Drawing(wish, max(1, len(missing) * steps))
        self._wishes.put(self._drawing)
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
        last.unwanted = True
        return True

    def picture(self, picture: str) -> bytes | None:
        """A picture as PNG; None where there is none of that id, or not any more."""
        for finished in list(self._finished.values()):
            if finished.id == picture:
                return finished.data
        return None

    def work(self) -> None:
        """Draw what is asked for, until :meth:`close`."""
        while (drawing := self._wishes.get()) is not None:
            self._draw_all(drawing)

    def close(self) -> None:
        """Let :meth:`work` come to its end after what it draws now."""
        self._wishes.put(None)

    def try_out(self) -> None:
        """Draw a few steps, to see that a picture comes.

        Raises:
            InputError: It is a video, or nothing to look at.
        """
        off, strength = self.session.findings.off, self.session.compared.strength
        look = Look(self.session.held_out[0].text, 0, off, strength)
        if self._drawn(look, TRIAL_STEPS).frames:
            raise InputError(
                f"{self.session.run}: its pipeline makes videos, and the page shows pictures",
                "Draw them with 'guidefold sample'.",
            )

    def _draw_all(self, drawing: Drawing) -> None:
        state: Literal["done", "stopped", "failed"] = "failed"
        try:
            for kind, look in self._looks(drawing.wish).items():
                drawing.pictures[kind] = self._finish(look, drawing)
            state = "done"
        except _Unwanted:
            state = "stopped"
        except GuidefoldError as error:
            drawing.message = str(error)
        except Exception:  # what one prompt brings about does not take the page away
            traceback.print_exc()
            drawing.message = "The drawing failed; the terminal says why."
        drawing.state = state

    def _looks(self, wish: Wish) -> dict[Kind, Look]:
        """What each kind of picture depends on."""
        off, same = self.session.findings.off, (wish.prompt, wish.seed)
        looks: dict[Kind, Look] = {
            "student": Look(*same, off, wish.strength),
            "teacher": Look(*same, self.guidance_at(wish.strength), None),
            "unguided": Look(*same, off, None),
        }
        return {kind: looks[kind] for kind in ORDER}

    def _finish(self, look: Look, drawing: Drawing) -> Finished:
        """A picture: the one that stands already, or drawn now."""
        finished = self._finished.pop(look, None) or self._fresh(look, drawing)
        self._finished[look] = finished  # the last to go
        while len(self._finished) > KEPT:
            del self._finished[next(iter(self._finished))]
        return finished

    def _fresh(self, look: Look, drawing: Drawing) -> Finished:
        drawn = self._drawn(look, self.session.settings.evaluate.steps, drawing)
        (picture,) = drawn.pictures
        about = {
            "width": picture.width,
            "height": picture.height,
            "passes": drawn.passes_per_image,
            "seconds": drawn.denoiser_seconds_per_image,
            "guidance": look.guidance,
            "strength": look.strength,
        }
        return Finished(secrets.token_hex(16), png(picture), about)

    def _drawn(self, look: Look, steps: int, drawing: Drawing | None = None) -> Drawn:
        session = self.session
        with self._adapter(look.strength):
            return draw(
                session.pipeline,
                session.findings,
                session.settings.pipeline,
                [Prompt.of(look.prompt)],
                [look.seed],
                guidance=look.guidance,
                steps=steps,
                on_step=None if drawing is None else drawing.advance,
            )

    def _adapter(self, strength: float | None) -> AbstractContextManager[None]:
        """The adapter at a strength; off where that is None: the teacher's own weights."""
        if strength is None:
            return adapter_off(self.session.denoiser)
        set_strength(self.session.denoiser, strength)
        return nullcontext()


@contextmanager
def open_easel(settings: Settings) -> Iterator[Easel]:
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
        easel = Easel(session)
        easel.try_out()
        yield easel


def _check_prompts(settings: Settings) -> None:
    """A page has room for a prompt, not for what else a pipeline's call may take."""
    for prompt in load_prompts(settings.prompts.path):
        if prompt.columns or not prompt.text:
            raise InputError(
                f"{prompt.source}: the run's pipeline is given more than a prompt, for which the "
                "page has no room",
                "Draw with 'guidefold sample RUN --inputs FILE.jsonl'.",
            )
