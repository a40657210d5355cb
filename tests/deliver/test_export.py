"""Every format of a trained run: written, verified, loaded by stock libraries, and converted."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from guidefold.cli import main as cli
from guidefold.deliver import clients, lora_file
from guidefold.deliver.convert import convert
from guidefold.deliver.export import Delivery, deliver
from guidefold.deliver.metadata import content_hash
from guidefold.deliver.tensor_checks import fused_weights
from guidefold.deliver.verify import verify
from guidefold.ground.errors import InputError, NonFiniteError, VerifyError
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_labels, read_metadata, read_tensors
from guidefold.train.distill import distill

FAMILIES = ("sd15", "sdxl", "sd3", "flux")
UNETS = ("sd15", "sdxl")
FORMATS = {
    "sd15": {"diffusers", "kohya", "peft", "fused"},
    "sdxl": {"diffusers", "kohya", "peft", "fused"},
    "sd3": {"diffusers", "transformer", "peft", "fused"},
    "flux": {"diffusers", "transformer", "peft", "fused"},
}
Run = tuple[Settings, Delivery]


@pytest.fixture(scope="module")
def delivered(settings_for: Any, tmp_path_factory: Any) -> Callable[[str], Run]:
    """A tiny trained run and all of its files, made once for each family."""
    made: dict[str, Run] = {}

    def make(name: str) -> Run:
        if name not in made:
            settings = settings_for(
                name, tmp_path_factory.mktemp(name), distill={"preview_prompts": 0}
            )
            distill(settings)
            made[name] = settings, deliver(settings, "all")
        return made[name]

    return make


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest, delivered: Callable[[str], Run]) -> Run:
    return delivered(request.param)


def file(run: Run, kind: str) -> Path:
    return next(verdict.path for verdict in run[1].verdicts if verdict.kind == kind)


def stock(settings: Settings) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(settings.pipeline.source, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def answer(pipeline: DiffusionPipeline) -> torch.Tensor:
    """What a pipeline draws, unguided."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a red cat",
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    return torch.as_tensor(drawn[0])


# Written and verified


def test_every_format_that_fits_is_written_and_no_client_drops_a_key(
    run: Run, request: pytest.FixtureRequest
) -> None:
    settings, made = run
    name = request.node.callspec.params["run"]
    assert {verdict.kind for verdict in made.verdicts} == FORMATS[name]
    assert made.unfit.keys() == {"kohya", "transformer", "original"} - FORMATS[name]
    for verdict in made.verdicts:
        assert verdict.path.parent == Path(settings.run) / "export" / verdict.kind
        assert not verdict.problems
        assert verdict.loaded_by == ("peft" if verdict.kind == "peft" else "diffusers")
        assert verdict.difference is not None
        assert verdict.difference < 1e-4
        assert not any(reading.dropped for reading in verdict.readings if reading.meant)
        assert verdict.kind == "fused" or any(reading.meant for reading in verdict.readings)


def test_a_folder_is_verified_against_its_run(run: Run) -> None:
    settings, made = run
    verdicts = verify(Path(settings.run) / "export", run=Path(settings.run))
    assert {v.path for v in verdicts} == {v.path for v in made.verdicts}
    assert all(v.difference is not None and not v.problems for v in verdicts)
    json.dumps([verdict.to_json() for verdict in verdicts])


def test_without_a_run_a_file_is_verified_against_its_pipeline(
    delivered: Callable[[str], Run],
) -> None:
    run = delivered("sdxl")
    (verdict,) = verify(file(run, "kohya"), pipeline=run[0].pipeline.source)
    assert not verdict.problems
    assert verdict.loaded_by == "diffusers"
    assert verdict.difference is None


@pytest.mark.parametrize("name", UNETS)
def test_stock_diffusers_draws_the_same_from_kohya_s_file(
    delivered: Callable[[str], Run], name: str
) -> None:
    run = delivered(name)
    pictures = []
    for kind in ("diffusers", "kohya"):
        pipeline = stock(run[0])
        bare = answer(pipeline)
        path = file(run, kind)
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        pictures.append(answer(pipeline))
    assert not torch.allclose(pictures[0], bare, atol=1e-3)
    torch.testing.assert_close(pictures[0], pictures[1])


