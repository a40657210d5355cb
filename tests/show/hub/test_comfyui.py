"""Which runs ComfyUI can draw is decided by what was found, and every no has its reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import DiffusionPipeline

from guidefold.deliver.clients import Reading
from guidefold.deliver.verify import Verdict
from guidefold.listen.findings import Findings
from guidefold.listen.step_grid import StepGrid
from guidefold.lora.dial import Compared
from guidefold.pipeline.prompts import Prompt
from guidefold.run.settings import Settings
from guidefold.show.hub.comfyui import describe_workflow, file_for_comfyui, unsuitable
from guidefold.show.hub.workflow import facts

Build = Callable[[str], DiffusionPipeline]
Found = Callable[[str], Findings]


def session(built: Build, found: Found, name: str, **values: Any) -> Any:
    """As much of a session as is asked; ``values`` change what was found, or the settings."""
    pipeline, findings = built(name), found(name)
    asked = {"source": "owner/base", **values.pop("pipeline", {})}
    settings = Settings.model_validate({"run": "runs/mine", "pipeline": asked})
    prompts = values.pop("prompts", [Prompt("a cat", "prompt")])
    findings = replace(findings, **values)
    return SimpleNamespace(
        pipeline=pipeline,
        findings=findings,
        settings=settings,
        prompts=prompts,
        held_out=prompts,
        denoisers={n: getattr(pipeline, n) for n in found(name).denoisers},
        compared=Compared(7.5, 0.5),
    )


def verdicts(*dropped: str, known: bool = True) -> list[Verdict]:
    reading = Reading("ComfyUI", known, tuple(dropped) if known else None)
    return [Verdict(Path("lora.safetensors"), "kohya", 1, (reading,), "", None, ())]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd_v", "sd3", "flux", "pixart"])
def test_a_base_that_comfyui_loads_has_no_reason_against_it(
    built: Build, found: Found, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = session(built, found, name)
    for denoiser in asked.denoisers.values():  # a UNet is known by its sizes: take released ones
        config = dict(denoiser.config) | facts()["unet"][0]
        monkeypatch.setattr(type(denoiser), "config", config)
    assert unsuitable(asked, verdicts()) == ""


def test_every_no_has_its_reason(built: Build, found: Found) -> None:
    def reason(files: list[Verdict], name: str = "sd15", **values: Any) -> str:
        return unsuitable(session(built, found, name, **values), files)

    assert "not known to load a LoRA" in reason([])
    assert "not known to load a LoRA" in reason(verdicts(known=False))
    assert "not known to load a LoRA" in reason(verdicts("a.key"))
    assert "take turns" in reason(verdicts(), denoisers=("unet", "unet_2"))
    assert "more than CFG" in reason(verdicts(), also_off={"pag_scale": 0.0})
    row = Prompt("a cat", "prompt", (("strength", 0.5),))
    assert "more than a prompt" in reason(verdicts(), prompts=[row])
    assert "which of ComfyUI's nodes" in reason(verdicts(), "wan")
    assert "sizes" in reason(verdicts())  # the tiny UNet's are no released model's


def test_the_file_for_comfyui_is_one_of_which_it_reads_every_key() -> None:
    other, whole = verdicts("a.key")[0], verdicts()[0]
    assert file_for_comfyui([other, whole]) is whole
    assert file_for_comfyui([other]) is None


def test_the_comparison_is_the_run_s(built: Build, found: Found) -> None:
    call = {"eta": 0.5, "num_inference_steps": 9}
    asked = session(built, found, "sd15", pipeline={"call": call, "negative_prompt": "blurry"})
    made = describe_workflow(asked, "lora.safetensors", (64, 32))
    assert (made.base, made.lora, made.prompt) == ("owner/base", "lora.safetensors", "a cat")
    assert (made.cfg, made.strength, made.steps) == (7.5, 0.5, 25)
    assert (made.negative_prompt, made.size) == ("blurry", (64, 32))
    assert made.remarks == ["Not carried over: the run's teacher was called with eta=0.5."]
    zero = session(built, found, "sd15", origin=0.0)
    assert describe_workflow(zero, "lora.safetensors", None).cfg == 8.5
    sized = session(built, found, "sd15", pipeline={"call": {"width": 24, "height": 40}})
    assert describe_workflow(sized, "lora.safetensors", (64, 32)).size == (24, 40)
    assert describe_workflow(session(built, found, "sd3"), "lora.safetensors", None).encoders == 3


def test_a_student_of_few_steps_steps_where_its_run_did(built: Build, found: Found) -> None:
    trailing = StepGrid(5, 20, (), "DDIMScheduler", "trailing")
    made = describe_workflow(session(built, found, "sd15", steps=trailing), "lora", None)
    assert made.grid["timestep_spacing"] == "trailing"
    own = (1000.0, 857.1429, 600.0)  # 3 u / (1 + 2 u) at 1, 2/3 and 1/3
    flow = StepGrid(3, 6, (), "FlowMatchEulerDiscreteScheduler", shift=3.0, timesteps=own)
    made = describe_workflow(session(built, found, "sd3", steps=flow), "lora", None)
    assert made.grid["timestep_spacing"] == "trailing"
    (remark,) = made.remarks
    assert "a shift of 3: where the model has another" in remark
