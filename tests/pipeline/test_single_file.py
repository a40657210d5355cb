"""Checkpoints of one file: their noise schedule, and the parts that they lack."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from original_layout import write_original_layout
from safetensors.torch import load_file, save_file

from guidefold.ground.errors import ConfigError, PipelineError
from guidefold.pipeline import loading, single_file
from guidefold.pipeline.descriptions import DESCRIPTIONS, read_description, write_description
from guidefold.pipeline.open import open_pipeline

PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}


@pytest.fixture(scope="module")
def single(built: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_layout(built("sd15"), tmp_path_factory.mktemp("single") / "a.safetensors")


@pytest.fixture(scope="module")
def described(
    saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A folder of configurations and no weights, whose DDIM scheduler has other fields."""

    def make(**fields: Any) -> Path:
        folder = tmp_path_factory.mktemp("configurations") / "base"
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(saved("sd15"), folder, ignore=ignored)
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
        DDIMScheduler(**fields, steps_offset=1, clip_sample=False).save_pretrained(
            folder / "scheduler"
        )
        return folder

    return make


def with_markers(
    single: Path, target: Path, keys: tuple[str, ...] = (), metadata: dict[str, str] | None = None
) -> Path:
    tensors = load_file(single) | {key: torch.zeros(1) for key in keys}
    save_file(tensors, target, metadata=metadata)
    return target


def without(single: Path, target: Path, *parts: str) -> Path:
    prefixes = tuple(PARTS[part] for part in parts)
    tensors = load_file(single)
    save_file({k: t for k, t in tensors.items() if not k.startswith(prefixes)}, target)
    return target


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [
        (("v_pred",), {}),
        (("v_pred", "ztsnr"), {}),
        ((), {"modelspec.prediction_type": "v"}),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}),
    ],
)
def test_a_v_prediction_file_does_not_open_as_epsilon_and_its_remedy_opens_it(
    single: Path,
    described: Callable[..., Path],
    tmp_path: Path,
    keys: tuple[str, ...],
    metadata: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = with_markers(single, tmp_path / "a.safetensors", keys, metadata)
    base = described(timestep_spacing="leading")
    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_pipeline", lambda *_a, **_o: pytest.fail("was loaded"))
        with pytest.raises(PipelineError) as caught:
            open_pipeline(str(path), config=str(base))
    for named in (str(path), str(base), "v_prediction", "epsilon", *keys, *metadata):
        assert named in caught.value.message
    offered = caught.value.remedy.removeprefix("Set ").split(" if the file is right")[0].split()
    settings = dict(pair.removeprefix("pipeline.").split("=") for pair in offered)
    zero = {"true": True, "false": False}.get(settings.pop("zero_terminal_snr", ""))
    opened = open_pipeline(str(path), config=str(base), zero_terminal_snr=zero, **settings)
    assert isinstance(opened, StableDiffusionPipeline)
    config = opened.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr == bool(zero)
    assert config.timestep_spacing == ("trailing" if zero else "leading")


def test_an_epsilon_file_does_not_open_as_v_prediction(
    single: Path, described: Callable[..., Path], tmp_path: Path
) -> None:
    path = with_markers(
        single, tmp_path / "a.safetensors", (), {"modelspec.prediction_type": "epsilon"}
    )
    base = str(described(prediction_type="v_prediction"))
    with pytest.raises(PipelineError, match=r"states epsilon; the scheduler of .* v_prediction"):
        open_pipeline(str(path), config=base)
    opened = open_pipeline(str(path), config=base, prediction_type="epsilon")
    assert opened.scheduler.config.prediction_type == "epsilon"


def test_a_file_and_a_configuration_that_agree_open_as_they_are(
    single: Path, described: Callable[..., Path], tmp_path: Path
) -> None:
    path = with_markers(single, tmp_path / "a.safetensors", ("v_pred", "ztsnr"))
    fields = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    opened = open_pipeline(str(path), config=str(described(**fields)))
    assert fields.items() <= opened.scheduler.config.items()


def test_a_folder_takes_the_settings_and_a_flow_matching_one_refuses_them_by_name(
    saved: Callable[[str], Path],
) -> None:
    opened = open_pipeline(str(saved("sd15")), prediction_type="v_prediction")
    assert opened.scheduler.config.prediction_type == "v_prediction"
    for setting, value in (("prediction_type", "epsilon"), ("zero_terminal_snr", True)):
        with pytest.raises(ConfigError, match=rf"pipeline\.{setting}: .*FlowMatchEuler"):
            open_pipeline(str(saved("sd3")), **{setting: value})


@pytest.mark.parametrize("lacking", [["unet"], ["vae"], ["text_encoder"], ["vae", "text_encoder"]])
def test_what_a_file_lacks_is_named_and_comes_from_a_folder_that_has_it(
    single: Path, saved: Any, built: Any, described: Any, tmp_path: Path, lacking: list[str]
) -> None:
    path = without(single, tmp_path / "a.safetensors", *lacking)
    with pytest.raises(PipelineError, match="holds no weights of the") as caught:
        open_pipeline(str(path), config=str(described()))
    assert any(f"the {part} (" in caught.value.message for part in lacking)
    assert "pipeline.config" in caught.value.remedy
    opened, truth = open_pipeline(str(path), config=str(saved("sd15"))), built("sd15")
    for part in PARTS:
        weights = getattr(truth, part).state_dict()
        found = getattr(opened, part).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())


