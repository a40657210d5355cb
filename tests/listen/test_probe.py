"""The probe: how a pipeline guides, and whether that can be folded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LTXLatentUpsamplePipeline
from toys import Plain
from zoo import UNFOLDABLE, WARNINGS, WIDE, ZOO
from zoo.media import write_inputs
from zoo.wan_family import ENTRIES as WAN

from guidefold.ground.errors import CaptureError, ConfigError, PipelineError, UnfoldableError
from guidefold.listen.findings import Findings, describe_findings
from guidefold.listen.output_map import OutputMap
from guidefold.listen.probe import lora_loader, probe
from guidefold.pipeline.already_distilled import signs_of_distillation
from guidefold.pipeline.open import bundled_teacher, open_pipeline
from guidefold.pipeline.prompts import read_prompts

FOLDED = [name for name in ZOO if name != "sd15_pag"]
MAPS = {
    "whole": OutputMap("whole"),
    "whole, negated": OutputMap("whole", negated=True),
    "first along dimension 1": OutputMap("first", 1),
}
PREDICTIONS = {"flow": "flow_prediction"}
every_pipeline = pytest.mark.parametrize("name", FOLDED)


def ask(pipeline: Any, name: str, **changes: Any) -> Findings:
    call = {**(ZOO | UNFOLDABLE)[name].call, **changes}
    return probe(pipeline, call, 5.0, call.pop("negative_prompt", None))


@every_pipeline
def test_the_probe_finds_what_the_zoo_says(built: Any, found: Any, name: str) -> None:
    findings, entry, pipeline = found(name), ZOO[name], built(name)
    assert findings.pipeline == type(pipeline).__name__
    assert findings.scheduler == type(pipeline.scheduler).__name__
    assert findings.denoisers == entry.denoisers
    assert findings.denoiser_class == type(getattr(pipeline, findings.denoisers[0])).__name__
    assert findings.guidance_argument == entry.guidance_argument
    assert findings.off == 1.0
    assert (findings.passes_on, findings.passes_off) == (2, 1)
    assert findings.output_map == MAPS[entry.output_map]
    assert findings.prediction_type == PREDICTIONS.get(entry.prediction, entry.prediction)
    assert findings.loader == ("peft" if name == "pixart" else "diffusers")
    assert findings.layout is not None


def test_prompts_of_different_lengths_keep_company_unless_a_pipeline_pads_to_the_longest(
    found: Any,
) -> None:
    assert {name: found(name).mixed_lengths for name in ("sd15", "sd3", "qwen_image")} == {
        "sd15": True,
        "sd3": True,
        "qwen_image": False,
    }


def test_probing_twice_finds_the_same_and_leaves_the_pipeline_as_it_was(built: Any) -> None:
    pipeline = built("sd3")
    before = dict(vars(pipeline.transformer))
    assert ask(pipeline, "sd3") == ask(pipeline, "sd3")
    assert vars(pipeline.transformer).keys() == before.keys()
    assert "step" not in vars(pipeline.scheduler)


# What is refused


@pytest.mark.parametrize("name", ["lcm", "flux_guidance_embedded"])
def test_a_pipeline_without_a_second_pass_is_refused_with_the_reason(built: Any, name: str) -> None:
    with pytest.raises(UnfoldableError, match="there is no second pass to fold away") as caught:
        ask(built(name), name)
    assert "already distilled" in caught.value.remedy


def test_what_else_adds_passes_is_found_and_switched_off_for_the_student_alone(built: Any) -> None:
    findings = ask(built("sd15_pag"), "sd15_pag")
    assert (findings.passes_on, findings.passes_off) == (3, 1)
    assert findings.also_off == {"pag_scale": 0.0}
    assert findings.scale_arguments(5.0) == {"guidance_scale": 5.0}
    assert findings.scale_arguments(1.0) == {"guidance_scale": 1.0, "pag_scale": 0.0}
    assert ask(built("sd15_pag"), "sd15_pag", pag_scale=0.0).also_off == {}


def test_passes_that_nothing_switches_off_are_refused() -> None:
    with pytest.raises(UnfoldableError, match="each step still makes 2 passes in 2 calls"):
        probe(Thrice(torch.nn.Linear(4, 4), DDIMScheduler()), {}, 5.0)


def test_what_the_pipeline_refuses_is_the_user_s_to_mend(built: Any) -> None:
    with pytest.raises(ConfigError, match="StableDiffusionPipeline refuses the call") as caught:
        ask(built("sd15"), "sd15", height=13)
    assert "[pipeline.call]" in caught.value.remedy


def test_an_unknown_call_argument_is_refused_before_anything_runs(built: Any) -> None:
    with pytest.raises(ConfigError, match="takes no argument frames"):
        ask(built("sd15"), "sd15", frames=3)


class Scaling(Plain):
    """Multiplies its denoiser's output by a number of its own."""

    def bend(self, output):
        return output

    def reading(self, prompt):
        return len(set(prompt)) / 100

    @torch.no_grad()
    def __call__(
        self, prompt, guidance_scale=5.0, num_inference_steps=2, generator=None, output_type="pil"
    ):
        state = torch.randn((1, 4), generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            output = self.unet(state + self.reading(prompt))
            if guidance_scale > 1:
                output = guidance_scale * output - self.unet(-state)
            state = self.scheduler.step(self.bend(output), timestep, state).prev_sample
        return state


class Doubling(Scaling):
    def bend(self, output):
        return 2 * output


class Bending(Scaling):
    def bend(self, output):
        return output.abs()


class Thrice(Scaling):
    """Asks its denoiser once more at every step, whatever its guidance is."""

    def reading(self, prompt):
        self.unet(torch.zeros(1, 4))
        return super().reading(prompt)


def test_an_output_map_that_guidefold_does_not_know_is_refused_by_name() -> None:
    parts = torch.nn.Linear(4, 4), DDIMScheduler()
    assert probe(Scaling(*parts), {}, 5.0).output_map == OutputMap("whole")
    assert probe(Doubling(*parts), {}, 5.0).output_map == OutputMap("whole", scaled=True)
    with pytest.raises(UnfoldableError, match="in a way Guidefold does not know"):
        probe(Bending(*parts), {}, 5.0)


class Deaf(Scaling):
    """Reads no prompt."""

    def reading(self, prompt):
        return 0.0


def test_a_pipeline_that_does_not_tell_prompts_apart_is_refused_with_the_likely_cause() -> None:
    with pytest.raises(UnfoldableError, match="Deaf does not tell prompts apart") as caught:
        probe(Deaf(torch.nn.Linear(4, 4), DDIMScheduler()), {}, 5.0)
    assert "reach its unet as the same arguments" in caught.value.message
    assert "tokenizer or of a text encoder is likely missing" in caught.value.remedy


@pytest.mark.parametrize("lost", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_vocabulary_that_is_there_twice_may_lose_one_of_its_files(
    tmp_path: Path, lost: str
) -> None:
    folder = shutil.copytree(bundled_teacher(), tmp_path / "teacher")
    (folder / "tokenizer" / lost).unlink()
    assert probe(open_pipeline(str(folder)), {}, 5.0).passes_off == 1


class Remembering(torch.nn.Linear):
    """Says something else each time."""

    calls = 0

    def forward(self, state):
        self.calls += 1
        return self.calls * super().forward(state)


def test_a_denoiser_that_depends_on_more_than_its_arguments_is_refused() -> None:
    with pytest.raises(CaptureError, match="called with the recorded arguments, is"):
        probe(Scaling(Remembering(4, 4), DDIMScheduler()), {}, 5.0)


# The switch


def test_the_value_that_switches_guidance_off_is_the_one_with_a_single_pass(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that guides above 0: ``cond + s * (cond - uncond)``."""
    pipeline = built("sd3")
    above_zero = property(lambda self: self._guidance_scale > 0)
    monkeypatch.setattr(type(pipeline), "do_classifier_free_guidance", above_zero)
    findings = ask(pipeline, "sd3")
    assert findings.off == 0.0
    assert findings.origin == 1.0  # it still writes uncond + g * (cond - uncond)


def test_a_pipeline_without_a_lora_loader_is_left_to_peft(built: Any) -> None:
    assert lora_loader(built("sd15"), ["unet"]) == "diffusers"
    assert lora_loader(built("sd15"), ["vae"]) == "peft"
    assert lora_loader(built("pixart"), ["transformer"]) == "peft"


def test_a_pipeline_without_a_scheduler_is_refused_with_the_reason() -> None:
    """Such as LTX's latent upsampler."""
    upsampler = LTXLatentUpsamplePipeline(vae=None, latent_upsampler=None)
    assert signs_of_distillation(upsampler) == []
    with pytest.raises(UnfoldableError, match="LTXLatentUpsamplePipeline has no scheduler"):
        probe(upsampler, {}, 5.0)


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("name", ["kandinsky22_combined_img2img", "kandinsky22_controlnet_img2img"])
def test_a_start_from_a_picture_leaves_the_probe_a_step_at_its_default_strength(
    name: str, tmp_path: Path
) -> None:
    entry = WIDE[name]
    call = {k: v for k, v in entry.call.items() if k not in ("strength", "output_type")}
    text = [{"prompt": f"a {k} cat"} if entry.takes_prompt else {"_row": k} for k in ("big", "red")]
    rows = read_prompts(
        write_inputs(tmp_path / "in.jsonl", [row | dict(entry.inputs) for row in text])
    )
    assert probe(entry.build(), call, 5.0, rows=rows).passes_off == 1


@pytest.mark.filterwarnings(*WARNINGS)
def test_a_pipeline_whose_default_sizes_do_not_fit_is_refused_with_the_settings_to_give(
    built: Any,
) -> None:
    with pytest.raises(PipelineError, match="WanPipeline fails in its own call") as refused:
        probe(built("wan22"), {}, 5.0)
    assert "set pipeline.call.height=NUMBER, pipeline.call.width=NUMBER" in refused.value.remedy


@pytest.mark.filterwarnings(*WARNINGS)
def test_a_second_scale_that_the_call_sets_makes_the_dial_approximate(built: Any) -> None:
    """Wan 2.2: the second denoiser is then guided by it, whatever guidance_scale is."""
    pipeline, call = built("wan22"), dict(WAN["wan22"].call)
    negative = call.pop("negative_prompt", None)
    plain = probe(pipeline, call, 5.0, negative)
    assert (plain.linear, plain.fixed) == (True, ())
    findings = probe(pipeline, {**call, "guidance_scale_2": 3.0}, 5.0, negative)
    assert findings.fixed == ("transformer_2",)
    assert (findings.linear, findings.origin) == (False, 1.0)
    dial = next(line for line in describe_findings(findings) if line.startswith("dial"))
    assert "the guidance of transformer_2 does not follow guidance_scale" in dial
    assert Findings.from_json(json.loads(json.dumps(findings.to_json()))) == findings
    older = {name: value for name, value in findings.to_json().items() if name != "fixed"}
    assert Findings.from_json(older).fixed == ()


def test_a_probe_says_at_once_what_it_does_and_counts_its_stages(
    built: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(built("sd15"), "sd15")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "Probing the pipeline 0/5, a few steps with guidance_scale=5"
    assert last.startswith("Probing the pipeline 5/5, took ")
