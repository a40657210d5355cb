"""Several denoisers behind one door stay what each of them is."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidefold.pipeline.denoisers import COMPONENT, as_one_module, denoisers


class Checkpointed(nn.Linear):
    _supports_gradient_checkpointing = True
    on = False

    def enable_gradient_checkpointing(self) -> None:
        self.on = True


@pytest.fixture
def parts() -> dict[str, nn.Module]:
    return {"transformer": Checkpointed(3, 3), "transformer_2": Checkpointed(3, 3)}


def test_each_is_called_by_its_name_with_what_the_others_do_not_see(
    parts: dict[str, nn.Module],
) -> None:
    state, door = torch.ones(2, 3), as_one_module(parts)
    for name, part in parts.items():
        assert torch.equal(door(state, **{COMPONENT: name}), part(state))
        assert torch.equal(door(input=state, component=name), part(state))
    with pytest.raises(AttributeError, match="transformer_3"):
        door(state, component="transformer_3")


def test_weights_keep_their_places_under_their_part_s_name(parts: dict[str, nn.Module]) -> None:
    found = dict(as_one_module(parts).named_parameters())
    assert found.keys() == {f"{n}.{p}" for n in parts for p in ("weight", "bias")}
    assert all(found[f"{name}.weight"] is part.weight for name, part in parts.items())


def test_a_single_denoiser_has_no_door(parts: dict[str, nn.Module]) -> None:
    single = parts["transformer"]
    assert as_one_module({"transformer": single}) is single


def test_a_pipeline_s_denoisers_are_taken_by_name_in_the_order_asked(
    parts: dict[str, nn.Module],
) -> None:
    names = ("transformer_2", "transformer")
    found = denoisers(SimpleNamespace(**parts, vae=nn.Identity()), names)
    assert tuple(found) == names
    assert all(found[name] is parts[name] for name in names)


def test_checkpointing_is_there_if_each_has_it_and_reaches_each(
    parts: dict[str, nn.Module],
) -> None:
    door = as_one_module(parts)
    assert door._supports_gradient_checkpointing
    door.enable_gradient_checkpointing()
    assert [part.on for part in parts.values()] == [True, True]
    mixed = as_one_module({**parts, "plain": nn.Linear(3, 3)})
    assert not mixed._supports_gradient_checkpointing


def test_what_a_library_noted_on_quantised_parts_is_on_the_door(
    parts: dict[str, nn.Module],
) -> None:
    assert not hasattr(as_one_module(parts), "is_loaded_in_4bit")
    for part in parts.values():
        part.is_loaded_in_4bit = True
    assert as_one_module(parts).is_loaded_in_4bit
