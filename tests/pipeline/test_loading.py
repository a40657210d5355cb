"""Nothing is loaded in part: missing weights are named, not made up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from guidefold.ground.errors import PipelineError
from guidefold.pipeline.loading import load_pipeline
from guidefold.pipeline.open import bundled_teacher, open_pipeline


def without(folder: Path, file: str, part: str, target: Path) -> Path:
    """A copy of a pipeline whose component's file lacks tensors."""
    shutil.copytree(folder, target)
    path = target / file
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, path, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("name", ["sd15", "sd3", "wan"])
def test_a_text_encoder_without_some_of_its_weights_is_refused(
    saved: Any, tmp_path: Path, name: str
) -> None:
    folder = without(
        saved(name), "text_encoder/model.safetensors", "final_layer_norm", tmp_path / "p"
    )
    with pytest.raises(PipelineError, match=r"lacks \d+ weight|weights are missing"):
        open_pipeline(str(folder))


@pytest.mark.parametrize(
    ("name", "component", "part"),
    [("sd15", "unet", "conv_out"), ("sd15", "vae", "conv_out"), ("sd3", "transformer", "proj_out")],
)
def test_a_denoiser_or_autoencoder_without_some_of_its_weights_is_refused_by_name(
    saved: Any, tmp_path: Path, name: str, component: str, part: str
) -> None:
    file = f"{component}/diffusion_pytorch_model.safetensors"
    folder = without(saved(name), file, part, tmp_path / "p")
    with pytest.raises(PipelineError, match=f"{component}.*{part}") as caught:
        open_pipeline(str(folder))
    assert "safetensors" in str(caught.value)


def test_a_whole_pipeline_is_loaded_without_a_word(caplog: Any) -> None:
    open_pipeline(str(bundled_teacher()))
    assert not [r for r in caplog.records if "newly initialized" in r.getMessage()]


def test_what_a_loader_complains_of_is_the_pipelines_fault() -> None:
    def loader(_source: object, **_options: Any) -> Any:
        raise KeyError("no such component")

    with pytest.raises(PipelineError, match=r"here: diffusers cannot open it.*no such component"):
        load_pipeline(loader, "here", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("shard", ["", "-00001-of-00001"])
def test_weights_under_a_variant_are_told_by_name_with_the_way_out(
    saved: Any, tmp_path: Path, shard: str, caplog: Any
) -> None:
    folder = Path(shutil.copytree(saved("sd15"), tmp_path / "p"))
    plain = folder / "vae" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name(f"diffusion_pytorch_model.fp16{shard}.safetensors"))
    with pytest.raises(PipelineError) as caught:
        open_pipeline(str(folder))
    assert (
        "saved under the variant 'fp16' (vae/diffusion_pytorch_model.fp16" in caught.value.message
    )
    said = f"from_pretrained({str(folder)!r}, variant='fp16').save_pretrained("
    assert said in caught.value.remedy
    assert not caplog.records


def test_a_variant_beside_the_plain_weights_or_of_no_component_is_no_matter(
    saved: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("sd15"), tmp_path / "p"))
    name = "diffusion_pytorch_model.fp16.safetensors"
    (folder / "safety_checker").mkdir()
    for component in ("unet", "safety_checker"):
        (folder / component / name).touch()
    open_pipeline(str(folder))
