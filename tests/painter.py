"""Live pictures painted in plain colours, step by step as a test allows; no pipeline is opened."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from PIL import Image
from torch import nn

from guidefold.draw.draw import PictureRequest
from guidefold.draw.pictures import Drawn
from guidefold.lora.dial import Compared, Dial
from guidefold.pipeline.prompts import Prompt
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.show.live import LivePictures

SIZE = 16
COLOURS = {"teacher": "red", "unguided": "lime", "student": "blue"}


def make_session(run: str = "my run", prompt: str = "a red cat", **adapter: Any) -> Any:
    """What live pictures need of a session."""
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


class Painter(LivePictures):
    """Paints the student blue, the teacher red, the unguided teacher green.

    Attributes:
        painted: What was painted.
        fault: Raised in painting's place.
        gate: Open unless a test shuts it; a step waits before it.
    """

    def __init__(self, session: Any = None) -> None:
        super().__init__(session or make_session())
        self.painted: list[PictureRequest] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def draw_anew(
        self, requests: Sequence[PictureRequest], on_step: Callable[[int], None]
    ) -> Drawn:
        if self.fault is not None:
            raise self.fault
        (request,) = requests
        for _ in range(request.steps):
            assert self.gate.wait(10)
            on_step(1)
        self.painted.append(request)
        off = request.guidance == self.session.findings.off
        kind = "student" if request.strength is not None else "unguided" if off else "teacher"
        picture = Image.new("RGB", (SIZE, SIZE), COLOURS[kind])
        passes = request.steps if off else 2 * request.steps
        return Drawn([picture], passes_per_image=passes, denoiser_seconds_per_image=0.25)


@contextmanager
def working(live: LivePictures) -> Iterator[None]:
    """Work on a thread of its own."""
    thread = threading.Thread(target=live.work)
    thread.start()
    try:
        yield
    finally:
        live.close()
        thread.join(10)
        assert not thread.is_alive()


def finish(live: LivePictures, drawing: str | None) -> dict[str, Any]:
    """A drawing when it has ended."""
    assert drawing is not None
    with working(live):
        pass  # close waits behind it
    stands = live.status(drawing)
    assert stands is not None
    assert stands["state"] != "drawing"
    return stands
