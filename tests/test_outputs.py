"""The output map: found by comparison, never guessed."""

from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from guidefold.errors import UnfoldableError
from guidefold.outputs import OutputMap, find_output_map, output_tensor, rows_of

RAW = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))

KNOWN = [
    pytest.param(RAW, OutputMap("whole"), "whole", id="whole"),
    pytest.param(-RAW, OutputMap("whole", negated=True), "whole, negated", id="negated"),
    pytest.param(
        RAW.chunk(2, dim=1)[0],
        OutputMap("prefix", 1),
        "prefix along dimension 1",
        id="learned variance",
    ),
    pytest.param(
        -RAW[:, :5],
        OutputMap("prefix", 1, negated=True),
        "prefix along dimension 1, negated",
        id="token prefix, negated",
    ),
    pytest.param(
        RAW[:, :, :2], OutputMap("prefix", 2), "prefix along dimension 2", id="last dimension"
    ),
]


@pytest.mark.parametrize(("model_output", "expected", "text"), KNOWN)
def test_a_known_map_is_found_named_and_gives_the_model_output(
    model_output: torch.Tensor, expected: OutputMap, text: str
) -> None:
    found = find_output_map(RAW, model_output)
    assert found == expected
    assert str(found) == text
    assert torch.equal(found(RAW, model_output.shape[found.dim]), model_output)
    assert OutputMap(*astuple(found)) == found


def test_a_model_output_in_another_precision_is_recognised() -> None:
    assert find_output_map(RAW.half(), RAW.half().float()) == OutputMap("whole")


@pytest.mark.parametrize(
    "model_output",
    [RAW * 2, RAW + 1e-6, RAW[:, 4:], RAW[:, :4, :3], RAW.flatten(1), RAW.flip(0)],
    ids=["scaled", "shifted", "suffix", "two prefixes", "reshaped", "rows reversed"],
)
def test_an_unknown_map_is_refused_by_name(model_output: torch.Tensor) -> None:
    with pytest.raises(UnfoldableError, match="in a way Guidefold does not know"):
        find_output_map(RAW, model_output)


@pytest.mark.parametrize(
    "output",
    [RAW, (RAW, 0), [RAW], Transformer2DModelOutput(sample=RAW)],
    ids=["tensor", "tuple", "list", "diffusers output"],
)
def test_the_prediction_is_the_first_entry(output: object) -> None:
    assert output_tensor(output) is RAW
    assert rows_of(output) == 2


@pytest.mark.parametrize("output", [([RAW], 0), "text"], ids=["list of tensors", "no tensor"])
def test_a_denoiser_that_returns_no_tensor_is_refused(output: object) -> None:
    with pytest.raises(UnfoldableError, match="the denoiser returns a"):
        output_tensor(output)


def test_an_output_without_rows_counts_as_one() -> None:
    assert [rows_of(x) for x in (torch.tensor(1.0), SimpleNamespace(), RAW[:1])] == [1, 1, 1]
