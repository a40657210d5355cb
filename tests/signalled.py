"""The command line where real signals arrive at a chosen point; also a process of its own."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from guidefold.cli import main as cli
from guidefold.record import recorder
from guidefold.train.distill import Training


def signal_at(patch: pytest.MonkeyPatch, place: str, number: int, times: int) -> None:
    """Send this process a signal as its first training step ends, or its second recording.

    Args:
        patch: Undone by the caller.
        place: ``training`` or ``recording``.
        number: The signal.
        times: How often.
    """

    def signalling(real: Callable[..., Any], due: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            if due(result, *arguments):
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return result

        return call

    if place == "training":
        step = signalling(Training.train_step, lambda line, *_: line.step == 1)
        patch.setattr(Training, "train_step", step)
    else:
        append = signalling(recorder.append_line, lambda _, path, line: line["index"] == 1)
        patch.setattr(recorder, "append_line", append)


if __name__ == "__main__":
    place, number, times = (sys.argv.pop(1) for _ in range(3))
    signal_at(pytest.MonkeyPatch(), place, int(number), int(times))
    cli.main()
