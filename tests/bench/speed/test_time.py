"""Every method once a round, what it does counted, ratios within a round."""

import gc
import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidefold.bench.speed import time as speed
from guidefold.bench.speed.methods import (
    CFG,
    FUSED,
    METHODS,
    SELECTIVE,
    UNGUIDED,
    Method,
    Options,
    RunCost,
    TimedModel,
)
from guidefold.bench.speed.table import Row, Spread, make_rows, to_json
from guidefold.bench.speed.time import bench_speed, no_collection, order
from guidefold.ground.errors import CaptureError, ConfigError

COST = {"cfg": 2.0, "unguided": 1.0, "loaded": 1.25, "fused": 1.0, "selective": 1.5}
PASSES = {"cfg": 8, "unguided": 4, "loaded": 4, "fused": 4, "selective": 6}


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole test session's objects take a second to go through, a round."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class Told(TimedModel):
    """Takes as long as it is told: no clock runs.

    Args:
        noise: What each run's time is multiplied with, in turn.
        passes: Rows of a run with one picture, by method.
    """

    def __init__(self, noise: Any = (1.0,), passes: Mapping[str, Any] = PASSES) -> None:
        self.title, self.facts, self.notes = "told", {}, []
        self.denoisers = {name: nn.Linear(1, 1) for name in ("teacher", "loaded", "fused")}
        self.methods, self.clocks = METHODS, ("denoiser", "end to end")
        self.noise, self.passes = itertools.cycle(noise), passes
        self.asked: list[tuple[str, int]] = []

    def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
        self.asked.append((method.name, batch))
        inside = batch * COST[method.name] * next(self.noise)
        return RunCost(
            {"denoiser": inside, "end to end": inside + batch}, self.rows(method) * batch
        )

    def rows(self, method: Method) -> int:
        return int(self.passes[method.name])


def rows_of(model: TimedModel, **options: Any) -> list[Row]:
    return make_rows(bench_speed(model, Options(**options)), model.clocks)


def find(rows: list[Row], method: Method, batch: int, clock: str = "denoiser") -> Row:
    (row,) = [r for r in rows if (r.way, r.batch, r.clock) == (method.name, batch, clock)]
    return row


def test_every_way_runs_once_a_round_after_one_run_that_does_not_count() -> None:
    model, rounds = Told(), 3
    bench_speed(model, Options(batches=(1, 4), rounds=rounds))
    names, count = [method.name for method in METHODS], len(METHODS)
    for block, batch in enumerate((1, 4)):
        first = block * count * (rounds + 1)
        asked = model.asked[first : first + count * (rounds + 1)]
        assert {b for _, b in asked} == {batch}
        for begin in range(0, len(asked), count):
            assert sorted(name for name, _ in asked[begin : begin + count]) == sorted(names)
    assert len(model.asked) == 2 * count * (rounds + 1)


def test_the_order_is_a_permutation_that_changes_and_can_be_had_again() -> None:
    orders = [order(5, 1, number) for number in range(12)]
    assert all(sorted(one) == list(range(5)) for one in orders)
    assert len({tuple(one) for one in orders}) > 6
    assert {one[0] for one in orders} == set(range(5))  # no method is always the first
    assert orders == [order(5, 1, number) for number in range(12)]


def test_every_way_has_a_time_for_every_round() -> None:
    timed = bench_speed(Told(), Options(batches=(1, 4), rounds=3))
    assert [(t.method, t.batch) for t in timed] == [
        (method, b) for b in (1, 4) for method in METHODS
    ]
    assert {len(t.rounds) for t in timed} == {3}


def test_seconds_and_passes_are_of_a_picture_and_ratios_of_the_same_clock() -> None:
    rows = rows_of(Told(), batches=(1, 4), rounds=2)
    assert len(rows) == 2 * 2 * len(METHODS)
    for batch in (1, 4):
        inside, whole = (find(rows, FUSED, batch, clock) for clock in ("denoiser", "end to end"))
        assert inside.passes_per_picture == whole.passes_per_picture == 4
        assert find(rows, CFG, batch).passes_per_picture == 8
        assert inside.seconds_per_picture == Spread(1.0, 1.0, 1.0)
        assert whole.seconds_per_picture == Spread(2.0, 2.0, 2.0)
        assert inside.ratio_to_cfg.median == 1 / 2
        assert whole.ratio_to_cfg.median == 2 / 3
        assert inside.ratio_to_unguided.median == 1
        assert find(rows, SELECTIVE, batch).ratio_to_unguided.median == 1.5


