"""The clients' rules on lists of keys made by hand: good ones, and what each is known to lose."""

import datetime
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from guidefold.deliver.clients import (
    CLIENTS,
    OLDER,
    Reading,
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
from guidefold.deliver.formats import named
from guidefold.deliver.layer_names import LayerNames, client_facts, layer_names
from guidefold.lora.portable import unportable

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


@pytest.mark.parametrize("rule", [diffusers, comfyui, forge])
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


FAMILIES = ("sd15", "sdxl", "sd3", "flux", "chroma", "qwen_image", "wan", "pixart", "z_image")


@pytest.fixture(scope="module")
def of(built: Callable[[str], DiffusionPipeline]) -> Callable[[str], LayerNames]:
    """A zoo pipeline's layer names."""

    def names(name: str) -> LayerNames:
        component = "unet" if name in ("sd15", "sdxl") else "transformer"
        return layer_names(getattr(built(name), component), component)

    return names


def readings(names: LayerNames, kind: str, layers: Collection[str]) -> dict[str, Reading]:
    """How each client reads a file of these layers."""
    tensors = {f"{la}.lora_{side}.weight": torch.zeros(1, 1) for la in layers for side in "AB"}
    keys = named(kind, tensors, names).keys()  # type: ignore[arg-type]
    return {r.client: r for r in read_by_clients(keys, kind, names, "diffusers")}


def main_format(names: LayerNames) -> str:
    return "kohya" if names.kohya else "transformer"


@pytest.mark.parametrize("name", FAMILIES)
def test_portable_goes_without_what_some_client_is_known_not_to_read_and_no_more(
    of: Callable[[str], LayerNames], name: str
) -> None:
    """Two tables of two wings say the same: the presets' and the clients'."""
    names = of(name)
    mute = {c for c, r in names.layout.read_by.items() if r.note} if names.layout else set()
    gaps = {layer for client in CLIENTS if client not in mute for layer in names.gap(client)}
    assert unportable(names.layers) == gaps
    if gaps:
        found = readings(names, main_format(names), names.layers)
        assert any(reading.gap for reading in found.values())
    found = readings(names, main_format(names), names.layers - gaps)
    assert all(not r.dropped for r in found.values() if r.meant)
    assert not any(r.gap for c, r in found.items() if c not in mute)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_with_every_layer_fails_for_no_client(
    of: Callable[[str], LayerNames], name: str
) -> None:
    names = of(name)
    assert not any(r.failed for r in readings(names, main_format(names), names.layers).values())


def test_invokeai_refuses_a_flux_file_with_layers_that_it_does_not_know(
    blocks: LayerNames,
) -> None:
    found = readings(blocks, "transformer", blocks.layers)["InvokeAI"]
    assert (found.meant, found.gap, found.loss(2 * len(blocks.layers))) == (
        False,
        True,
        "refuses the file",
    )
    less = blocks.layers - blocks.gap("InvokeAI")
    assert "norm_out.linear" in blocks.gap("InvokeAI")
    assert readings(blocks, "transformer", less)["InvokeAI"].meant


def test_comfyui_reads_wan_by_its_original_names_alone(of: Callable[[str], LayerNames]) -> None:
    names = of("wan")
    plain = readings(names, "transformer", names.layers)["ComfyUI"]
    assert len(plain.dropped or ()) == 2 * len(names.layers)
    assert not plain.meant
    own = readings(names, "original", names.layers)["ComfyUI"]
    assert (own.meant, own.dropped) == (True, ())


def test_invokeai_drops_what_lies_outside_of_wan_s_blocks(of: Callable[[str], LayerNames]) -> None:
    names = of("wan")
    found = readings(names, "transformer", names.layers)["InvokeAI"]
    outer = {layer for layer in names.layers if not layer.startswith("blocks.")}
    assert {stem(key).removeprefix("transformer.") for key in found.dropped or ()} == outer
    assert found.gap


def test_the_original_names_of_wan_are_those_that_diffusers_converts() -> None:
    """Independent implementation: diffusers' own converter takes them back to its names."""
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=8, ffn_dim=8, num_layers=2, image_dim=8, added_kv_proj_dim=12,
        )  # fmt: skip
    names = layer_names(model, "transformer")
    assert names.native.keys() == names.layers
    weights: dict[str, Any] = {f"{own}.weight": layer for layer, own in names.native.items()}
    converted = convert_wan_transformer_to_diffusers(weights)
    assert converted == {f"{layer}.weight": layer for layer in names.layers}


