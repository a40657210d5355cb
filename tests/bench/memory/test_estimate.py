"""What a case takes: against a process that really trains, and against the paper's claims."""

import sys
import traceback
from importlib import import_module
from io import StringIO
from itertools import pairwise
from subprocess import CompletedProcess
from typing import Any

import pytest
from bench.small import small_architecture, small_workload
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidefold.bench.choices import select
from guidefold.bench.memory.architectures import load_architecture
from guidefold.bench.memory.cases import CASES, LORA, REFERENCE, ArchitectureWorkload, Case
from guidefold.bench.memory.estimate import Peak, estimate
from guidefold.bench.memory.memory_watch import MemoryWatch
from guidefold.bench.memory.training import Training
from guidefold.ground.errors import ConfigError, FailedError

measuring = import_module("guidefold.bench.memory.measure")  # its door has a function's name


@pytest.mark.parametrize("case", [REFERENCE, LORA], ids=lambda case: case.name)
def test_a_process_that_trains_takes_what_was_estimated(case: Case) -> None:
    """A mid-sized UNet on the CPU, the system's own high-water mark."""
    workload = ArchitectureWorkload(small_architecture(64, 128, 256), batch=4, size=256)
    assert estimate(case, workload).peak_bytes == pytest.approx(
        measuring.measure(case, workload, "cpu").peak_bytes, rel=0.05
    )


@pytest.fixture(scope="module")
def peaks() -> dict[str, Peak]:
    """Stable Diffusion 1.5 in float32, batch 4, 512 x 512."""
    workload = ArchitectureWorkload(load_architecture("sd15"), batch=4, size=512)
    compared = select(
        CASES,
        [
            "full-fine-tuning-ema",
            "plain-distillation",
            "lora-distillation",
            "8-bit-optimizer",
            "8-bit-weights",
        ],
        "case",
    )
    return {case.name: estimate(case, workload) for case in compared}


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [
        ("plain-distillation", -0.18, -0.14),  # the paper: 16 % more
        ("lora-distillation", 0.48, 0.54),  # the paper: 51 % less
        ("8-bit-optimizer", 0.85, 1.0),
        ("8-bit-weights", 0.90, 1.0),
    ],
)
def test_the_papers_memory_claims_hold_and_are_surpassed(
    peaks: dict[str, Peak], case: str, low: float, high: float
) -> None:
    saving = 1 - peaks[case].peak_bytes / peaks[REFERENCE.name].peak_bytes
    assert low <= saving <= high


def test_a_teacher_of_its_own_costs_one_more_denoiser(peaks: dict[str, Peak]) -> None:
    more = peaks["plain-distillation"].peak_bytes - peaks[REFERENCE.name].peak_bytes
    assert more == pytest.approx(4 * 859_520_964, rel=1e-3)


def test_full_fine_tuning_holds_weights_moments_and_average(peaks: dict[str, Peak]) -> None:
    parts, weights = peaks[REFERENCE.name].parts, 4 * 859_520_964
    assert parts["weights"] == pytest.approx(weights, rel=1e-3)
    assert parts["optimizer"] == pytest.approx(2 * weights, rel=1e-3)
    assert parts["moving average"] == pytest.approx(weights, rel=1e-3)
    assert parts["encoders"] == pytest.approx(4 * (123_060_480 + 83_653_863), rel=1e-3)


def test_eight_bits_take_half_of_sixteen(peaks: dict[str, Peak]) -> None:
    sixteen, eight = (peaks[name].parts["weights"] for name in ("8-bit-optimizer", "8-bit-weights"))
    assert eight / sixteen == pytest.approx(0.5, abs=0.01)


def test_parts_add_up_to_the_peak(peaks: dict[str, Peak]) -> None:
    for peak in peaks.values():
        assert sum(peak.parts.values()) == peak.peak_bytes


@pytest.fixture(scope="module")
def small_peaks() -> dict[str, int]:
    """Every case's peak on a small UNet."""
    workload = small_workload()
    return {case.name: estimate(case, workload).peak_bytes for case in CASES}


def test_no_rung_of_the_ladder_takes_more_than_the_one_below(small_peaks: dict[str, int]) -> None:
    peaks = [small_peaks[case.name] for case in CASES[CASES.index(LORA) :]]
    assert all(above <= below for below, above in pairwise(peaks))
    assert peaks[-1] < peaks[0] / 2


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.optimizer == "adamw"], ids=lambda case: case.name
)
def test_what_does_not_exist_takes_as_much_as_what_does(
    small_peaks: dict[str, int], case: Case
) -> None:
    """The same step over real tensors: another path through the same count."""
    training, real = Training(case, small_workload()), MemoryWatch()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), real:
        training.start("cpu", real.mark)
        training.run()
    assert small_peaks[case.name] == pytest.approx(real.peak_bytes, rel=1e-3)


def test_a_process_that_fails_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process's work is done in this one, which has its imports."""

    def work_here(_words: Any, **given: Any) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", StringIO(given["input"]))
        with pytest.raises(RuntimeError) as failed:
            measuring.main()
        said = "".join(traceback.format_exception(failed.value))
        return CompletedProcess("python", 1, "", said)

    monkeypatch.setattr(measuring.subprocess, "run", work_here)
    with pytest.raises(FailedError, match=r"lora-distillation on nowhere: .*nowhere"):
        measuring.measure(LORA, small_workload(), "nowhere")


def test_an_unknown_case_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Use full-fine-tuning, .*4-bit-linear"):
        select(CASES, ["full"], "case")


@pytest.mark.parametrize(("batch", "rank", "option"), [(0, 4, "--batch 0"), (1, 0, "--rank 0")])
def test_a_load_of_nothing_is_refused_by_name(batch: int, rank: int, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        ArchitectureWorkload(small_architecture(32, 64), batch, 128, rank=rank)
