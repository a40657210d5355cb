"""Files that `verify` must not pass: of other bases, with other values, edited since."""

import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from original_layout import write_original_layout
from safetensors.torch import load_file, save_file

from guidefold.cli import main as cli
from guidefold.deliver.convert import convert
from guidefold.deliver.export import deliver
from guidefold.deliver.integrity import GivenPipeline, damage, denoiser_of, other_base
from guidefold.deliver.lora_file import LoraFile
from guidefold.deliver.tensor_checks import off_student
from guidefold.deliver.verify import Verdict, verify
from guidefold.ground.errors import InputError, PipelineError
from guidefold.pipeline.open import DTYPES, fingerprint, open_pipeline
from guidefold.run.files import finished_folder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_labels, read_metadata, read_tensors, write_tensors
from guidefold.train.distill import distill

KINDS = ("diffusers", "kohya", "peft", "fused")
LAYER = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def settings(settings_for: Any, tmp_path_factory: Any) -> Settings:
    """A tiny trained run with every file."""
    made: Settings = settings_for(
        "sd15", tmp_path_factory.mktemp("sd15"), distill={"preview_prompts": 0}
    )
    distill(made)
    deliver(made, "all")
    return made


def file(settings: Settings, kind: str, where: Path | None = None) -> Path:
    folder = (where or Path(settings.run) / "export") / kind
    return next(folder.glob("*.safetensors"))


@pytest.fixture
def another(settings: Settings, tmp_path: Path) -> Callable[..., str]:
    """The pipeline with another denoiser: ``another(cross_attention_dim=8)``, or other weights."""

    def make(prediction_type: str | None = None, **config: Any) -> str:
        folder = tmp_path / "another"
        shutil.copytree(settings.pipeline.source, folder)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
        torch.manual_seed(1)
        UNet2DConditionModel.from_config({**unet.config, **config}).save_pretrained(folder / "unet")
        if prediction_type is not None:
            path = folder / "scheduler" / "scheduler_config.json"
            said = json.loads(path.read_text())
            path.write_text(json.dumps({**said, "prediction_type": prediction_type}))
        return str(folder)

    return make


def edited(path: Path, out: Path, **tensors: torch.Tensor) -> Path:
    """A copy with some tensors in the place of others; it says the same of itself."""
    save_file({**load_file(path), **tensors}, out, read_labels(path))
    return out


