"""Teachers too large for a card, in tiny: the whole road in few bits, layers coming and going."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantised
import torch
from quantised import with_pipeline
from zoo import WARNINGS

from guidefold import api
from guidefold.deliver.verify import verify
from guidefold.ground.errors import InputError
from guidefold.run.files import read_json
from guidefold.run.folder import METADATA
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors

pytestmark = pytest.mark.filterwarnings(*WARNINGS, *quantised.WARNINGS)
Make = Callable[..., Settings]
FAMILIES = ["sdxl", "flux", "qwen_image", "wan22"]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised.let_bitsandbytes_use_the_cpu(monkeypatch)
    quantised.let_offloading_use_the_cpu(monkeypatch)


def walk(settings: Settings) -> dict[str, torch.Tensor]:
    """Record with teacher and student, train and export: every tensor that was written."""
    with api.open_run(settings) as run:
        run.distill()
        run.export()
    folder = Path(settings.run)
    files = [
        *folder.glob("trajectories/**/*.safetensors"),
        *folder.glob("adapter/**/*.safetensors"),
    ]
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in files
        for name, tensor in read_tensors(path).items()
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("quantization", ["bitsandbytes_4bit", "torchao_int8"])
def test_layers_that_come_and_go_change_not_one_bit_of_what_a_quantised_teacher_gives(
    settings_for: Make, tmp_path: Path, name: str, quantization: str
) -> None:
    if quantization == "torchao_int8":
        pytest.importorskip("torchao")
    asked = {"record": {"rounds": ["teacher", "student"], "trajectories": 1, "steps": (2, 2)}}
    found = []
    for how in ("none", "group"):
        settings = settings_for(name, tmp_path / how, **asked)
        found.append(walk(with_pipeline(settings, quantization=quantization, offload=how)))
    kept, moved = found
    assert kept.keys() == moved.keys()
    assert any("student" in key or "round-1" in key for key in kept)
    for key, tensor in kept.items():
        assert torch.equal(tensor, moved[key]), key


@pytest.fixture(scope="module")
def folded(settings_for: Make, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run on a teacher in 8 bits, adapter written."""
    with pytest.MonkeyPatch.context() as patch:
        quantised.let_bitsandbytes_use_the_cpu(patch)
        made = settings_for("sd3", tmp_path_factory.mktemp("folded"))
        settings = with_pipeline(made, quantization="bitsandbytes_8bit")
        walk(settings)
    return settings


def test_a_quantised_teachers_adapter_is_evaluated_but_never_fused(folded: Settings) -> None:
    results = api.evaluate(folded)
    assert results["student"]["denoiser_seconds_per_image_fused"] is None
    assert results["student"]["passes_per_image"] * 2 == results["teacher"]["passes_per_image"]
    with pytest.raises(InputError, match="--format fused: the run's weights are quantised"):
        api.deliver(folded, "fused")


def test_file_and_card_say_on_which_weights_it_was_trained(folded: Settings) -> None:
    metadata: Any = read_json(Path(folded.run) / "adapter" / METADATA)
    assert metadata["quantization"] == "bitsandbytes_8bit"
    card = (api.pack(folded).folder / "README.md").read_text(encoding="utf-8")
    assert "in fp32, linear layers quantised (`bitsandbytes_8bit`)" in card
    assert "Teacher and student ran with the linear layers that `bitsandbytes_8bit`" in card


def test_it_is_verified_against_the_base_in_its_own_weights(
    folded: Settings, saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = api.deliver(folded, "diffusers")
    (file,) = [verdict.path for verdict in made.verdicts]
    (verdict,) = verify(file, pipeline=str(saved("sd3")))
    assert not verdict.problems
    (verdict,) = verify(file, run=Path(folded.run))
    assert not verdict.problems
    (wrong,) = verify(file, pipeline=str(saved("flux")))
    assert wrong.problems


def test_where_its_library_is_missing_the_base_is_not_compared_and_that_is_said(
    folded: Settings,
    saved: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("guidefold.pipeline.quantization.find_spec", lambda _name: None)
    file = next((Path(folded.run) / "adapter").glob("*.safetensors"))
    (verdict,) = verify(file, pipeline=str(saved("sd3")))
    assert not verdict.problems
    assert "its base is not compared" in "".join(capsys.readouterr())
