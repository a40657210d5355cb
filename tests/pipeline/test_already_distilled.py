"""A base that was distilled before is recognised, and one that Guidefold made is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from typer.testing import CliRunner

from guidefold.cli.main import app
from guidefold.deliver.export import deliver
from guidefold.ground.errors import UnfoldableError
from guidefold.pipeline.already_distilled import refuse_folded, signs_of_distillation
from guidefold.pipeline.open import open_pipeline
from guidefold.run.settings import Settings
from guidefold.train.distill import distill


@pytest.fixture(scope="module")
def trained(settings_for: Any, tmp_path_factory: Any) -> Settings:
    settings: Settings = settings_for("sd15", tmp_path_factory.mktemp("run"))
    distill(settings)
    return settings


def test_nothing_speaks_against_a_plain_base(trained: Settings) -> None:
    pipeline = open_pipeline(trained.pipeline.source)
    assert signs_of_distillation(pipeline) == []
    refuse_folded(pipeline, trained.pipeline.source)
    refuse_folded(pipeline, "owner/name")


def test_a_denoiser_that_is_told_the_guidance_scale_gives_itself_away(trained: Settings) -> None:
    pipeline = open_pipeline(trained.pipeline.source)
    pipeline.unet.register_to_config(time_cond_proj_dim=256)
    (sign,) = signs_of_distillation(pipeline)
    assert sign.startswith("unet: its config has time_cond_proj_dim=256")


def test_a_scheduler_for_consistency_models_gives_its_base_away(trained: Settings) -> None:
    pipeline = open_pipeline(trained.pipeline.source)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    (sign,) = signs_of_distillation(pipeline)
    assert "LCMScheduler is made for few-step distilled weights" in sign
    pipeline.scheduler = DDIMScheduler.from_config(DDIMScheduler().config)
    assert signs_of_distillation(pipeline) == []


def test_weights_that_guidance_was_fused_into_are_not_folded_again(
    trained: Settings, tmp_path: Path
) -> None:
    (fused,) = deliver(trained, "fused", tmp_path / "fused").verdicts
    base = tmp_path / "base"
    pipeline = open_pipeline(trained.pipeline.source)
    pipeline.save_pretrained(base)
    name = next((base / "unet").glob("*.safetensors"))
    name.write_bytes(fused.path.read_bytes())

    said = CliRunner().invoke(app, ["probe", str(base)])
    assert isinstance(said.exception, UnfoldableError)
    assert "guidance 5 is folded into these weights already" in str(said.exception)
    assert "guidance_scale=1" in str(said.exception)

    asked = trained.pipeline.model_copy(update={"source": str(base)})
    again = trained.model_copy(update={"pipeline": asked, "run": str(tmp_path / "again")})
    with pytest.raises(UnfoldableError, match="is folded into these weights already"):
        distill(again)


def test_probe_says_what_speaks_for_a_distilled_base(trained: Settings, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained.pipeline.source)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "lcm")
    call = [f"pipeline.call.{k}={v}" for k, v in trained.pipeline.call.items()]

    plain = CliRunner().invoke(app, ["probe", str(tmp_path / "lcm"), *call])
    assert plain.exit_code == 0, plain.output
    told = CliRunner().invoke(app, ["probe", str(tmp_path / "lcm"), *call, "--json"])
    found = json.loads(told.stdout[told.stdout.index("{") :])
    assert found["foldable"]
    assert "few-step distilled weights" in found["signs_of_distillation"][0]
