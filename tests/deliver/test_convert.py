from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guidefold.deliver.convert import convert
from guidefold.ground.errors import InputError


@pytest.mark.parametrize(("kind", "file"), [("kohya", ""), ("peft", "adapter_model.safetensors")])
def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, kind: str, file: str) -> None:
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_file({"lora_unet_conv_in.lora_up.weight": torch.ones(1)}, source)
    there = out / file
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there already"):
        convert(source, kind, "nowhere", out)
    assert there.read_bytes() == b"mine"