def bare(path: Path, out: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy without a word of metadata, its tensors changed."""
    save_file({n: change(n, t).contiguous() for n, t in load_file(path).items()}, out)
    return out


def only(verdicts: list[Verdict]) -> str:
    (verdict,) = verdicts
    assert len(verdict.problems) == 1, verdict.problems
    return verdict.problems[0]


# Not finite


@pytest.mark.parametrize("against", ["run", "pipeline"])
@pytest.mark.parametrize(
    ("kind", "part"), [("kohya", ".alpha"), ("kohya", ".lora_up.weight"), ("fused", "norm1.weight")]
)
def test_a_tensor_that_is_not_finite_is_named(
    settings: Settings, tmp_path: Path, kind: str, part: str, against: str
) -> None:
    whole = file(settings, kind)
    name = next(name for name in load_file(whole) if name.endswith(part))
    broken = bare(whole, tmp_path / whole.name, lambda n, t: t * torch.nan if n == name else t)
    by: dict[str, Any] = {"run": Path(settings.run)}
    by = by if against == "run" else {"pipeline": settings.pipeline.source}
    assert only(verify(broken, **by)) == f"not finite: {name}"


# For another base


def test_fused_weights_are_not_for_a_denoiser_of_other_shapes(
    settings: Settings, another: Callable[..., str]
) -> None:
    (verdict,) = verify(file(settings, "fused"), pipeline=another(cross_attention_dim=8))
    shapes = next(p for p in verdict.problems if p.startswith("made for a denoiser of other"))
    assert "attn2.to_k.weight (" in shapes
    assert "x8)" in shapes
    assert shapes.endswith(" ...")
    assert verdict.loaded_by == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_not_for_other_weights_of_the_same_shapes(
    settings: Settings, another: Callable[..., str], kind: str
) -> None:
    said = only(verify(file(settings, kind), pipeline=another()))
    assert said.startswith("made for another base")
    assert "weights " in said
    assert "predictions" not in said
    assert "Name the pipeline" in said


def test_a_file_is_not_for_another_prediction_type(
    settings: Settings, another: Callable[..., str]
) -> None:
    said = only(verify(file(settings, "kohya"), pipeline=another("v_prediction")))
    assert "epsilon predictions, here v_prediction" in said


def test_a_file_of_another_base_is_not_for_this_run(settings: Settings, tmp_path: Path) -> None:
    path, said = tmp_path / "a.safetensors", read_labels(file(settings, "kohya"))
    about = json.loads(said["guidefold"])
    about |= {"base": "theirs", "findings": {**about["findings"], "fingerprint": "0" * 16}}
    save_file(load_file(file(settings, "kohya")), path, said | {"guidefold": json.dumps(about)})
    found = only(verify(path, run=Path(settings.run)))
    assert found.startswith(f"made for another base, theirs: weights {'0' * 16}, here ")


def test_a_file_that_names_no_base_may_be_for_any_of_its_shapes(
    settings: Settings, another: Callable[..., str], tmp_path: Path
) -> None:
    path = bare(file(settings, "kohya"), tmp_path / "theirs.safetensors", lambda _, t: t)
    (verdict,) = verify(path, pipeline=another("v_prediction"))
    assert not verdict.problems


@pytest.fixture
def single(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The base as a v-prediction file with zero terminal SNR, its configuration says epsilon."""
    folder = Path(shutil.copytree(settings.pipeline.source, tmp_path / "described"))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    monkeypatch.setattr("guidefold.ground.compat.single_file_config", lambda _: str(folder))
    path = write_original_layout(open_pipeline(str(folder)), tmp_path / "base.safetensors")
    save_file(load_file(path) | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, path)
    return str(path)


def test_a_single_file_is_opened_as_the_lora_s_metadata_says_of_its_base(
    settings: Settings, single: str, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match="states v_prediction"):
        open_pipeline(single)
    whole = file(settings, "kohya")
    about = read_metadata(whole)
    about["findings"] |= {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    labels = {**read_labels(whole), "guidefold": json.dumps(about)}
    made = tmp_path / "made.safetensors"
    save_file(load_file(whole), made, labels)
    (verdict,) = verify(made, pipeline=single)
    assert verdict.problems == ()
    assert verdict.loaded_by == "diffusers"
    out = tmp_path / "out.safetensors"
    assert convert(made, "diffusers", single, out).problems == ()
    assert read_labels(out)["modelspec.prediction_type"] == "v"
    # One that was made for epsilon on the same weights decides too: so its run was told.
    assert verify(whole, pipeline=single)[0].problems == ()


@pytest.mark.parametrize("labels", [{}, {"ss_v_parameterization": "True"}])
def test_of_another_program_s_lora_its_header_decides_else_the_base_itself(
    settings: Settings, single: str, tmp_path: Path, labels: dict[str, str]
) -> None:
    theirs = tmp_path / "theirs.safetensors"
    save_file(load_file(file(settings, "kohya")), theirs, labels)
    assert verify(theirs, pipeline=single)[0].problems == ()
    out = tmp_path / "out.safetensors"
    assert convert(theirs, "diffusers", single, out).problems == ()
    assert read_labels(out)["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_base_in_half_precision_is_known_again(
    settings: Settings, dtype: str, another: Callable[..., str]
) -> None:
    source = settings.pipeline.source
    half = fingerprint(open_pipeline(source, dtype=DTYPES[dtype]).unet)
    about = {"findings": {"fingerprint": half, "denoisers": ["unet"]}}
    here = GivenPipeline(source, [])
    assert next(iter(here.fingerprints(("unet",)))) != half
    assert other_base(about, "epsilon", here.fingerprints(("unet",))) == []
    there = GivenPipeline(another(), [])
    assert other_base(about, "epsilon", there.fingerprints(("unet",)))
    assert other_base(about, "epsilon", there.fingerprints(("prior",)))


def test_a_file_in_a_denoiser_s_own_folder_is_for_that_denoiser() -> None:
    both = ("first", "second")
    assert denoiser_of(Path("adapter/second/a.safetensors"), {}, both) == "second"
    assert denoiser_of(Path("adapter/a.safetensors"), {}, both) == "first"
    assert denoiser_of(Path("second/a.safetensors"), {"denoiser": "first"}, both) == "first"


# With other values than the student's


def test_one_layer_at_zero_is_named_however_little_it_does(
    settings: Settings, tmp_path: Path
) -> None:
    name = f"lora_unet_{LAYER.replace('.', '_')}.lora_up.weight"
    kohya = file(settings, "kohya")
    path = bare(kohya, tmp_path / "a.safetensors", lambda n, t: t * 0 if n == name else t)
    (verdict,) = verify(path, run=Path(settings.run))
    assert f"1 layer off the trained student's: {LAYER} (by 100%)" in verdict.problems


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_a_file_scaled_by_a_hundredth_fails(settings: Settings, tmp_path: Path, kind: str) -> None:
    def fainter(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 0.99 if "lora_up" in name or "lora_B" in name else tensor

    path = bare(file(settings, kind), tmp_path / "a.safetensors", fainter)
    (verdict,) = verify(path, run=Path(settings.run))
    assert "(by 1%) ..." in verdict.problems[0]


def test_a_fused_weight_without_its_update_is_named(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "fused"
    shutil.copytree(file(settings, "fused").parent, folder)
    (folder / "MANIFEST.json").unlink()
    unet = UNet2DConditionModel.from_pretrained(
        settings.pipeline.source, subfolder="unet", local_files_only=True
    )
    name = f"{LAYER}.weight"
    path = file(settings, "fused", tmp_path)
    edited(path, path, **{name: unet.state_dict()[name]})
    (verdict,) = verify(path, run=Path(settings.run))
    assert verdict.problems[0].startswith(f"1 weight off the trained student's: {name} (by ")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_half_precision_is_the_student_s_but_for_rounding(
    settings: Settings, tmp_path: Path, dtype: str, strength: float
) -> None:
    made = deliver(settings, "all", tmp_path, dtype, strength)
    assert {v.kind for v in made.verdicts} == set(KINDS)
    again = verify(tmp_path, run=Path(settings.run))
    assert not [problem for verdict in again for problem in verdict.problems]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_hundredth_is_seen_in_every_precision_and_rounding_once_more_is_not(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    down, up = torch.randn(4, 3, 3, 3), torch.randn(64, 4, 1, 1)
    student = {"conv.lora_A.weight": down, "conv.lora_B.weight": up}

    def written(scale: float, share: float = 1.0) -> dict[str, torch.Tensor]:
        """``share`` moves from one factor to the other, as programs do that fold alpha in."""
        return {
            "conv.lora_A.weight": (down / share).to(dtype),
            "conv.lora_B.weight": (up * share * scale).to(dtype),
        }

    half = {"conv.lora_A.weight": down, "conv.lora_B.weight": up * 0.5}
    assert off_student(written(1.0), student) == []
    assert off_student(written(1.0, 0.7), student) == []
    assert off_student(written(0.5), half) == []
    (said,) = off_student(written(0.99), student)
    assert said.startswith("1 layer off the trained student's: conv (by ")


def test_another_kernel_is_another_layer() -> None:
    student = {"c.lora_A.weight": torch.ones(1, 2, 3, 3), "c.lora_B.weight": torch.ones(4, 1, 1, 1)}
    found = {**student, "c.lora_A.weight": torch.ones(1, 2, 1, 1)}
    assert off_student(found, student) == ["1 layer off the trained student's: c (by inf%)"]


# Edited since


@pytest.mark.parametrize("against", ["run", "pipeline"])
def test_a_file_that_was_edited_denies_its_own_hash(
    settings: Settings, tmp_path: Path, against: str
) -> None:
    name = f"lora_unet_{LAYER.replace('.', '_')}.lora_up.weight"
    path = file(settings, "kohya")
    edited(path, tmp_path / "a.safetensors", **{name: load_file(path)[name] + 1e-4})
    base: dict[str, Any] = {"run": Path(settings.run)}
    base = base if against == "run" else {"pipeline": settings.pipeline.source}
    (verdict,) = verify(tmp_path / "a.safetensors", **base)
    assert "damaged or edited since it was written" in verdict.problems[0]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_s_manifest_tells_what_was_edited(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "peft"
    shutil.copytree(file(settings, "peft").parent, folder)
    assert not verify(folder, pipeline=settings.pipeline.source)[0].problems
    path = folder / name
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        bare(path, path, lambda _, tensor: tensor)
    said = only(verify(folder, pipeline=settings.pipeline.source))
    assert said.startswith(str(path))
    assert "damaged or edited since it was written" in said


def test_the_manifest_counts_for_the_deepest_file_of_a_folder(tmp_path: Path) -> None:
    """Of a second denoiser's steps LoRA: ``FOLDER/steps/DENOISER/FILE``."""
    inside = Path("steps", "transformer_2", "adapter_model.safetensors")
    with finished_folder(tmp_path / "adapter") as temporary:
        write_tensors(temporary / inside, {"a": torch.zeros(2)})
    path = tmp_path / "adapter" / inside
    assert damage(LoraFile(path, "peft", {}, {}, {})) == []
    write_tensors(path, {"a": torch.ones(2)})
    (said,) = damage(LoraFile(path, "peft", {}, {}, {}))
    assert said.startswith(str(path))


def test_a_damaged_manifest_is_no_reason_to_crash(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(file(settings, "peft").parent, tmp_path / "peft")
    for text in ("[]", "{", '{"adapter_model.safetensors": 1}'):
        (tmp_path / "peft" / "MANIFEST.json").write_text(text)
        assert "damaged or edited" in only(verify(tmp_path, pipeline=settings.pipeline.source))


# In words


def test_a_file_whose_keys_do_not_fit_is_named(settings: Settings, tmp_path: Path) -> None:
    kohya, source = file(settings, "kohya"), settings.pipeline.source
    half, strange = tmp_path / "half.safetensors", tmp_path / "strange.safetensors"
    name = "lora_unet_conv_in.lora_up.weight"
    save_file({n: t for n, t in read_tensors(kohya).items() if n != name}, half)
    edited(kohya, strange, **{"lora_unet_nowhere.alpha": torch.ones(())})
    for path, why in ((half, "one half of its pair"), (strange, "belongs to no layer")):
        (verdict,) = verify(path, pipeline=source)
        (said,) = [problem for problem in verdict.problems if why in problem]
        assert said.startswith(f"{path}: ")
        with pytest.raises(InputError, match=path.name):
            convert(path, "diffusers", source, tmp_path / "out.safetensors")


def test_dots_stand_for_what_is_left_out_alone(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    edited(file(settings, "kohya"), path, **{"lora_unet_nowhere.alpha": torch.ones(())})
    (verdict,) = verify(path, pipeline=settings.pipeline.source)
    (said,) = [problem for problem in verdict.problems if problem.startswith("ComfyUI drops")]
    assert said.endswith(": lora_unet_nowhere.alpha")


def test_who_gave_the_run_is_not_told_to_give_it(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*options: str) -> str:
        arguments = ["guidefold", "verify", str(path), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    monkeypatch.setattr(cli, "_quiet", lambda: None)
    path = bare(file(settings, "kohya"), tmp_path / "a.safetensors", lambda _, t: t + 0.5)
    asked = told("--run", settings.run)
    assert "FAILED" in asked
    assert "--run" not in asked
    assert "values are compared with --run RUN" in told("--pipeline", settings.pipeline.source)


# How often


def test_a_file_is_opened_once_and_its_bytes_are_hashed_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries that load it open it themselves: that is what is verified."""
    mapped, read = Counter[str](), Counter[str]()
    safe_open, plain_open = safetensors.safe_open, io.open

    def counted_map(path: Any, *args: Any, **options: Any) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        mapped[str(path)] += caller.startswith("guidefold")
        return safe_open(path, *args, **options)

    def counted_open(path: Any, *args: Any, **options: Any) -> Any:
        read[str(path)] += 1
        return plain_open(path, *args, **options)

    monkeypatch.setattr(safetensors, "safe_open", counted_map)
    monkeypatch.setattr(io, "open", counted_open)
    verdicts = verify(Path(settings.run) / "export", run=Path(settings.run))
    files = [str(verdict.path) for verdict in verdicts]
    assert len(files) == len(KINDS)
    assert [mapped[file] for file in files] == [1] * len(KINDS)
    assert [read[file] for file in files] == [1] * len(KINDS)
