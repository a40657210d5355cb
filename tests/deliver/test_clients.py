"""The clients' rules on lists of keys made by hand: good ones, and what each is known to lose."""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from diffusers import DiffusionPipeline

from guidefold.deliver.clients import (
    CLIENTS,
    a1111,
    comfyui,
    diffusers,
    forge,
    invokeai,
    kohya_stem,
    peft,
    read_by_clients,
    sd_scripts,
    stem,
)
from guidefold.deliver.layer_names import LayerNames, client_facts, layer_names

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"


def kohya(*names: str) -> list[str]:
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    return [f"{kohya_stem(name)}.{part}" for name in names for part in parts]


def dotted(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}{n}.{part}.weight" for n in names for part in ("lora_A", "lora_B")]


@pytest.fixture(scope="module")
def plain(built: Callable[[str], DiffusionPipeline]) -> LayerNames:
    return layer_names(built("sd15").unet, "unet")


@pytest.fixture(scope="module")
def sized(built: Callable[[str], DiffusionPipeline]) -> LayerNames:
    return layer_names(built("sdxl").unet, "unet")


@pytest.fixture(scope="module")
def blocks(built: Callable[[str], DiffusionPipeline]) -> LayerNames:
    return layer_names(built("flux").transformer, "transformer")


UNET_READERS = (diffusers, comfyui, forge, a1111, invokeai)


@pytest.mark.parametrize("rule", UNET_READERS)
def test_kohya_s_keys_are_read(
    plain: LayerNames, sized: LayerNames, rule: Callable[..., object]
) -> None:
    assert rule(kohya(*plain.layers), plain) == []
    assert rule(kohya(*sized.original.values()), sized) == []


@pytest.mark.parametrize("rule", [*UNET_READERS, sd_scripts])
def test_a_layer_that_is_not_there_is_dropped(
    plain: LayerNames, rule: Callable[..., object]
) -> None:
    wrong = kohya("down_blocks.9.resnets.0.conv1")
    assert rule([*kohya(CONV), *wrong], plain) == sorted(wrong)


def test_comfyui_loses_diffusers_attention_but_not_the_other_layers(plain: LayerNames) -> None:
    lost = dotted("unet.", Q, OUT)
    assert comfyui([*lost, *dotted("unet.", CONV)], plain) == sorted(lost)


def test_comfyui_reads_attention_by_its_old_names(plain: LayerNames) -> None:
    old = Q.replace(".to_q", ".processor.to_q")
    keys = [f"unet.{old}_lora.{side}.weight" for side in ("up", "down")]
    out = OUT.replace(".to_out.0", ".processor.to_out")
    keys += [f"unet.{out}_lora.{side}.weight" for side in ("up", "down")]
    assert comfyui(keys, plain) == []
    assert diffusers(keys, plain) == []


def test_forge_gives_up_on_a_file_beyond_twelve_unknown_keys(plain: LayerNames) -> None:
    strange = [f"strange.{number}" for number in range(13)]
    assert forge([*kohya(CONV), *strange[:12]], plain) == sorted(strange[:12])
    assert forge([*kohya(CONV), *strange], plain) == sorted([*kohya(CONV), *strange])


def test_a1111_reads_no_dots_and_no_added_embedding_by_its_diffusers_name(
    plain: LayerNames, sized: LayerNames
) -> None:
    assert a1111(dotted("unet.", CONV), plain) == sorted(dotted("unet.", CONV))
    added = kohya("add_embedding.linear_1")
    assert a1111(added, sized) == sorted(added)
    assert a1111(kohya("label_emb.0.0"), sized) == []


def test_invokeai_refuses_a_file_with_another_prefix_or_both_kinds_of_names(
    sized: LayerNames,
) -> None:
    good = kohya(*sized.original.values())
    for bad in ("unet.conv_in.lora_A.weight", *kohya(Q)[:1]):
        assert invokeai([*good, bad], sized) == sorted([*good, bad])


def test_invokeai_knows_no_original_names_on_a_plain_unet(plain: LayerNames) -> None:
    keys = kohya(plain.original[CONV])
    assert invokeai(keys, plain) == sorted(keys)


