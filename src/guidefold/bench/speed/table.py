"""The speed of each method: medians, and ratios to CFG and to the bound, each with quartiles."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from rich.table import Table

from guidefold.bench.result_tables import rich_table, versions
from guidefold.bench.speed.methods import CFG, UNGUIDED, Clock, Form, Options, TimedModel
from guidefold.bench.speed.time import MethodTimes

HEADINGS = ("method", "passes", "s / picture", "of CFG's time", "of the bound's time")
CLOCK_TITLES: dict[Clock, str] = {
    "denoiser": "denoiser alone",
    "processor": "denoiser alone, processor time",
    "end to end": "from prompt to picture",
}
WIDTH = 96  # in a file rich assumes 80 columns, which would break the numbers


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of numbers."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Quartiles by linear interpolation; of one number, that number."""
        low, median, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
        return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One method under one clock.

    Attributes:
        way: The method's name; results on disk call it so.
        title: The method's title.
        batch: Pictures in a call.
        form: ``eager`` or ``compiled``.
        clock: ``denoiser`` (time inside the denoiser), ``processor`` (this process's processor time
            there, over all threads) or ``end to end``.
        passes_per_picture: Samples through the denoiser, counted.
        seconds_per_picture: Seconds over the rounds.
        ratio_to_cfg: Time over the CFG teacher's in the same round, form and batch.
        ratio_to_unguided: Time over the unguided teacher's in the same round, form and batch.
    """

    way: str
    title: str
    batch: int
    form: Form
    clock: Clock
    passes_per_picture: float
    seconds_per_picture: Spread
    ratio_to_cfg: Spread
    ratio_to_unguided: Spread


def make_rows(timed: Sequence[MethodTimes], clocks: Sequence[Clock]) -> list[Row]:
    """Make a row for each clock and method, batch by batch.

    Args:
        timed: Times of all methods, with CFG and unguided in every batch and form.
        clocks: The clocks that ran.
    """
    rows = []
    for (batch, form), group in groupby(timed, key=lambda t: (t.batch, t.form)):
        methods = {times.method: times for times in group}
        for clock in clocks:
            cfg, bound = _seconds(methods[CFG], clock), _seconds(methods[UNGUIDED], clock)
            for method, times in methods.items():
                own = _seconds(times, clock)
                rows.append(
                    Row(
                        way=method.name,
                        title=method.title,
                        batch=batch,
                        form=form,
                        clock=clock,
                        passes_per_picture=times.passes_per_picture,
                        seconds_per_picture=Spread.of([s / batch for s in own]),
                        ratio_to_cfg=_ratio(own, cfg),
                        ratio_to_unguided=_ratio(own, bound),
                    )
                )
    return rows


def to_json(rows: Sequence[Row], model: TimedModel, options: Options) -> dict[str, Any]:
    """Rows, the machine they were measured on, and notes, as plain values."""
    return {
        "rows": [asdict(row) for row in rows],
        "machine": machine(model, options),
        "notes": list(model.notes),
    }


def machine(model: TimedModel, options: Options) -> dict[str, Any]:
    """Everything that the times depend on."""
    device = torch.device(options.device)
    return {
        "measured": model.title,
        **model.facts,
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "steps": options.steps,
        "rounds": options.rounds,
        "versions": versions(),
    }


def to_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each batch, form and clock."""
    for (batch, form, clock), group in groupby(rows, key=lambda r: (r.batch, r.form, r.clock)):
        cells = [
            [
                row.title,
                f"{row.passes_per_picture:g}",
                _format(row.seconds_per_picture),
                _format(row.ratio_to_cfg),
                _format(row.ratio_to_unguided),
            ]
            for row in group
        ]
        title = f"batch {batch}, {form}, {CLOCK_TITLES[clock]}"
        yield rich_table(title, HEADINGS, cells, left=("method",), width=WIDTH)


def describe(model: TimedModel, options: Options) -> str:
    """The text above the tables: model, settings, device and adapter."""
    facts = machine(model, options)
    adapter = facts["adapter"]
    return (
        f"{facts['measured']}\n{facts['dtype']}, size {facts['size']}, {facts['steps']} steps, "
        f"{facts['rounds']} rounds; {facts['device']}, threads: {facts['threads']}; adapter: "
        f"{adapter['from']}, {adapter['parameters']:,} parameters on {adapter['layers']} layers\n"
        "Medians, quartiles in brackets; ratios are of times in the same round."
    )


def _seconds(timed: MethodTimes, clock: Clock) -> list[float]:
    return [cost.seconds[clock] for cost in timed.rounds]


def _ratio(own: Sequence[float], other: Sequence[float]) -> Spread:
    return Spread.of([mine / theirs for mine, theirs in zip(own, other, strict=True)])


def _format(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"
