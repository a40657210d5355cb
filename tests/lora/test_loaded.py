"""The Python that loads a written adapter: one call for each denoiser."""

import ast

import pytest

from guidefold.lora.loaded import loading_code


@pytest.mark.parametrize("loader", ["diffusers", "peft"])
def test_of_two_denoisers_both_adapters_are_loaded(loader: str) -> None:
    lines = loading_code(loader, ("transformer", "transformer_2"), "runs/mine/adapter")
    calls = [n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.Call)]
    assert len(calls) == 2
    assert all('runs/mine/adapter"' in ast.unparse(c).replace("'", '"') for c in calls)
    assert "transformer_2" in ast.unparse(calls[1])
    # diffusers ignores a sub-folder where the folder itself has a file of the same name.
    assert loader == "peft" or "subfolder" not in "".join(lines)


def test_one_denoiser_s_adapter_is_one_call() -> None:
    lines = loading_code("diffusers", ("unet",), "OWNER/NAME")
    (call,) = (n for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.Call))
    assert ast.unparse(call.func) == "pipeline.load_lora_weights"
