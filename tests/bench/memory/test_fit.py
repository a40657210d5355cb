"""The fastest settings that fit: bounds that no plan exceeds, and what is tried in which order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from original_layout import write_original_layout
from zoo import WARNINGS

from guidefold.bench.memory import plan as planning
from guidefold.bench.memory.fit import STORED, Choices, Fit
from guidefold.bench.memory.plan import GIB, SPARE, make_plan
from guidefold.bench.memory.plan_text import cards_to_table, describe_fit, fit_to_json
from guidefold.run.config import make_settings
from guidefold.run.settings import Settings

pytestmark = pytest.mark.filterwarnings(*WARNINGS)
Make = Callable[..., Settings]
TRAINING = {"batch_size": 4, "accumulation": 1}


def with_overrides(settings: Settings, overrides: list[str]) -> Settings:
    return make_settings(settings.model_dump(mode="json", exclude_none=True), overrides)


@pytest.fixture(scope="module")
def choices(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Choices:
    from tiny import make_settings as tiny_settings

    wide = {"adapter": {"targets": "attention"}, "distill": TRAINING}
    return Choices(tiny_settings("sd15", saved("sd15"), tmp_path_factory.mktemp("fit"), wide))


def all_fits(choices: Choices) -> list[Fit]:
    """What is chosen for memories from ample to none, without repetition."""
    found = dict[Fit, None]()
    memory = 10 * GIB
    while (fit := choices.fastest(memory)) is not None:
        found[fit] = None
        needed = max(fit.encoding_bytes, fit.recording_bytes, fit.peak_bytes)
        memory = int(needed / (1 - SPARE)) - 1
    return list(found)


def test_no_plan_exceeds_what_its_settings_were_chosen_by(choices: Choices) -> None:
    fits = all_fits(choices)
    assert len(fits) > 3
    for fit in fits[1::3]:
        chosen = with_overrides(choices.settings, fit.overrides(choices.settings))
        exact = make_plan(chosen, GIB)
        assert exact.peak_bytes <= fit.peak_bytes * 1.001
        assert exact.encoding_bytes <= fit.encoding_bytes * 1.001
        assert exact.recording_bytes <= fit.recording_bytes * 1.001


def test_one_sample_is_estimated_as_a_plan_estimates_it(choices: Choices) -> None:
    alone = with_overrides(choices.settings, ["distill.accumulation=4"])
    for checkpointing, bound in ((False, 1.001), (True, 1.001)):
        settings = with_overrides(
            alone, [f"distill.gradient_checkpointing={str(checkpointing).lower()}"]
        )
        bounds = [
            peak
            for on, n, peak in choices._trained("none", "same")
            if (on, n) == (checkpointing, 4)
        ]
        assert bounds[0] <= make_plan(settings, GIB).peak_bytes * bound


def test_faster_settings_come_first_and_the_teacher_is_changed_last(choices: Choices) -> None:
    fits = all_fits(choices)
    stored = [STORED.index((fit.quantization, fit.frozen_weights)) for fit in fits]
    assert stored == sorted(stored)
    assert fits[0].overrides(choices.settings) == []  # nothing need change
    first = [fit for fit in fits if (fit.quantization, fit.frozen_weights) == ("none", "same")]
    assert [fit.checkpointing for fit in first] == sorted(fit.checkpointing for fit in first)


def test_nothing_fits_into_nothing(choices: Choices) -> None:
    assert choices.fastest(1000) is None
    assert "No settings" in describe_fit(None, choices.settings)
    assert fit_to_json(None, choices.settings) is None
    assert "does not fit" in cards_to_table({8: None}, choices.settings)


def test_a_machine_without_accelerator_offloads_nothing(choices: Choices) -> None:
    assert {fit.offload for fit in all_fits(choices)} > {"none"}
    here = Choices(choices.settings, offloads=False)
    assert list(here._recorded("none")) == list(choices._recorded("none"))[:1]


def test_frozen_weights_stay_where_the_teacher_is_recorded_again(
    settings_for: Make, tmp_path: Path
) -> None:
    rounds = {"rounds": ["teacher", "student"]}
    again = Choices(settings_for("sd15", tmp_path, record=rounds))
    assert {frozen for _, frozen in again._stored()} == {"same"}


def test_a_single_file_is_not_quantised(
    settings_for: Make, built: Callable[[str], Any], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    file = write_original_layout(built("sd15"), tmp_path / "base.safetensors")
    single = {"source": str(file), "config": settings.pipeline.source}
    pipeline = settings.pipeline.model_copy(update=single)
    alone = Choices(settings.model_copy(update={"pipeline": pipeline}))
    assert {quantization for quantization, _ in alone._stored()} == {"none"}


def test_what_is_free_is_less_than_what_there_is() -> None:
    free, total = planning.free_memory("cpu"), planning.memory_of("cpu")
    assert free is not None
    assert total is not None
    assert 0 < free < total
