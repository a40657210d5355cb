"""Time every method in one process, interleaved, and count its passes.

In each round every method runs once, in an order that changes from round to round. A disturbance
on the machine then slows all methods of a round alike, and does not move their ratio.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from guidefold.bench.speed.methods import Form, Method, Options, RunCost, TimedModel, Weights
from guidefold.ground import CaptureError, Task, permutation, task

SEED = 0


@dataclass(frozen=True)
class Runner:
    """A method with the module that it runs.

    Attributes:
        method: The method.
        form: Whether the module is compiled.
        denoiser: The module.
    """

    method: Method
    form: Form
    denoiser: nn.Module


@dataclass(frozen=True)
class MethodTimes:
    """The costs of a method, round by round.

    Attributes:
        method: The method.
        form: Whether the denoiser was compiled.
        batch: Pictures in a call.
        rounds: Costs in the order of the rounds.
    """

    method: Method
    form: Form
    batch: int
    rounds: tuple[RunCost, ...]

    @property
    def passes_per_picture(self) -> float:
        """Samples through the denoiser per picture.

        Raises:
            CaptureError: The number differs between rounds.
        """
        rows = {cost.rows for cost in self.rounds}
        if len(rows) > 1:
            raise CaptureError(
                f"{self.method.title}: {min(rows)} passes in one round, {max(rows)} in another"
            )
        return rows.pop() / self.batch


def bench_speed(model: TimedModel, options: Options) -> list[MethodTimes]:
    """Time every method of a model.

    Args:
        model: The model; failed measurements are added to its notes.
        options: Batches, rounds, and whether to compile.

    Raises:
        CaptureError: A method's passes differ between rounds.
    """
    forms = 2 if options.compiled else 1
    total = len(options.batches) * len(model.methods) * forms * (options.rounds + 1)
    times: list[MethodTimes] = []
    with task("Measuring speed", total) as progress:
        for batch in options.batches:
            runners = _runners(model, model.denoisers, "eager")
            _warm_up(model, runners, batch, progress)
            if options.compiled:
                runners += _compiled(model, batch, progress, options.rounds)
            times += _rounds(model, runners, batch, options.rounds, progress)
    return times


def order(count: int, batch: int, number: int) -> list[int]:
    """The order of the methods in a round; the same on every machine.

    Args:
        count: Number of methods.
        batch: Pictures in a call.
        number: The round, from 0.
    """
    return permutation(count, SEED, "round", batch, number)


@contextmanager
def no_collection() -> Iterator[None]:
    """Run Python's garbage collector now, and not within the context."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _runners(model: TimedModel, denoisers: Mapping[Weights, nn.Module], form: Form) -> list[Runner]:
    return [Runner(method, form, denoisers[method.weights]) for method in model.methods]


def _warm_up(model: TimedModel, runners: Sequence[Runner], batch: int, progress: Task) -> None:
    """One untimed run each: kernels are chosen, memory is allocated, code is compiled."""
    for runner in runners:
        model.run(runner.method, runner.denoiser, batch)
        progress.advance(note=f"batch {batch}, warm-up: {runner.method.name}, {runner.form}")


def _compiled(model: TimedModel, batch: int, progress: Task, rounds: int) -> list[Runner]:
    """The methods with a compiled denoiser; where compiling fails, none, and a note."""
    torch.compiler.reset()  # torch limits the compiled shapes that it keeps; each batch is another
    denoisers = {
        weights: cast(nn.Module, torch.compile(module, dynamic=False))
        for weights, module in model.denoisers.items()
    }
    runners = _runners(model, denoisers, "compiled")
    for count, runner in enumerate(runners):
        try:
            _warm_up(model, [runner], batch, progress)
        except Exception as error:  # a compiler, or compiled code, may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            model.notes.append(f"compiled, batch {batch}: not measured: {reason}")
            progress.advance(len(runners) * (rounds + 1) - count)
            return []
    return runners


def _rounds(
    model: TimedModel, runners: Sequence[Runner], batch: int, rounds: int, progress: Task
) -> list[MethodTimes]:
    costs: list[list[RunCost]] = [[] for _ in runners]
    for number in range(rounds):
        with no_collection():
            for k in order(len(runners), batch, number):
                run = model.run(runners[k].method, runners[k].denoiser, batch)
                costs[k].append(RunCost(run.seconds, run.rows))  # pictures are not kept
                progress.advance(note=f"batch {batch}, round {number + 1} of {rounds}")
    return [
        MethodTimes(runner.method, runner.form, batch, tuple(measured))
        for runner, measured in zip(runners, costs, strict=True)
    ]
