"""``guidefold compare``; torch and the server are imported when it runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Annotated

import typer

from guidefold.cli.options import Run, loading, settings_of_run
from guidefold.ground import FailedError, InputError, console


def compare(
    run: Run,
    port: Annotated[
        int | None,
        typer.Option(min=1024, max=65535, help="Port of the page. Default: any free port."),
    ] = None,
) -> None:
    """Serve a page that draws with teacher and student.

    Choose prompt, seed and strength in a browser on this machine; Ctrl-C stops the server.
    """
    settings = settings_of_run(run)
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise InputError(
                f"guidefold compare: {name} is not installed",
                "Install it with pip install 'guidefold[compare]'.",
            )
    with loading():
        from guidefold.show import open_live, server

    # A shell starts background processes with SIGINT ignored; stop on it there too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        open_live(settings) as live,
        server.serving(live, port or 0) as address,
    ):
        signal.signal(signal.SIGINT, partial(_interrupt, live.interrupt))
        console.print(f"Open {address}\nCtrl-C ends it.")
        live.work()  # on the main thread, where Ctrl-C arrives, even while it draws
        if not live.interrupted:
            raise FailedError("the page's server has ended by itself", "Start it again.")
    console.print("Closed.")


def _interrupt(stop: Callable[[], None], number: int, frame: FrameType | None) -> None:
    """Leave at once; at the next step where a library's code swallows the exception."""
    stop()
    signal.default_int_handler(number, frame)
