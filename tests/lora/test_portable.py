"""Which layers 'portable' goes without: by family, in one denoiser and in two."""

from guidefold.lora.portable import counted, unportable

WAN = ("blocks.0.attn2.to_q", "condition_embedder.time_proj", "patch_embedding", "proj_out")


def test_a_family_goes_without_its_own_layers_alone() -> None:
    assert unportable(WAN) == set(WAN[1:])
    assert unportable(["blocks.0.attn2.to_q", "proj_out"]) == set()  # of no known family
    assert unportable([]) == set()


def test_of_two_denoisers_in_one_module_each_goes_without_them() -> None:
    both = [f"{name}.{layer}" for name in ("transformer", "transformer_2") for layer in WAN]
    assert unportable(both) == {name for name in both if "blocks" not in name}


def test_numbers_are_counted_only_where_they_stand_alone() -> None:
    assert counted("blocks.12.ff.net.2") == "blocks.#.ff.net.#"
    assert counted("embedder.linear_1") == "embedder.linear_1"
