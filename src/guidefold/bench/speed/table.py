"""What speed a way has: medians, and ratios to CFG and to the bound, each with its spread."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from rich.table import Table

from guidefold import __version__
from guidefold.bench.speed.methods import CFG, UNGUIDED, Clock, Form, Options, Subject
from guidefold.bench.speed.time import Timed

LIBRARIES = ("torch", "diffusers", "transformers", "peft")
HEADINGS = ("way", "passes", "s / picture", "of CFG's time", "of the bound's time")
IN_WORDS: dict[Clock, str] = {
    "denoiser": "denoiser alone",
    "processor": "denoiser alone, processor time",
    "end to end": "from prompt to picture",
}
WIDTH = 96  # said, since rich takes a file for 80 columns wide and would break the numbers


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers, and the two quartiles around it."""

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
    """One way under one clock.

    Attributes:
        way: Its name.
        title: In words.
        batch: Pictures in a call.
        form: ``eager`` or ``compiled``.
        clock: ``denoiser`` (time inside it), ``processor`` (of that, this process's own processor
            time, over all threads) or ``end to end``.
        passes_per_picture: Samples through the denoiser, counted.
        seconds_per_picture: Over the rounds.
        ratio_to_cfg: Time over the CFG teacher's in the same round, form and batch.
        ratio_to_unguided: Time over the unguided teacher's, likewise.
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


def make_rows(timed: Sequence[Timed], clocks: Sequence[Clock]) -> list[Row]:
    """A row for each clock and way, batch by batch.

    Args:
        timed: Of all ways, CFG and unguided among them in every batch and form.
        clocks: What was timed.
    """
    rows = []
    for (batch, form), group in groupby(timed, key=lambda t: (t.batch, t.form)):
        ways = {one.way: one for one in group}
        for clock in clocks:
            cfg, bound = _seconds(ways[CFG], clock), _seconds(ways[UNGUIDED], clock)
            for way, one in ways.items():
                own = _seconds(one, clock)
                rows.append(
                    Row(
                        way=way.name,
                        title=way.title,
                        batch=batch,
                        form=form,
                        clock=clock,
                        passes_per_picture=one.passes_per_picture,
                        seconds_per_picture=Spread.of([s / batch for s in own]),
                        ratio_to_cfg=_ratio(own, cfg),
                        ratio_to_unguided=_ratio(own, bound),
                    )
                )
    return rows


def to_json(rows: Sequence[Row], subject: Subject, options: Options) -> dict[str, Any]:
    """Rows, the machine they were measured on, and notes, as plain values."""
    return {
        "rows": [asdict(row) for row in rows],
        "machine": machine(subject, options),
        "notes": list(subject.notes),
    }


def machine(subject: Subject, options: Options) -> dict[str, Any]:
    """All that the times depend on."""
    device = torch.device(options.device)
    return {
        "measured": subject.title,
        **subject.facts,
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "steps": options.steps,
        "rounds": options.rounds,
        "versions": {"guidefold": __version__, **{name: version(name) for name in LIBRARIES}},
    }


def to_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each batch, form and clock."""
    for (batch, form, clock), group in groupby(rows, key=lambda r: (r.batch, r.form, r.clock)):
        table = Table(
            title=f"batch {batch}, {form}, {IN_WORDS[clock]}",
            title_justify="left",
            box=None,
            pad_edge=False,
            width=WIDTH,
        )
        for heading in HEADINGS:
            side = "left" if heading == "way" else "right"
            table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in group:
            table.add_row(
                row.title,
                f"{row.passes_per_picture:g}",
                _spelt(row.seconds_per_picture),
                _spelt(row.ratio_to_cfg),
                _spelt(row.ratio_to_unguided),
            )
        yield table


def describe(subject: Subject, options: Options) -> str:
    """Above the tables: what was measured, where, and how often."""
    facts = machine(subject, options)
    adapter = facts["adapter"]
    size = facts["size"]
    return (
        f"{facts['measured']}\n{facts['dtype']}, size {size}, {facts['steps']} steps, "
        f"{facts['rounds']} rounds; {facts['device']}, threads: {facts['threads']}; adapter: "
        f"{adapter['from']}, {adapter['parameters']:,} parameters on {adapter['layers']} layers\n"
        "Medians, quartiles in brackets; ratios are of times in the same round."
    )


def _seconds(timed: Timed, clock: Clock) -> list[float]:
    return [spent.seconds[clock] for spent in timed.rounds]


def _ratio(own: Sequence[float], other: Sequence[float]) -> Spread:
    return Spread.of([mine / theirs for mine, theirs in zip(own, other, strict=True)])


def _spelt(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"
