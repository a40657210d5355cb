"""An easel that paints plain colours, step by step as a test allows; no pipeline is opened."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from PIL import Image
from torch import nn

from guidefold.easel import Drawing, Easel, Look
from guidefold.lora.dial import Compared, Dial
from guidefold.prompts import Prompt
from guidefold.run.folder import RunFolder
from guidefold.sample import Drawn
from guidefold.settings import Settings

SIZE = 16
COLOURS = {"teacher": "red", "unguided": "lime", "student": "blue"}


def make_session(run: str = "my run", prompt: str = "a red cat", **adapter: Any) -> Any:
    """What an easel asks of a session."""
    values = {"run": run, "pipeline": {"source": "bundled"}, "adapter": {"g_ref": 5.0, **adapter}}
    settings = Settings.model_validate({**values, "evaluate": {"steps": 4}})
    return SimpleNamespace(
        run=RunFolder(run),
        settings=settings,
        findings=SimpleNamespace(off=1.0, origin=1.0, pipeline="TinyPipeline"),
        held_out=[Prompt.of(prompt)],
        dial=Dial(1.0, settings.adapter.g_ref, (2.0, 8.0)),  # strongest 1.75, as g_ref is 5
        compared=Compared(5.0, 1.0),
        denoiser=nn.Identity(),
    )


class Painter(Easel):
    """Paints the student blue, the teacher red, the unguided teacher green.

    Attributes:
        looks: What was painted.
        fault: Raised in painting's place.
        gate: Open unless a test shuts it; a step waits before it.
    """

    def __init__(self, session: Any = None) -> None:
        super().__init__(session or make_session())
        self.looks: list[Look] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def _drawn(self, look: Look, steps: int, drawing: Drawing | None = None) -> Drawn:
        if self.fault is not None:
            raise self.fault
        for _ in range(steps):
            assert self.gate.wait(10)
            if drawing is not None:
                drawing.advance(1)
        self.looks.append(look)
        off = look.guidance == self.session.findings.off
        kind = "student" if look.strength is not None else "unguided" if off else "teacher"
        picture = Image.new("RGB", (SIZE, SIZE), COLOURS[kind])
        passes = steps if off else 2 * steps
        return Drawn([picture], passes_per_image=passes, denoiser_seconds_per_image=0.25)


@contextmanager
def working(easel: Easel) -> Iterator[None]:
    """An easel at work on a thread of its own."""
    thread = threading.Thread(target=easel.work)
    thread.start()
    try:
        yield
    finally:
        easel.close()
        thread.join(10)
        assert not thread.is_alive()


def finish(easel: Easel, drawing: str | None) -> dict[str, Any]:
    """A drawing when it has ended."""
    assert drawing is not None
    with working(easel):
        pass  # close waits behind it
    stands = easel.status(drawing)
    assert stands is not None
    assert stands["state"] != "drawing"
    return stands
