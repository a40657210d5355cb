"""The node for ComfyUI, with stand-ins for ComfyUI's modules."""

import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from guidefold.ground.errors import InputError
from guidefold.lora.dial import Dial, Mark
from guidefold.run.tensors import write_tensors

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
MARKS = [
    {"guidance": 2.0, "strength": 0.5, "residual": 0.4},
    {"guidance": 6.0, "strength": 1.4, "residual": 0.5},
]
GUIDANCE: dict[str, Any] = {
    "findings": {"origin": 1.0},
    "g_ref": 4.0,
    "dial": True,
    "dial_table": MARKS,
    "guidance_range": [1.5, 8.0],
    "folds": "guidance",
    "negative_prompt": None,
    "usage_hint": "guidance_scale=1",
}
FEW = {
    **GUIDANCE,
    "findings": {"origin": 1.0, "steps": {"student": 5}},
    "comfyui": {"sampler": "ddim", "scheduler": "simple", "shift": None},
    "usage_hint": "5 steps, DDIMScheduler",
}


class Model:
    """ComfyUI's ModelPatcher, as far as the node knows it."""

    def __init__(self, loaded: tuple[Any, ...] = (), watches: tuple[Any, ...] = ()) -> None:
        self.loaded, self.watches = loaded, watches

    def clone(self) -> "Model":
        return Model(self.loaded, self.watches)

    def set_model_sampler_post_cfg_function(
        self, watch: Callable[..., Any], disable_cfg1_optimization: bool = False
    ) -> None:
        assert not disable_cfg1_optimization  # it would bring the second pass back
        self.watches = (*self.watches, watch)