@pytest.mark.parametrize("count", [0, -1, "many", None])
def test_a_scheduler_without_timesteps_is_refused(
    single: Path, saved: Any, described: Any, tmp_path: Path, count: Any
) -> None:
    base = described()
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": count}))
    folder = Path(shutil.copytree(saved("sd15"), tmp_path / "p"))
    shutil.copy(path, folder / "scheduler")
    for source, config in ((single, str(base)), (folder, None)):
        with pytest.raises(PipelineError, match=f"num_train_timesteps={count!r}"):
            open_pipeline(str(source), config=config)


@pytest.mark.parametrize("config", ["./nosuch", "no/such/folder", "nosuch", "a" * 5000, "a\0b"])
def test_a_configuration_that_is_no_folder_and_no_hub_id_is_refused_by_the_setting(
    single: Path, config: str
) -> None:
    with pytest.raises(PipelineError, match=r"no such pipeline \(pipeline\.config\)"):
        open_pipeline(str(single), config=config)


def test_a_configuration_that_is_not_there_offline_is_refused(single: Path) -> None:
    for config in ("no/such-base", "no base/a b"):
        with pytest.raises(PipelineError, match=r"HF_HUB_OFFLINE|can have") as caught:
            open_pipeline(str(single), config=config)
        assert "pipeline.config" in caught.value.remedy


def test_a_file_opens_offline_by_the_configuration_that_comes_with_the_package(
    single: Path, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bundled for the file's kind, in the sizes of the tiny pipeline."""
    truth = built("sd15")
    values = read_description(DESCRIPTIONS / "sd15.toml")
    for part in (values["denoiser"], values["autoencoder"]):
        part["config"] = plain(getattr(truth, part["name"]).config)
    values["encoders"]["text_encoder"]["config"] = truth.text_encoder.config.to_diff_dict()
    folder = tmp_path / "bundled"
    write_description(values, folder)
    asked = []
    monkeypatch.setattr(
        single_file, "describe_source", lambda source: asked.append(source) or folder
    )
    opened = open_pipeline(str(single))
    assert asked == values["sources"][:1]
    assert isinstance(opened.scheduler, PNDMScheduler)
    assert opened.tokenizer("a photo of a cat")["input_ids"][1:3] == [320, 1125]
    for part in PARTS:
        weights = getattr(truth, part).state_dict()
        found = getattr(opened, part).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    (folder / "tokenizer" / "merges.txt").unlink()
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(PipelineError, match="HF_HUB_OFFLINE"):  # not with a vocabulary of nothing
        open_pipeline(str(single))


def plain(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_")}