def test_sd_scripts_draws_without_the_outer_layers(plain: LayerNames) -> None:
    outer = kohya("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
    assert sd_scripts(kohya(*plain.layers), plain) == sorted(outer)


def test_diffusers_reads_original_names_where_it_is_told_of_sizes_only(
    plain: LayerNames, sized: LayerNames
) -> None:
    assert diffusers(kohya(sized.original[CONV]), sized) == []
    keys = kohya(plain.original[CONV])
    assert diffusers(keys, plain) == sorted(keys)


def test_diffusers_passes_over_another_prefix(plain: LayerNames) -> None:
    assert diffusers(dotted("unet.", Q, CONV), plain) == []
    keys = dotted("transformer.", CONV)
    assert diffusers(keys, plain) == sorted(keys)


def test_peft_reads_its_own_prefix_alone(plain: LayerNames) -> None:
    assert peft(dotted("base_model.model.", Q, CONV), plain) == []
    assert peft(dotted("unet.", Q), plain) == sorted(dotted("unet.", Q))


@pytest.mark.parametrize("rule", [diffusers, comfyui, forge, invokeai])
def test_a_transformer_s_keys_are_read(blocks: LayerNames, rule: Callable[..., object]) -> None:
    assert rule(dotted("transformer.", *blocks.layers), blocks) == []


def test_invokeai_tells_a_transformer_by_two_attention_layers(blocks: LayerNames) -> None:
    keys = dotted("transformer.", "proj_out", "x_embedder")
    assert invokeai(keys, blocks) == sorted(keys)


def test_who_cannot_load_at_all_is_not_said_to_drop(blocks: LayerNames, plain: LayerNames) -> None:
    keys = dotted("transformer.", "proj_out")
    assert a1111(keys, blocks) is None
    readings = read_by_clients(keys, "transformer", blocks, "peft")
    found = {reading.client: reading for reading in readings}
    assert found.keys() == CLIENTS.keys()
    assert found["A1111"].dropped is None
    assert found["diffusers"].dropped is None
    assert not found["A1111"].failed
    assert found["ComfyUI"].meant


def test_a_client_that_a_format_is_meant_for_fails_by_what_it_drops(plain: LayerNames) -> None:
    keys = [*kohya(CONV), "lora_unet_nowhere.alpha"]
    found = {r.client: r for r in read_by_clients(keys, "kohya", plain, "diffusers")}
    assert found["ComfyUI"].failed
    assert found["ComfyUI"].dropped == ("lora_unet_nowhere.alpha",)
    assert not found["sd-scripts"].failed  # told of, never held against a file


def test_the_stem_of_a_key() -> None:
    assert stem("lora_unet_conv_in.lora_down.weight") == "lora_unet_conv_in"
    assert stem("unet.a.to_q_lora.up.weight") == "unet.a.to_q"
    assert stem("unet.a.lora.up.weight") == "unet.a"
    assert stem("unet.a.weight") == ""


def test_every_rule_has_a_source_with_a_date() -> None:
    facts = client_facts()
    known = facts["source"]
    assert set(known) == set(CLIENTS)
    for entry in (*facts["base"], *facts["layout"], *facts["use"]):
        assert entry["read_in"]
        assert set(entry["read_in"]) <= set(known)


@dataclass(frozen=True)
class Source:
    """Where a client's rules were read; the date is the commit's, or the day of reading."""

    date: datetime.date
    commit: str = ""
    version: str = ""
    note: str = ""


@pytest.mark.parametrize("client", CLIENTS)
def test_a_source_has_a_commit_or_a_version_or_says_that_none_was_noted(client: str) -> None:
    source = Source(**client_facts()["source"][client])
    assert source.date <= datetime.date.today()
    assert [bool(source.commit), bool(source.version), bool(source.note)].count(True) == 1
    assert re.fullmatch(r"([0-9a-f]{40})?", source.commit)
    assert source.note in ("", f"read in {client}, version not noted")
