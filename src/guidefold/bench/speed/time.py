"""Time every way to draw, side by side: in one process, interleaved, and what it does counted.

One machine's noise then meets all ways alike, and a ratio within a round outlives it. In each round
every way runs once, in an order that changes from round to round.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from guidefold.bench.speed.methods import Form, Options, Spent, Subject, Way, Weights
from guidefold.ground import CaptureError, Task, permutation, task

SEED = 0


@dataclass(frozen=True)
class Runner:
    """A way with the module that it uses.

    Attributes:
        way: How to draw.
        form: Whether the module is compiled.
        denoiser: The module.
    """

    way: Way
    form: Form
    denoiser: nn.Module


@dataclass(frozen=True)
class Timed:
    """What a way took, round by round.

    Attributes:
        way: How it was drawn.
        form: Whether the denoiser was compiled.
        batch: Pictures in a call.
        rounds: In the order of the rounds, the same for every way.
    """

    way: Way
    form: Form
    batch: int
    rounds: tuple[Spent, ...]

    @property
    def passes_per_picture(self) -> float:
        """Samples through the denoiser, counted.

        Raises:
            CaptureError: They differ from round to round.
        """
        counted = {spent.rows for spent in self.rounds}
        if len(counted) > 1:
            raise CaptureError(
                f"{self.way.title}: {min(counted)} passes in one round, {max(counted)} in another"
            )
        return counted.pop() / self.batch


def bench_speed(subject: Subject, options: Options) -> list[Timed]:
    """Time every way of a subject.

    Args:
        subject: What is measured; its notes say afterwards what could not be.
        options: Batches, rounds, and whether to compile.

    Raises:
        CaptureError: A way made other passes in one round than in another.
    """
    forms = 2 if options.compiled else 1
    total = len(options.batches) * len(subject.ways) * forms * (options.rounds + 1)
    found: list[Timed] = []
    with task("Measuring speed", total) as progress:
        for batch in options.batches:
            runners = _runners(subject, subject.denoisers, "eager")
            _warm_up(subject, runners, batch, progress)
            if options.compiled:
                runners += _compiled(subject, batch, progress, options.rounds)
            found += _rounds(subject, runners, batch, options.rounds, progress)
    return found


def order(count: int, batch: int, number: int) -> list[int]:
    """The order of a round; the same on every machine.

    Args:
        count: How many run.
        batch: Pictures in a call.
        number: Of the round, from 0.
    """
    return permutation(count, SEED, "round", batch, number)


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector runs before a round, not within."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _runners(subject: Subject, denoisers: Mapping[Weights, nn.Module], form: Form) -> list[Runner]:
    return [Runner(way, form, denoisers[way.weights]) for way in subject.ways]


def _warm_up(subject: Subject, runners: Sequence[Runner], batch: int, progress: Task) -> None:
    """One run each that does not count: kernels are chosen, memory is taken, code is compiled."""
    for runner in runners:
        subject.run(runner.way, runner.denoiser, batch)
        progress.advance(note=f"batch {batch}, warm-up: {runner.way.name}, {runner.form}")


def _compiled(subject: Subject, batch: int, progress: Task, rounds: int) -> list[Runner]:
    """The ways with a compiled denoiser; none where compiling fails, which a note says."""
    torch.compiler.reset()  # every batch is other code, and torch keeps a few forms of it only
    denoisers = {
        weights: cast(nn.Module, torch.compile(module, dynamic=False))
        for weights, module in subject.denoisers.items()
    }
    runners = _runners(subject, denoisers, "compiled")
    for count, runner in enumerate(runners):
        try:
            _warm_up(subject, [runner], batch, progress)
        except Exception as error:  # whatever a compiler, or what it compiled, may raise
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            subject.notes.append(f"compiled, batch {batch}: not measured: {why}")
            progress.advance(len(runners) * (rounds + 1) - count)
            return []
    return runners


def _rounds(
    subject: Subject, runners: Sequence[Runner], batch: int, rounds: int, progress: Task
) -> list[Timed]:
    spent: list[list[Spent]] = [[] for _ in runners]
    for number in range(rounds):
        with no_collection():
            for k in order(len(runners), batch, number):
                run = subject.run(runners[k].way, runners[k].denoiser, batch)
                spent[k].append(Spent(run.seconds, run.rows))  # pictures are not kept
                progress.advance(note=f"batch {batch}, round {number + 1} of {rounds}")
    return [
        Timed(runner.way, runner.form, batch, tuple(of_runner))
        for runner, of_runner in zip(runners, spent, strict=True)
    ]