class Loader:
    def load_lora_model_only(self, model: Model, name: str, strength: float) -> tuple[Model]:
        return (Model((*model.loaded, (name, strength)), model.watches),)


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The node pack as ComfyUI imports it; its LoRAs lie in ``tmp_path``."""
    sampler = SimpleNamespace(SAMPLERS=["euler", "ddim"], SCHEDULERS=["normal", "simple"])
    stand_ins = {
        "comfy": ModuleType("comfy"),
        "comfy.samplers": SimpleNamespace(KSampler=sampler),
        "nodes": SimpleNamespace(LoraLoaderModelOnly=Loader),
        "folder_paths": SimpleNamespace(
            get_filename_list=lambda kind: sorted(p.name for p in tmp_path.iterdir()),
            get_full_path_or_raise=lambda kind, name: str(tmp_path / name),
        ),
    }
    stand_ins["comfy"].samplers = stand_ins["comfy.samplers"]
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(
        "guidefold_node", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in ("", ".guidefold_lora", ".lora_metadata"):
        monkeypatch.delitem(sys.modules, f"guidefold_node{name}", raising=False)
    monkeypatch.setitem(sys.modules, "guidefold_node", module)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, name: str, metadata: dict[str, Any]) -> None:
    write_tensors(folder / name, {"a.lora_A.weight": torch.zeros(1)}, metadata)


def load(pack: ModuleType, name: str, guidance: float, steps_lora: str = "automatic") -> Any:
    node = pack.NODE_CLASS_MAPPINGS["GuidefoldLora"]
    return node().load(Model(), name, guidance, steps_lora, 20, "euler", "normal")


def test_the_node_asks_for_what_it_takes(pack: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", GUIDANCE)
    node = pack.NODE_CLASS_MAPPINGS["GuidefoldLora"]
    wanted = node.INPUT_TYPES()["required"]
    code = getattr(node, node.FUNCTION).__code__
    assert [*wanted] == [*code.co_varnames[1 : code.co_argcount]]
    assert wanted["lora_name"] == (["a.safetensors"],)
    assert wanted["steps_lora"] == (["automatic", "none", "a.safetensors"],)
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 6
    assert pack.NODE_DISPLAY_NAME_MAPPINGS == {"GuidefoldLora": "Guidefold LoRA"}


def test_a_guidance_scale_becomes_the_measured_strength(pack: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", GUIDANCE)
    model, steps, sampler, scheduler, cfg, report = load(pack, "a.safetensors", 4.0)
    assert model.loaded == (("a.safetensors", pytest.approx(0.95)),)
    assert (steps, sampler, scheduler, cfg) == (20, "euler", "normal", 1.0)
    assert "guidance 4 is strength 0.95" in report


@pytest.mark.parametrize("marks", [(), tuple(Mark(**mark) for mark in MARKS)])
@pytest.mark.parametrize("guidance", [1.0, 1.5, 2.0, 3.3, 6.0])
def test_the_strength_is_that_of_guidefold_s_own_dial(
    pack: ModuleType, marks: tuple[Mark, ...], guidance: float
) -> None:
    from guidefold_node.lora_metadata import strength_for

    dial = Dial(1.0, 4.0, (1.5, 8.0), marks)
    metadata = {**GUIDANCE, **dial.to_json()}
    expected = dial.measured_strength(guidance) if marks else dial.nominal_strength(guidance)
    assert strength_for(metadata, guidance) == pytest.approx(expected)
    with pytest.raises(ValueError, match="guidance 9"):
        strength_for(metadata, 9.0)
    if marks:
        with pytest.raises(InputError):
            dial.measured_strength(9.0)


def test_a_lora_without_a_dial_is_for_its_own_scale(pack: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", {**GUIDANCE, "dial": False, "dial_table": []})
    assert load(pack, "a.safetensors", 4.0)[0].loaded == (("a.safetensors", 1.0),)
    with pytest.raises(ValueError, match="for guidance 4 alone"):
        load(pack, "a.safetensors", 5.0)


def test_a_few_step_student_has_two_files_and_states_how_to_step(
    pack: ModuleType, tmp_path: Path
) -> None:
    write(tmp_path, "a.safetensors", FEW)
    with pytest.raises(ValueError, match=r"a-steps\.safetensors is not there"):
        load(pack, "a.safetensors", 2.0)
    write(tmp_path, "a-steps.safetensors", {**FEW, "folds": "steps"})
    model, *settings, report = load(pack, "a.safetensors", 2.0)
    assert model.loaded == (("a.safetensors", 0.5), ("a-steps.safetensors", 1.0))
    assert settings == [5, "ddim", "simple", 1.0]
    assert "5 steps, DDIMScheduler" in report
    assert load(pack, "a.safetensors", 2.0, "none")[0].loaded == (("a.safetensors", 0.5),)
    with pytest.raises(ValueError, match="choose the one of guidance"):
        load(pack, "a-steps.safetensors", 2.0)
    with pytest.raises(ValueError, match="no LoRA for fewer steps"):
        load(pack, "a.safetensors", 2.0, "a.safetensors")


def test_cfg_that_is_on_is_warned_of_once_and_changes_nothing(
    pack: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.safetensors", GUIDANCE)
    (watch,) = load(pack, "a.safetensors", 4.0)[0].watches
    with caplog.at_level(logging.WARNING):
        assert watch({"cond_scale": 1.0, "denoised": "as it is"}) == "as it is"
        assert not caplog.records
        for _ in range(2):
            assert watch({"cond_scale": 7.5, "denoised": "as it is"}) == "as it is"
    (record,) = caplog.records
    assert "CFG is 7.5: it counts twice" in record.getMessage()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a whole safetensors file"),
        (b"\xff" * 16, "not a whole safetensors file"),
        (len(b"[]").to_bytes(8, "little") + b"[]", "not a whole safetensors file"),
        (None, "no LoRA of Guidefold's"),
    ],
)
def test_other_files_are_refused_by_name(
    pack: ModuleType, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is None:
        header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
        content = len(header).to_bytes(8, "little") + header
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"b\.safetensors: {said}"):
        load(pack, "b.safetensors", 4.0)
