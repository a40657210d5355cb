"""Names of formats: there and back, alpha folded in, precision that does not lose the adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from guidefold.deliver.formats import alphas_of, cast, format_of, named, of_one_rank, read, unfit
from guidefold.deliver.layer_names import LayerNames, layer_names
from guidefold.ground.errors import InputError, MismatchError, NonFiniteError

FILE = Path("a.safetensors")
CONV = "down_blocks.1.resnets.0.conv1"
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, built: Callable[[str], DiffusionPipeline]) -> LayerNames:
    return layer_names(built(request.param).unet, "unet")


def pairs(rank: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        f"{CONV}.lora_A.weight": torch.randn(rank, 8, 3, 3),
        f"{CONV}.lora_B.weight": torch.randn(16, rank, 1, 1),
        f"{Q}.lora_A.weight": torch.randn(rank, 16),
        f"{Q}.lora_B.weight": torch.randn(16, rank),
    }


def update(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    down, up = (tensors[f"{layer}.{part}.weight"].flatten(1) for part in ("lora_A", "lora_B"))
    return up @ down


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "peft"])
def test_written_and_read_back_a_file_is_the_same(base: LayerNames, kind: str) -> None:
    written = named(kind, pairs(), base)
    assert format_of(written.keys(), FILE) == kind
    found = read(written, kind, base, {})
    assert found.keys() == pairs().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in pairs().items())


def test_lycoris_s_own_prefix_is_read_like_kohya_s(base: LayerNames) -> None:
    plain = pairs()
    written = {
        name.replace("lora_unet_", "lycoris_"): tensor
        for name, tensor in named("kohya", plain, base).items()
    }
    assert format_of(written.keys(), FILE) == "kohya"
    found = read(written, "kohya", base, {})
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_kohya_s_alpha_is_the_rank(base: LayerNames) -> None:
    written = named("kohya", pairs(), base)
    assert {float(t) for n, t in written.items() if n.endswith(".alpha")} == {3.0}
    assert len(written) == 6


def test_alpha_is_folded_into_the_second_half(base: LayerNames) -> None:
    written = named("kohya", pairs(4), base)
    halved = {n: t / 2 if n.endswith(".alpha") else t for n, t in written.items()}
    found = read(halved, "kohya", base, {})
    for layer in (CONV, Q):
        torch.testing.assert_close(update(found, layer), update(pairs(4), layer) / 2)


@pytest.mark.parametrize(
    ("about", "factor"),
    [
        ({"lora_alpha": 16}, 4.0),
        ({"lora_alpha": 4, "alpha_pattern": {"^mid_block.*to_q": 8}}, 2.0),
        ({"lora_alpha": 4, "use_rslora": True}, 2.0),
        ({}, 1.0),
    ],
)
def test_alpha_of_the_configuration_is_folded_in(
    base: LayerNames, about: dict[str, object], factor: float
) -> None:
    written = named("peft", pairs(4), base)
    found = read(written, "peft", base, about)
    torch.testing.assert_close(update(found, Q), update(pairs(4), Q) * factor)


def test_diffusers_metadata_says_alpha() -> None:
    header = {"lora_adapter_metadata": '{"unet.lora_alpha": 8, "text_encoder.lora_alpha": 2}'}
    assert alphas_of(header, "unet", Path("a.safetensors")) == {"lora_alpha": 8}
    assert alphas_of({}, "unet", Path("a.safetensors")) == {}


def test_old_names_of_attention_layers_are_read(base: LayerNames) -> None:
    old = Q.replace(".to_q", ".processor.to_q")
    tensors = {
        f"unet.{old}_lora.down.weight": torch.ones(2, 16),
        f"unet.{old}_lora.up.weight": torch.ones(16, 2),
    }
    assert read(tensors, format_of(tensors, FILE), base, {}).keys() == {
        f"{Q}.lora_A.weight",
        f"{Q}.lora_B.weight",
    }


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_conv_in.hada_w1_a", "LoHa"),
        ("lora_unet_conv_in.lokr_w1", "LoKr"),
        ("lora_unet_conv_in.dora_scale", "DoRA"),
        ("lora_te_text_model_encoder.alpha", "text encoder"),
        ("strange_lora", "no format"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_key(key: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        format_of([key, "lora_unet_conv_in.lora_down.weight"], FILE)
    assert f"'{key}'" in str(caught.value)


def test_a_layer_of_another_denoiser_is_refused_by_its_key(base: LayerNames) -> None:
    with pytest.raises(MismatchError, match=r"'unet.nowhere.lora_A.weight' belongs to no layer"):
        read({"unet.nowhere.lora_A.weight": torch.ones(1)}, "diffusers", base, {})


def test_half_a_pair_is_refused(base: LayerNames) -> None:
    with pytest.raises(MismatchError, match="one half"):
        read({f"unet.{Q}.lora_A.weight": torch.ones(1, 1)}, "diffusers", base, {})


def test_ranks_are_made_one_without_changing_the_update() -> None:
    mixed = pairs(2) | {n: t for n, t in pairs(5).items() if n.startswith(Q)}
    found = of_one_rank(mixed)
    assert {t.shape[0] for n, t in found.items() if "lora_A" in n} == {5}
    for layer in (CONV, Q):
        torch.testing.assert_close(update(found, layer), update(mixed, layer))


def test_values_that_half_precision_loses_are_counted() -> None:
    small = {n: t * 1e-8 for n, t in pairs().items()}
    with pytest.raises(NonFiniteError, match=r"99\.7% of the values become zero"):
        cast(small, torch.float16)
    assert cast(small, torch.bfloat16)[f"{Q}.lora_A.weight"].dtype == torch.bfloat16
    with pytest.raises(NonFiniteError, match="infinite"):
        cast({n: t * 1e6 for n, t in pairs().items()}, torch.float16)


def test_zeros_are_no_loss() -> None:
    assert cast({"a": torch.zeros(4)}, torch.float16)["a"].dtype == torch.float16


def test_a_format_that_does_not_fit_says_why(
    base: LayerNames, built: Callable[[str], DiffusionPipeline]
) -> None:
    motion = layer_names(built("animatediff").unet, "unet")
    assert unfit("kohya", base, "diffusers", base.layers) == ""
    assert "motion_modules" in unfit("kohya", motion, "diffusers", motion.layers)
    assert "UNets" in unfit("kohya", LayerNames(frozenset()), "diffusers", [])
    assert "no LoRA loader" in unfit("diffusers", base, "peft", [])
    assert "transformers" in unfit("transformer", base, "diffusers", [])
    assert unfit("peft", base, "peft", base.layers) == ""


def test_the_original_code_s_names_there_and_back(
    built: Callable[[str], DiffusionPipeline],
) -> None:
    names = layer_names(built("wan").transformer, "transformer")
    tensors = {f"{la}.lora_{side}.weight": torch.rand(2, 2) for la in names.layers for side in "AB"}
    written = named("original", tensors, names)
    assert "diffusion_model.blocks.1.self_attn.q.lora_A.weight" in written
    assert format_of(written.keys(), FILE) == "original"
    found = read(written, "original", names, {})
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    unet = layer_names(built("sd15").unet, "unet")
    assert "no client needs" in unfit("original", unet, "diffusers", ["conv_in"])
