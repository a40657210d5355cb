"""The output map: found by comparison, never guessed."""

from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from guidefold.ground.errors import UnfoldableError
from guidefold.listen.output_map import (
    OutputMap,
    find_output_map,
    find_scaling,
    one_map,
    output_tensor,
    rows_of,
)

RAW = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))

KNOWN = [
    pytest.param(RAW, OutputMap("whole"), "whole", id="whole"),
    pytest.param(-RAW, OutputMap("whole", negated=True), "whole, negated", id="negated"),
    pytest.param(
        RAW.chunk(2, dim=1)[0],
        OutputMap("first", 1),
        "first along dimension 1",
        id="learned variance",
    ),
    pytest.param(
        -RAW[:, :5],
        OutputMap("first", 1, negated=True),
        "first along dimension 1, negated",
        id="tokens, negated",
    ),
    pytest.param(RAW[:, :, :2], OutputMap("first", 2), "first along dimension 2", id="last one"),
    pytest.param(RAW[:, 3:], OutputMap("last", 1), "last along dimension 1", id="later frames"),
    pytest.param(RAW[:, None], OutputMap("whole"), "whole", id="a dimension of one more"),
]


@pytest.mark.parametrize(("model_output", "expected", "text"), KNOWN)
def test_a_known_map_is_found_named_and_gives_the_model_output(
    model_output: torch.Tensor, expected: OutputMap, text: str
) -> None:
    found = find_output_map(RAW, model_output)
    assert found == expected
    assert str(found) == text
    assert torch.equal(found(RAW, model_output.shape), model_output)
    assert OutputMap(*astuple(found)) == found


def test_a_model_output_in_another_precision_is_recognised() -> None:
    assert find_output_map(RAW.half(), RAW.half().float()) == OutputMap("whole")


@pytest.mark.parametrize(
    "model_output",
    [RAW * 2, RAW + 1e-6, RAW[:, 2:4], RAW[:, :4, :3], RAW.flatten(1), RAW.flip(0)],
    ids=["scaled", "shifted", "middle", "two parts", "reshaped", "rows reversed"],
)
def test_an_unknown_map_is_refused_by_name(model_output: torch.Tensor) -> None:
    with pytest.raises(UnfoldableError, match="in a way Guidefold does not know"):
        find_output_map(RAW, model_output)


@pytest.mark.parametrize(
    ("select", "part"),
    [("whole", slice(None)), ("first", slice(0, 5)), ("last", slice(3, None))],
)
@pytest.mark.parametrize("a", [-0.3, 12.0])
def test_a_map_mixed_with_the_state_is_found_from_two_noises(
    select: str, part: slice, a: float
) -> None:
    raws, shift = (RAW, RAW.flip(0)), torch.linspace(-2, 2, 8)[None, part, None]
    arrived = tuple(a * raw[:, part] + shift for raw in raws)
    found, scaling = find_scaling(raws, (arrived[0], arrived[1]))
    assert found == OutputMap(select, 0 if select == "whole" else 1, scaled=True)
    assert str(found).endswith("scaled")
    assert scaling.a == pytest.approx(a, rel=1e-6)
    learnt = found(RAW, arrived[0].shape)
    torch.testing.assert_close(scaling.apply(learnt), arrived[0])
    torch.testing.assert_close(scaling.invert(arrived[0]), learnt)


@pytest.mark.parametrize("arrived", [RAW.square(), RAW.flip(1)], ids=["curved", "shuffled"])
def test_what_is_not_affine_is_refused_by_name(arrived: torch.Tensor) -> None:
    other = RAW.roll(1, 2)
    with pytest.raises(UnfoldableError, match="in a way Guidefold does not know"):
        find_scaling((RAW, other), (arrived, other.square()))


@pytest.mark.parametrize(
    "output",
    [RAW, (RAW, 0), [RAW], Transformer2DModelOutput(sample=RAW)],
    ids=["tensor", "tuple", "list", "diffusers output"],
)
def test_the_prediction_is_the_first_entry(output: object) -> None:
    assert output_tensor(output) is RAW
    assert rows_of(output) == 2


def test_a_list_with_a_tensor_for_each_sample_is_stacked() -> None:
    output = ([RAW[0], RAW[1]],)
    assert torch.equal(output_tensor(output), RAW)
    assert rows_of(output) == 2


@pytest.mark.parametrize(
    "output", [([RAW, RAW[:1]], 0), "text"], ids=["several shapes", "no tensor"]
)
def test_a_denoiser_that_returns_no_tensor_is_refused(output: object) -> None:
    with pytest.raises(UnfoldableError, match=r"the denoiser returns (a|text) ?"):
        output_tensor(output)


def test_an_output_without_rows_counts_as_one() -> None:
    assert [rows_of(x) for x in (torch.tensor(1.0), SimpleNamespace(), RAW[:1])] == [1, 1, 1]


def test_a_step_without_the_part_that_is_dropped_has_the_map_of_the_others() -> None:
    last, whole = OutputMap("last", 1), OutputMap("whole")
    pairs = [(RAW, RAW[:, 3:]), (RAW[:, 3:], RAW[:, 3:])]
    assert [find_output_map(*pair) for pair in pairs] == [last, whole]
    assert one_map([last, whole], pairs) == [last, last]
    turned = [(RAW, RAW), (RAW, -RAW)]
    maps = [find_output_map(*pair) for pair in turned]
    assert one_map(maps, turned) == maps
