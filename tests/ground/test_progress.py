"""Lines for those who read a log, and a stop that waits for the work in hand."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from guidefold.ground import progress
from guidefold.ground.progress import Stop, planned_steps, plural, stop_on_signals, task

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number
        os.kill(os.getpid(), number)


def test_a_request_is_told_to_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert "Stopping after this step" in capsys.readouterr().out


def test_handlers_come_back_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        raise ZeroDivisionError


def test_another_thread_leaves_handlers_to_its_host() -> None:
    found: list[Stop] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [bool(stop) for stop in found] == [False]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_log_gets_a_line_now_and_then_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with task("Training", 10) as work:
        for _ in range(10):
            clock.now += 6
            work.advance(note="loss 0.5")
    assert lines(capsys) == [
        "Training 3/10, 0:42 left, loss 0.5",
        "Training 6/10, 0:24 left, loss 0.5",
        "Training 9/10, 0:06 left, loss 0.5",
        "Training 10/10, took 1:00, loss 0.5",
    ]


@pytest.mark.parametrize("steps", [7, 8, 5])  # as requested, PNDM's one more, fewer
def test_work_counts_as_planned_however_many_steps_it_takes(steps: int) -> None:
    counts: list[int] = []
    with planned_steps(14, counts.append) as told:
        for _ in range(steps):
            told(2)
        assert sum(counts) == min(2 * steps, 14)
    assert sum(counts) == 14


def test_the_steps_of_work_that_failed_are_not_added() -> None:
    counts: list[int] = []
    with pytest.raises(KeyboardInterrupt), planned_steps(14, counts.append) as told:
        told()
        raise KeyboardInterrupt
    assert counts == [1]


def test_work_done_before_does_not_count_as_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with task("Recording", 1000, 900) as work:
        clock.now += 20
        work.advance(1)
    assert lines(capsys) == ["Recording 901/1000, 33:00 left"]


def test_work_aside_is_shown_and_not_counted(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with task("Training", 10) as work:
        clock.now += 10
        work.advance(5)
        aside = work.aside("previews", 40)
        clock.now += 10
        aside.advance(20)
        aside.advance(20)
        clock.now += 10
        work.advance(5, "loss 0.5")
    assert lines(capsys) == [
        "Training 5/10, 0:20 left, previews 20/40",
        "Training 10/10, took 0:30, loss 0.5",
    ]


def test_long_times_have_hours(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("Recording", 2) as work:
        clock.now += 3725
        work.advance(2)
    assert lines(capsys) == ["Recording 2/2, took 1:02:05"]


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.console, "_force_terminal", True)
    with task("Training", 2) as work:
        work.advance(note="loss 0.5")
        work.advance(note="loss 0.4")
    out = capsys.readouterr().out
    assert "2/2" in out
    assert "loss 0.4" in out


def test_on_a_terminal_work_aside_is_a_note_beside_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.console, "_force_terminal", True)
    with task("Training", 2) as work:
        work.advance(note="loss 0.5")
        work.aside("previews", 40).advance(20)
    (last,) = [line for line in capsys.readouterr().out.splitlines() if "previews 20/40" in line]
    assert "1/2" in last


def test_one_of_a_thing_is_no_plural() -> None:
    assert [plural(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the path of a run, or in a prompt; rich reads styles and emoji there."""
    progress.console.print("The adapter: runs/[red]a[/red]/:cat:")
    assert capsys.readouterr().out == "The adapter: runs/[red]a[/red]/:cat:\n"