def test_noise_that_lasts_for_a_round_moves_no_ratio() -> None:
    """Each round is slower than the one before; all methods of a round alike."""
    count, factors = len(METHODS), (1.0, 1.0, 3.0, 10.0, 2.0)  # a warm-up, then four rounds
    noise = [factor for factor in factors for _ in range(count)]
    row = find(rows_of(Told(noise), batches=(1,), rounds=4), FUSED, 1)
    assert row.ratio_to_cfg == Spread(0.5, 0.5, 0.5)
    assert row.ratio_to_unguided == Spread(1.0, 1.0, 1.0)
    assert row.seconds_per_picture == Spread.of(factors[1:])


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0)),
        ([4.0, 1.0, 2.0, 3.0, 5.0], Spread(3.0, 2.0, 4.0)),
        ([1.0, 2.0], Spread(1.5, 1.25, 1.75)),
    ],
)
def test_the_spread_is_the_median_between_two_quartiles(values: Any, spread: Spread) -> None:
    assert Spread.of(values) == spread


def test_a_ratio_is_the_median_of_ratios_and_not_of_medians() -> None:
    model = Told()
    timed = bench_speed(model, Options(batches=(1,), rounds=3))
    by_way = {t.method: t for t in timed}

    def told(method: Method, seconds: tuple[float, ...]) -> speed.MethodTimes:
        rounds = tuple(RunCost({"denoiser": s}, 4) for s in seconds)
        return speed.MethodTimes(method, "eager", 1, rounds)

    few = [told(CFG, (2.0, 10.0, 4.0)), told(UNGUIDED, (1.0, 1.0, 1.0))]
    row = find(make_rows([*few, told(FUSED, (1.0, 1.0, 4.0))], ["denoiser"]), FUSED, 1)
    assert row.ratio_to_cfg.median == 0.5  # of 0.5, 0.1 and 1; of the medians 1/4
    assert by_way.keys() == set(METHODS)


def test_passes_that_change_from_round_to_round_are_a_fault() -> None:
    class Moody(Told):
        def rows(self, method: Method) -> int:
            return len(self.asked)

    with pytest.raises(CaptureError, match="passes in one round"):
        rows_of(Moody(), rounds=2)


def test_a_compiler_that_fails_is_told_in_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that form is reported, and the eager methods are all there."""

    class Uncompiled(Told):
        def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
            if not isinstance(denoiser, nn.Linear):
                raise RuntimeError("no C++ compiler\nat length")
            return super().run(method, denoiser, batch)

    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: SimpleNamespace(inner=module))
    model = Uncompiled()
    rows = rows_of(model, batches=(1,), rounds=2, compiled=True)
    assert {row.form for row in rows} == {"eager"}
    assert model.notes == ["compiled, batch 1: not measured: no C++ compiler"]


def test_what_compiles_is_measured_against_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Faster(Told):
        def run(self, method: Method, denoiser: nn.Module, batch: int) -> RunCost:
            spent = super().run(method, denoiser, batch)
            faster = 1.0 if isinstance(denoiser, nn.Linear) else 0.5
            return RunCost({name: faster * s for name, s in spent.seconds.items()}, spent.rows)

    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: nn.Sequential(module))
    rows = rows_of(Faster(), batches=(1,), rounds=2, compiled=True)
    (row,) = [r for r in rows if (r.way, r.form, r.clock) == ("fused", "compiled", "denoiser")]
    assert row.seconds_per_picture.median == 0.5
    assert row.ratio_to_cfg.median == 0.5


def test_the_collector_rests_while_time_is_taken_and_wakes_after_a_failure() -> None:
    with pytest.raises(ValueError, match="stop"), no_collection():
        assert not gc.isenabled()
        raise ValueError("stop")
    assert gc.isenabled()


def test_json_holds_rows_machine_and_notes() -> None:
    model, options = Told(), Options(batches=(1,), rounds=2, device="cpu")
    model.notes.append("one was left out")
    values = to_json(make_rows(bench_speed(model, options), model.clocks), model, options)
    assert values.keys() == {"rows", "machine", "notes"}
    assert values["notes"] == ["one was left out"]
    assert values["rows"][0]["ratio_to_cfg"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert values["machine"]["threads"] == torch.get_num_threads()
    assert {"torch", "diffusers", "guidefold"} <= values["machine"]["versions"].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (0,)}, "--batch 0"),
        ({"batches": (1, 1)}, "--batch: the same number twice"),
        ({"steps": 0}, "--steps 0"),
        ({"rounds": 0}, "--rounds 0"),
        ({"rank": 0}, "--rank 0"),
        ({"size": 0}, "--size 0"),
        ({"dtype": "fp8"}, "--dtype fp8: no such choice\nUse fp32, fp16, bf16"),
        ({"targets": "most"}, "--targets most"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options(**changes)
