"""A student of fewer steps whose guidance has a dial: two LoRAs, from settings to clients."""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image, ImageChops
from training import finish, interrupted, outcome

from guidefold import api
from guidefold.ground.errors import GuidefoldError, MismatchError
from guidefold.lora.loaded import DIFFUSERS_FILE, set_strength
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_safetensors
from guidefold.show.hub.workflow import facts

TWO: dict[str, Any] = {
    "student": {"steps": 2, "rank": 3},
    "adapter": {"g_ref": 5.0},
    "record": {
        "guidance": (1.0, 8.0),
        "steps": (4, 4),
        "rounds": ["teacher", "student"],
        "states_per_trajectory": 2,
    },
    "distill": {"steps": 4, "checkpoint_every": 1},
    "evaluate": {"steps": 4, "prompts": 2},
}


@pytest.fixture(scope="module")
def made(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    settings = settings_for("sd15", tmp_path_factory.mktemp("two"), **TWO)
    finish(settings)
    return settings


def test_a_stopped_run_ends_in_the_same_bits(
    made: Settings, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path, **TWO)
    interrupted(settings, 3)  # within the student's round
    assert finish(settings) == outcome(Path(made.run))


@pytest.fixture(scope="module")
def written(made: Settings) -> Path:
    return api.export(made)


def test_the_adapter_holds_a_file_for_each(made: Settings, written: Path) -> None:
    files = [path.relative_to(written).as_posix() for path in written.rglob("*.safetensors")]
    assert sorted(files) == [DIFFUSERS_FILE, f"steps/{DIFFUSERS_FILE}"]
    ranks = []
    for file in sorted(files):
        tensors, _ = read_safetensors(written / file)
        ranks.append({t.shape[0] for n, t in tensors.items() if "lora_A" in n})
    assert ranks == [{made.adapter.rank}, {3}]


def test_every_format_is_written_and_verified(
    made: Settings, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained student is made once for all files of a strength, whatever they fold."""
    trained = import_module("guidefold.deliver.trained")
    students, real = list[object](), trained.lora_student
    monkeypatch.setattr(trained, "lora_student", lambda *run: students.append(run) or real(*run))
    delivery = api.deliver(made, "all")
    assert len(students) == 1
    assert {verdict.kind for verdict in delivery.verdicts} >= {"diffusers", "kohya", "fused"}
    assert not any(verdict.problems for verdict in delivery.verdicts)
    merged = api.deliver(made, "kohya", strength=0.5, merged=True)
    again = api.verify(Path(made.run) / "export", Path(made.run))
    assert {verdict.path for verdict in again} == {
        verdict.path for verdict in (*delivery.verdicts, *merged.verdicts)
    }
    assert not any(verdict.problems for verdict in again)
    assert len(students) == 4  # of two deliveries, and of two strengths


def stock(saved: Callable[[str], Path]) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(saved("sd15"), use_safetensors=True)
    config = pipeline.scheduler.config
    pipeline.scheduler = type(pipeline.scheduler).from_config(config, timestep_spacing="trailing")
    return pipeline


def pixels(draw: Callable[..., Any], **given: Any) -> np.ndarray:
    call = {"generator": torch.Generator().manual_seed(7), **given}
    return np.asarray(draw("a red cat", **call).images[0], dtype=float)


CALL = {"guidance_scale": 1.0, "num_inference_steps": 2}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # diffusers' own
def test_stock_pipelines_draw_our_student_s_pictures(
    made: Settings, written: Path, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both files loaded by diffusers alone, the merged file, the fused weights, open_student."""
    strength = 0.6
    _, file = api.sample(
        made, ["a red cat"], tmp_path, kinds=["student"], seeds=[7], strength=strength
    )
    ours = np.asarray(Image.open(file), dtype=float)
    both = stock(saved)
    both.load_lora_weights(written, adapter_name="guidance")
    both.load_lora_weights(written / "steps", adapter_name="steps")
    both.set_adapters(["guidance", "steps"], [strength, 1.0])
    merged = stock(saved)
    delivery = api.deliver(made, "all", tmp_path, strength=strength, merged=True)
    paths = {verdict.kind: verdict.path for verdict in delivery.verdicts}
    merged.load_lora_weights(paths["kohya"].parent, weight_name=paths["kohya"].name)
    fused = stock(saved)
    fused.unet = type(fused.unet).from_pretrained(paths["fused"].parent)
    opened = api.open_student(stock(saved), written)
    set_strength(opened.pipeline.unet, strength)
    turned = pixels(opened)
    for pipeline in (both, merged, fused):
        assert np.abs(pixels(pipeline, **CALL) - ours).max() <= 1
    assert np.abs(turned - ours).max() <= 1
    both.set_adapters(["guidance"], [strength])
    assert np.abs(pixels(both, **CALL) - ours).max() > 1  # the second LoRA counts


def test_at_strength_0_only_the_longer_steps_are_corrected(
    made: Settings, written: Path, saved: Callable[[str], Path]
) -> None:
    steps = stock(saved)
    steps.load_lora_weights(written / "steps", adapter_name="steps")
    both = api.open_student(stock(saved), written)
    set_strength(both.pipeline.unet, 0.0)
    assert np.abs(pixels(steps, **CALL) - pixels(both)).max() <= 1


def test_the_files_say_what_they_are(made: Settings, written: Path) -> None:
    about = [
        json.loads(read_safetensors(file)[1]["guidefold"])
        for file in (written / DIFFUSERS_FILE, written / "steps" / DIFFUSERS_FILE)
    ]
    assert [each["folds"] for each in about] == ["guidance", "steps"]
    assert [each["rank"] for each in about] == [made.adapter.rank, 3]
    use = "2 steps, DDIMScheduler, trailing spacing (in ComfyUI ddim, simple), guidance_scale=1"
    assert about[0]["usage_hint"].startswith(f"{use}; strength 1 = guidance")
    assert about[0]["usage_hint"].endswith("beside the steps LoRA, which stays at strength 1")
    assert about[1]["usage_hint"] == f"{use}; strength 1, beside the guidance LoRA"


def test_steps_are_trained_beside_a_finished_guidance_lora(
    made: Settings, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    plain = settings_for("sd15", tmp_path, run=str(tmp_path / "guidance"), adapter={"g_ref": 5.0})
    guidance = finish(plain).tensors
    given = {**TWO, "student": {"steps": 2, "rank": 3, "guidance_run": plain.run}}
    settings = settings_for("sd15", tmp_path, run=str(tmp_path / "steps"), **given)
    interrupted(settings, 2)
    tensors = finish(settings).tensors
    kept = {name for name in guidance if "lora_" in name and "/" not in name}
    assert kept and all(torch.equal(tensors[name], guidance[name]) for name in kept)
    moved = [name for name in tensors if ".lora_B.steps." in name and "/" not in name]
    assert moved and all(tensors[name].abs().max() > 0 for name in moved)
    trained = {name.partition("/")[2] for name in tensors if name.startswith("exp_avg/")}
    assert trained == {name for name in tensors if ".steps." in name and "/" not in name}
    other = {**given, "run": str(tmp_path / "other"), "pipeline": {"negative_prompt": "blurry"}}
    with pytest.raises(
        MismatchError, match=r"pipeline\.negative_prompt=not set, this run 'blurry'"
    ):
        finish(settings_for("sd15", tmp_path, **other))
    assert not (tmp_path / "other" / "trajectories").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record": {**TWO["record"], "guidance": (2.0, 8.0)}}, r"Set record.guidance=\[1, 8\]"),
        ({"student": {"steps": 2, "guidance_run": "nowhere"}}, "holds no trained LoRA"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    settings_for: Callable[..., Settings], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = settings_for("sd15", tmp_path, **{**TWO, **changes})
    with pytest.raises(GuidefoldError) as refused:
        finish(settings)
    assert re.search(message, f"{refused.value} {refused.value.remedy}")
    assert not RunFolder(settings.run).trajectories.exists()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # diffusers' own
def test_the_packed_adapter_holds_both_and_says_how_to_use_them(
    made: Settings, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.evaluate(made)
    monkeypatch.setitem(facts(), "unet", [{}])  # ComfyUI knows a UNet by a released model's sizes
    api.pack(made, licence="openrail")
    hub = Path(made.run) / "hub"
    nodes = json.loads((hub / "comfyui-workflow-api.json").read_text())
    chain = {n["inputs"]["lora_name"]: n for n in nodes.values() if "Lora" in n["class_type"]}
    assert sorted(chain) == ["run-steps.safetensors", "run.safetensors"]
    assert all((hub / "kohya" / name).exists() for name in chain)
    steps = chain["run-steps.safetensors"]["inputs"]
    assert nodes[steps["model"][0]] is chain["run.safetensors"] and steps["strength_model"] == 1
    students = [n["inputs"] for n in nodes.values() if n["class_type"] == "KSampler"][1]
    assert nodes[students["model"][0]] is chain["run-steps.safetensors"]
    assert (students["steps"], students["cfg"]) == (2, 1.0)
    card = ModelCard.load(hub / "README.md").text
    assert "These two LoRAs fold" in card and "## The dial" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    (tmp_path / "OWNER").mkdir()
    (tmp_path / "OWNER" / "NAME").symlink_to(hub.resolve())
    (tmp_path / "pipeline").symlink_to(made.pipeline.source)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "the card", "exec"), found)
    with Image.open(hub / "images" / "0-student.png") as wanted:
        apart = ImageChops.difference(found["picture"].convert("RGB"), wanted.convert("RGB"))
    assert max(high for _, high in apart.getextrema()) <= 1


def test_the_page_and_the_live_page_turn_the_dial(made: Settings, written: Path) -> None:
    api.evaluate(made)
    page = api.report(made).read_text(encoding="utf-8")
    assert "student, 2 steps" in page
    assert "guidance_scale=1.0, num_inference_steps=2)" in page  # the code to copy
    assert "timestep_spacing=&#34;trailing&#34;" in page or 'timestep_spacing="trailing"' in page
    assert "stays at strength 1" in page
    results = json.loads((Path(made.run) / "results.json").read_text())
    assert results["adapter_bytes"] == sum(f.stat().st_size for f in written.rglob("*.safetensors"))
    index = json.loads((Path(made.run) / "evaluation" / "index.json").read_text())
    assert [step["strength"] for step in index["dial"]][:2] == [0.0, 0.25]