def test_a_fused_denoiser_is_a_plain_one_at_the_strength_asked_for(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    run = delivered("sd15")
    made = deliver(run[0], "fused", tmp_path, strength=0.5)
    (verdict,) = made.verdicts
    assert not verdict.problems
    assert read_metadata(verdict.path)["strength"] == 0.5
    half, whole = load_file(verdict.path), load_file(file(run, "fused"))
    base = stock(run[0]).unet.state_dict()
    name = "down_blocks.1.resnets.0.conv1.weight"
    assert not torch.equal(whole[name], base[name])
    torch.testing.assert_close(2 * half[name] - base[name], whole[name])
    (again,) = verify(verdict.path, run=Path(run[0].run))
    assert not again.problems


def test_fusing_leaves_the_denoiser_s_own_weights_as_they_are() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3))
    before = layer[0].weight.detach().clone()
    tensors = {
        "0.lora_A.weight": torch.randn(1, 2, 3, 3),
        "0.lora_B.weight": torch.randn(3, 1, 1, 1),
    }
    fused = fused_weights(layer, tensors)["0.weight"]
    wanted = torch.einsum("oruv,rixy->oixy", tensors["0.lora_B.weight"], tensors["0.lora_A.weight"])
    torch.testing.assert_close(fused, before + wanted)
    assert torch.equal(layer[0].weight, before)


# What a file says


def test_a_kohya_file_says_what_clients_ask(delivered: Callable[[str], Run]) -> None:
    versions = {}
    for name in UNETS:
        path = file(delivered(name), "kohya")
        said = read_labels(path)
        versions[name] = said["ss_base_model_version"], said["ss_v2"]
        assert said["ss_network_dim"] == said["ss_network_alpha"] == "2"
        assert said["modelspec.sai_model_spec"] == "1.0.1"
        assert said["modelspec.architecture"].endswith("/lora")
        assert said["modelspec.usage_hint"] == "CFG 1, strength 1 = guidance 5"
        assert said["modelspec.hash_sha256"] == content_hash(read_tensors(path))
        assert "lora_adapter_metadata" not in said
        about = read_metadata(path)
        assert about["findings"]["fingerprint"]
        assert about["guidance_range"] == [3.0, 6.0]
        assert (about["g_ref"], about["format"], about["denoiser"]) == (5.0, "kohya", "unet")
    assert versions == {"sd15": ("sd_v1", "False"), "sdxl": ("sdxl_base_v1-0", "False")}


def test_other_files_hold_none_of_kohya_s_words(delivered: Callable[[str], Run]) -> None:
    said = read_labels(file(delivered("flux"), "transformer"))
    assert said["modelspec.architecture"] == "flux-1/lora"
    assert not any(name.startswith("ss_") for name in said)


# Portable layers


