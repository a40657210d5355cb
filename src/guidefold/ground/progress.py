"""Progress with time left, and a polite stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from guidefold.ground.shortage import named

Item = TypeVar("Item")
CONSOLE_SETTINGS: dict[str, Any] = {
    "highlight": False,
    "soft_wrap": True,
    "markup": False,
    "emoji": False,
}
"""Settings of a console that prints texts as they are: paths and prompts have [] and :: too."""
console = Console(**CONSOLE_SETTINGS)
PLAIN_SECONDS = 15.0  # between lines where there is no terminal to redraw
SPEED_SECONDS = 300.0  # long enough for what happens now and then to count in the time left


class Stop:
    """Whether a signal to stop has arrived, and which one."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


class Stopped(Exception):  # noqa: N818 - not an error
    """Work ended early, on request, with everything saved.

    Args:
        signal_number: The signal that stopped it.
        message: What was saved, and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request; the second one ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers; a host program decides there
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = number
        console.print("Stopping after this step; once more stops at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Task:
    """Progress of one piece of work; :meth:`advance` redraws or prints."""

    def __init__(self, title: str, total: int, done: int, bar: Progress | None) -> None:
        self._title, self._total, self._done, self._bar = title, total, done, bar
        self._start, self._first = time.monotonic(), done
        self._last, self._noted = self._start, False
        self._id = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count work done; ``note`` is a short figure to show beside it."""
        self._done += count
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=self._done, note=note)
        elif time.monotonic() - self._last >= PLAIN_SECONDS or self._done >= self._total:
            self._last = time.monotonic()
            console.print(self._line(note))

    def note(self, text: str) -> None:
        """Show the work that begins now; without a terminal, the first at once."""
        if self._bar is None and not self._noted:
            self._last = -math.inf
        self._noted = True
        self.advance(0, text)

    def aside(self, title: str, total: int) -> Task:
        """Work between two counts: shown as a note beside this task, and not counted."""
        return _Aside(self, title, total)

    def _line(self, note: str) -> str:
        elapsed = time.monotonic() - self._start
        rate = (self._done - self._first) / elapsed if elapsed else 0.0
        left = f"{_clock((self._total - self._done) / rate)} left" if rate else ""
        ending = f"took {_clock(elapsed)}" if self._done >= self._total else left
        return ", ".join(filter(None, [f"{self._title} {self._done}/{self._total}", ending, note]))


class _Aside(Task):
    """Work within a task, which shows it."""

    def __init__(self, outer: Task, title: str, total: int) -> None:
        super().__init__(title, total, 0, None)
        self._outer = outer

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._outer.advance(0, f"{self._title} {self._done}/{self._total}{note and ', '}{note}")


@contextmanager
def planned_steps(total: int, advance: Callable[[int], None]) -> Iterator[Callable[..., None]]:
    """Count a piece of work as so many steps, however many it really takes.

    Some solvers take more steps than were requested (PNDM: one), some pipelines fewer.

    Args:
        total: The planned steps. Further steps are not counted; missing ones are added at the end.
        advance: Called with every number of counted steps.

    Yields:
        A function to call at each step, with a number of steps; 1 by default.
    """
    counted = 0

    def count(steps: int = 1) -> None:
        nonlocal counted
        more = min(steps, total - counted)
        if more > 0:
            counted += more
            advance(more)

    yield count
    count(total)


@contextmanager
def task(title: str, total: int, done: int = 0) -> Iterator[Task]:
    """Show progress: a bar on a terminal, a line now and then elsewhere.

    Args:
        title: What is being done.
        total: How much there is.
        done: How much was done before.
    """
    if not console.is_terminal:
        with named(title):
            yield Task(title, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with (
        Progress(*columns, console=console, speed_estimate_period=SPEED_SECONDS) as bar,
        named(title),
    ):
        yield Task(title, total, done, bar)


def plural(count: float, noun: str, several: str | None = None) -> str:
    """A count with its noun: ``'1 prompt'``, ``'2 prompts'``.

    Args:
        count: The count.
        noun: The noun in the singular.
        several: Its plural; None appends an s.
    """
    return f"{count:.15g} {noun if count == 1 else several or f'{noun}s'}"


def evenly_chosen(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[k * (len(items) - 1) // (most - 1)] for k in range(most)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )
