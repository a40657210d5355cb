"""``guidefold compare``; torch and the server wait until it runs."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import Annotated

import typer

from guidefold.cli.export import settings_of_run
from guidefold.cli.options import Run
from guidefold.ground import FailedError, InputError, console


def compare(
    run: Run,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Of the page; by default a free one.")
    ] = None,
) -> None:
    """Open a trained run as a page: draw with teacher and student.

    Prompt, seed and strength as you like; for a browser on this machine, until Ctrl-C.
    """
    settings = settings_of_run(run)
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise InputError(
                f"guidefold compare: {name} is not installed",
                "Install it with pip install 'guidefold[compare]'.",
            )
    from guidefold.show import open_live, serving

    # also where a script started this in the background, which ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open_live(settings) as live, serving(live, port or 0) as address:
            console.print(f"Open {address}\nCtrl-C ends it.", markup=False)
            live.work()  # on the main thread, where Ctrl-C arrives, even while it draws
    except KeyboardInterrupt:
        console.print("Closed.")
        return
    raise FailedError("the page's server has ended by itself", "Start it again.")