def test_a_portable_file_lacks_the_outer_layers_and_is_meant_for_every_client(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    settings = delivered("sd15")[0]
    (verdict,) = deliver(settings, "kohya", tmp_path, layers="portable").verdicts
    assert verdict.path.parent.name == "kohya-portable"
    assert not verdict.problems
    assert {r.client for r in verdict.readings if r.meant} == set(clients.MEANT["kohya"])
    assert not any(reading.dropped for reading in verdict.readings if reading.meant)
    lost = read_tensors(file(delivered("sd15"), "kohya")).keys() - read_tensors(verdict.path).keys()
    assert {name.removeprefix("lora_unet_").partition(".")[0] for name in lost} == {
        "conv_in",
        "conv_out",
        "time_embedding_linear_1",
        "time_embedding_linear_2",
    }
    about = read_metadata(verdict.path)
    assert (about["layers"], about["read_in_part_by"]) == ("portable", [])
    assert not about.get("dial_table")  # it was measured with every layer


def test_a_portable_file_is_verified_against_the_run_without_these_layers(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    settings = delivered("sd15")[0]
    deliver(settings, "fused", tmp_path, layers="portable")
    deliver(settings, "diffusers", tmp_path, layers="portable")
    verdicts = verify(tmp_path, run=Path(settings.run))
    assert [verdict.problems for verdict in verdicts] == [(), ()]
    whole = verify(file(delivered("sd15"), "kohya"), run=Path(settings.run))
    assert not whole[0].problems


def test_a_file_says_which_clients_read_it_in_part(delivered: Callable[[str], Run]) -> None:
    path = file(delivered("sd15"), "kohya")
    clients_in_part = ["diffusers before 0.39", "sd-scripts", "sd.cpp"]
    assert read_metadata(path)["read_in_part_by"] == clients_in_part
    assert "diffusers before 0.39" in read_labels(path)["modelspec.description"]


# Refusals


def test_a_format_that_does_not_fit_is_refused_with_the_reason(
    delivered: Callable[[str], Run],
) -> None:
    with pytest.raises(InputError, match="for diffusion transformers"):
        deliver(delivered("sd15")[0], "transformer")
    with pytest.raises(InputError, match="no such format"):
        deliver(delivered("sd15")[0], "ckpt")
    with pytest.raises(InputError, match="no such type"):
        deliver(delivered("sd15")[0], "kohya", dtype="fp8")


def test_half_precision_is_verified_and_its_losses_refused(
    delivered: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = delivered("sd15")[0]
    (verdict,) = deliver(settings, "kohya", tmp_path / "half", "bf16").verdicts
    dtypes = {n.endswith(".alpha"): t.dtype for n, t in read_tensors(verdict.path).items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert not verdict.problems
    monkeypatch.setattr("guidefold.deliver.formats.LOST", -1.0)
    with pytest.raises(NonFiniteError, match="become zero"):
        deliver(settings, "kohya", tmp_path / "lost", "fp16")
    assert not (tmp_path / "lost" / "kohya").exists()


def test_a_file_that_a_client_would_drop_a_part_of_is_not_kept(
    delivered: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = lora_file.write_tensors

    def and_more(path: Path, tensors: Any, *rest: Any) -> str:
        return write(path, {**tensors, "lora_unet_nowhere.alpha": torch.ones(())}, *rest)

    monkeypatch.setattr(lora_file, "write_tensors", and_more)
    with pytest.raises(VerifyError, match="drops 1 of 250 keys: lora_unet_nowhere"):
        deliver(delivered("sd15")[0], "kohya", tmp_path)
    assert not (tmp_path / "kohya").exists()


def test_a_format_that_a_client_cannot_read_whole_is_left_out_of_all(
    delivered: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(keys: Any, *_: Any) -> list[str]:
        return sorted(key for key in keys if "conv_out" in key)

    monkeypatch.setitem(clients.CLIENTS, "ComfyUI", deaf)
    made = deliver(delivered("sd15")[0], "all", tmp_path)
    assert made.unfit["kohya"].startswith("ComfyUI would drop lora_unet_conv_out.alpha, ")
    assert {verdict.kind for verdict in made.verdicts} == {"diffusers", "peft", "fused"}


def test_a_damaged_file_fails_by_its_predictions(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    run = delivered("sd15")
    path = Path(shutil.copy(file(run, "kohya"), tmp_path / "damaged.safetensors"))
    tensors = load_file(path)
    name = "lora_unet_mid_block_resnets_0_conv1.lora_up.weight"
    save_file({**tensors, name: tensors[name] + 0.5}, path)
    (verdict,) = verify(path, run=Path(run[0].run))
    assert "off the trained student" in verdict.problems[0]


def test_a_file_that_lacks_a_layer_fails_by_its_name(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    run = delivered("sd15")
    path = tmp_path / "short.safetensors"
    tensors = load_file(file(run, "kohya"))
    save_file({n: t for n, t in tensors.items() if "conv_out." not in n}, path)
    (verdict,) = verify(path, run=Path(run[0].run))
    assert "conv_out" in verdict.problems[0]


def test_a_file_of_other_shapes_is_refused_in_words(
    delivered: Callable[[str], Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, path = delivered("sd15"), tmp_path / "wide.safetensors"
    tensors = load_file(file(run, "kohya"))
    first = ".lora_down."  # a layer's inputs; its two halves still fit together
    wide = {n: t.repeat(1, 2) if first in n and t.ndim == 2 else t for n, t in tensors.items()}
    save_file({n: t.contiguous() for n, t in wide.items()}, path)
    (verdict,) = verify(path, pipeline=run[0].pipeline.source)
    assert re.match(r"made for layers of another width: .*\(\d+ to \d+, here", *verdict.problems)
    assert verdict.loaded_by == ""
    assert "size mismatch" not in capfd.readouterr().err  # diffusers was not asked


def test_nothing_is_verified_without_a_base(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="for which base model"):
        verify(tmp_path)
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        verify(tmp_path, pipeline="bundled")


# Conversion


@pytest.mark.parametrize("name", UNETS)
def test_there_and_back_a_file_is_the_same(
    delivered: Callable[[str], Run], tmp_path: Path, name: str
) -> None:
    run = delivered(name)
    source = run[0].pipeline.source
    there = tmp_path / "there.safetensors"
    assert not convert(file(run, "kohya"), "diffusers", source, there).problems
    wanted = read_tensors(file(run, "diffusers"))
    found = read_tensors(there)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    back = tmp_path / "back.safetensors"
    assert not convert(there, "kohya", source, back).problems
    again, first = read_tensors(back), read_tensors(file(run, "kohya"))
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)
    assert (read_metadata(there)["format"], read_metadata(back)["g_ref"]) == ("diffusers", 5.0)
    assert read_labels(there)["modelspec.usage_hint"] == "CFG 1, strength 1 = guidance 5"


def test_another_alpha_is_folded_in_and_the_drawing_stays_the_same(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    run = delivered("sd15")
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "folder"
    tensors = load_file(file(run, "kohya"))
    save_file({n: t * 2 if n.endswith(".alpha") else t for n, t in tensors.items()}, theirs)
    convert(theirs, "peft", run[0].pipeline.source, ours)
    config = json.loads((ours / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 2
    up, mine = "mid_block.resnets.0.conv1", read_tensors(ours / "adapter_model.safetensors")
    torch.testing.assert_close(
        mine[f"base_model.model.{up}.lora_B.weight"],
        2 * tensors["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"],
    )
    back = tmp_path / "back.safetensors"
    assert not convert(ours, "diffusers", run[0].pipeline.source, back).problems


def test_what_cannot_be_converted_is_refused_by_name(
    delivered: Callable[[str], Run], tmp_path: Path
) -> None:
    run = delivered("sd15")
    source, good, out = run[0].pipeline.source, file(run, "kohya"), tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="no such format"):
        convert(good, "fused", source, out)
    with pytest.raises(InputError, match="no name for a file"):
        convert(good, "diffusers", source, tmp_path / "folder")
    with pytest.raises(InputError, match="for diffusion transformers"):
        convert(good, "transformer", source, out)
    with pytest.raises(InputError, match="whole weights"):
        convert(file(run, "fused"), "kohya", source, out)
    strange = tmp_path / "strange.safetensors"
    save_file({"lora_unet_conv_in.hada_w1_a": torch.ones(1)}, strange)
    with pytest.raises(InputError, match=r"'lora_unet_conv_in.hada_w1_a': LoHa"):
        convert(strange, "diffusers", source, out)
    assert not out.exists()


# The commands


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``command("verify", FILE)``: the command line in this process, ``(code, out, err)``."""
    monkeypatch.setattr(cli, "_quiet", lambda: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guidefold", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_command_prints_what_each_client_reads(
    delivered: Callable[[str], Run], command: Callable[..., tuple[int, str, str]]
) -> None:
    run = delivered("sd15")
    code, out, _ = command("verify", file(run, "kohya"), "--pipeline", run[0].pipeline.source)
    assert code == 0
    assert "for diffusers, ComfyUI, Forge, A1111, InvokeAI: every key is read" in out
    lost = "diffusers before 0.39, sd-scripts, sd.cpp: drops 4 layers"
    assert f"{lost}: lora_unet_conv_in" in out


def test_the_command_fails_on_a_file_that_is_read_in_part(
    delivered: Callable[[str], Run],
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    run, path = delivered("sd15"), tmp_path / "more.safetensors"
    save_file({**load_file(file(run, "kohya")), "lora_unet_nowhere.alpha": torch.ones(())}, path)
    source = run[0].pipeline.source
    code, out, _ = command("verify", path, "--pipeline", source, "--json")
    assert code == 1
    (said,) = json.loads(out)
    assert said["clients"]["ComfyUI"]["dropped"] == ["lora_unet_nowhere.alpha"]
    assert len(said["problems"]) > 4


def test_export_says_which_file_is_for_which_client_and_nothing_of_the_others(
    delivered: Callable[[str], Run],
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    run = delivered("sd15")
    code, out, _ = command("export", run[0].run, "--format", "diffusers", "--out", tmp_path)
    assert code == 0
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert "for diffusers, diffusers before 0.39: every key is read" in lines
    assert any(line.startswith("sd.cpp: drops 4 layers: unet.conv_in") for line in lines)
    assert "ComfyUI" not in out


def test_options_without_a_format_are_refused(
    delivered: Callable[[str], Run], command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = command("export", delivered("sd15")[0].run, "--dtype", "fp16")
    assert code == 2
    assert "Add --format NAME" in err


def test_convert_is_a_command(
    delivered: Callable[[str], Run],
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    run, out = delivered("sd15"), tmp_path / "out.safetensors"
    asked = ("--to", "diffusers", "--pipeline", run[0].pipeline.source, "--out", out)
    code, said, _ = command("convert", file(run, "kohya"), *asked)
    assert code == 0
    assert out.exists()
    assert "diffusers, 166 keys" in said