def test_comfyui_drops_chroma_s_guidance_layers_and_invokeai_fails(
    of: Callable[[str], LayerNames],
) -> None:
    names = of("chroma")
    found = readings(names, "transformer", names.layers)
    lost = {stem(key) for key in found["ComfyUI"].dropped or ()}
    assert lost == {
        f"transformer.{la}" for la in names.layers if la.startswith("distilled_guidance_layer.")
    }
    assert found["InvokeAI"].loss(1) == "takes the file for a Flux LoRA and fails"


@pytest.mark.parametrize(
    ("name", "client", "words"),
    [
        ("sd3", "A1111", "attention layers alone"),
        ("sd3", "InvokeAI", "as a Qwen-Image LoRA"),
        ("pixart", "InvokeAI", "as a Qwen-Image LoRA"),
    ],
)
def test_a_client_that_takes_a_file_for_another_is_named(
    of: Callable[[str], LayerNames], name: str, client: str, words: str
) -> None:
    found = readings(of(name), "transformer", of(name).layers)[client]
    assert not found.meant
    assert words in found.note


@pytest.mark.parametrize("name", ["qwen_image", "z_image"])
def test_comfyui_and_invokeai_read_the_whole_file(
    of: Callable[[str], LayerNames], name: str
) -> None:
    found = readings(of(name), "transformer", of(name).layers)
    assert [found[client].dropped for client in ("ComfyUI", "InvokeAI")] == [(), ()]


OUTER = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


def test_diffusers_own_files_are_read_by_older_ones_and_in_part_by_sd_cpp(
    plain: LayerNames,
) -> None:
    outer = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    for layers, lost in ((plain.layers, outer), (plain.layers - outer, set[str]())):
        keys = dotted("unet.", *layers)
        found = {r.client: r for r in read_by_clients(keys, "diffusers", plain, "diffusers")}
        assert [name for name, r in found.items() if r.meant or r.gap] == [
            *("diffusers", "diffusers before 0.39", "sd.cpp")
        ]
        assert found["diffusers before 0.39"].dropped == ()
        assert found["sd.cpp"].dropped == tuple(sorted(dotted("unet.", *lost)))
        assert found["sd.cpp"].gap == bool(lost)


def test_older_diffusers_loses_four_layers_and_refuses_sdxl(
    plain: LayerNames, sized: LayerNames
) -> None:
    found = readings(plain, "kohya", plain.layers)[OLDER]
    assert found.dropped == tuple(sorted(kohya(*OUTER)))
    assert found.gap
    refused = readings(sized, "kohya", sized.layers)[OLDER]
    assert len(refused.dropped or ()) == 3 * len(sized.layers)
    assert refused.gap
    assert readings(plain, "diffusers", plain.layers)[OLDER].dropped == ()


def test_stable_diffusion_cpp_knows_the_outer_convolutions_by_original_names_alone(
    plain: LayerNames, sized: LayerNames
) -> None:
    lost = tuple(sorted(kohya(*OUTER)))
    assert readings(plain, "kohya", plain.layers)["sd.cpp"].dropped == lost
    found = readings(sized, "kohya", sized.layers)["sd.cpp"]
    names = ("time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2")
    assert found.dropped == tuple(sorted(kohya(*names)))


def test_comfyui_reads_lycoris_s_own_prefix(plain: LayerNames) -> None:
    keys = [key.replace("lora_unet_", "lycoris_") for key in kohya(*plain.layers)]
    assert comfyui(keys, plain) == []
    assert a1111(keys, plain) == sorted(keys)


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
