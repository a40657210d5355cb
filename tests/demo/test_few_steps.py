"""The settings of the demo's second run follow from the first one's."""

from guidefold.demo.few_steps import with_fewer_steps
from guidefold.run.config import load_settings
from guidefold.run.settings import Settings


def test_the_second_run_s_settings_are_valid_and_build_on_the_first() -> None:
    first = load_settings("demo")
    few = with_fewer_steps(first)
    assert Settings.model_validate(few.model_dump()) == few  # model_copy checks nothing
    assert few.student.guidance_run == first.run != few.run
    assert few.lora_roles == ("guidance", "steps")
    assert few.adapter == first.adapter and few.pipeline == first.pipeline
    assert few.record.guidance == (1.0, first.record.guidance[1])
    assert few.record.trajectories < first.record.trajectories
    assert few.distill.steps < first.distill.steps


def test_settings_as_small_as_can_be_stay_valid() -> None:
    tiny = load_settings("demo", ["record.trajectories=1", "distill.steps=1", "evaluate.prompts=1"])
    few = with_fewer_steps(tiny)
    assert Settings.model_validate(few.model_dump()) == few
