"""An adapter in stock diffusers beside what users stack on it: LoRAs, embeddings, control, images.

Everything is loaded and switched by diffusers alone, as the README says. Where there is a closed
form it is the reference: the base weights with every update added into them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from safetensors.torch import load_file, save_file
from zoo.entry import waken

from guidefold.deliver.export import export
from guidefold.ground.errors import InputError, PipelineError
from guidefold.lora.adapter import attach
from guidefold.pipeline.open import open_pipeline
from guidefold.run.settings import Settings
from guidefold.train.distill import distill

# peft says so of every second LoRA.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning:peft")

STEPS = 3
RANK, ALPHA = 3, 1.5
STYLED = (
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.mid_block.attentions.0.proj_in",
    "unet.time_embedding.linear_1",
    "text_encoder.encoder.layers.0.mlp.fc1",
)
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
BOTH = ["guidance", "style"]
IMAGE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
Lora = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""``(down, up)`` of each layer, what alpha does folded into ``up``."""


@pytest.fixture(scope="module")
def source(saved: Callable[[str], Path]) -> Path:
    return saved("sd15")


def train(settings: Settings) -> Path:
    distill(settings)
    return export(settings)


@pytest.fixture(scope="module")
def adapter(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The adapter's folder of a tiny trained run; two large steps, so that it shows."""
    folder = tmp_path_factory.mktemp("trained")
    quick = {"preview_prompts": 0, "learning_rate": 0.05}
    return train(settings_for("sd15", folder, distill=quick))


@pytest.fixture(scope="module")
def guidance(adapter: Path) -> Lora:
    tensors = load_file(adapter / "pytorch_lora_weights.safetensors")
    down, up = ".lora_A.weight", ".lora_B.weight"
    layers = [name.removesuffix(down) for name in tensors if name.endswith(down)]
    return {layer: (tensors[layer + down], tensors[layer + up]) for layer in layers}


@pytest.fixture(scope="module")
def style(source: Path) -> Lora:
    """An unrelated LoRA: a rank, an alpha and layers of its own, one of them in the encoder."""
    draws, pipeline = torch.Generator().manual_seed(1), stock(source)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws) / 5

    made = {}
    for name in STYLED:
        rows, columns, *window = weight_of(pipeline, name).shape
        up = normals(rows, RANK, *(1 for _ in window))
        made[name] = normals(RANK, columns, *window), up * ALPHA / RANK
    return made


@pytest.fixture(scope="module")
def style_file(style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kohya(style, tmp_path_factory.mktemp("style") / "style.safetensors")


def write_kohya(lora: Lora, path: Path) -> Path:
    """As kohya's trainer writes a LoRA: alpha beside the tensors."""
    tensors = {}
    for name, (down, up) in lora.items():
        component, _, layer = name.partition(".")
        key = (KOHYA[component] + layer).replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up * RANK / ALPHA
        tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


def stock(source: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(source, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def student(source: Path, adapter: Path) -> Any:
    """A stock pipeline with the adapter."""
    return with_loras(source, guidance=adapter)


def with_loras(source: Path, **files: Path) -> Any:
    """A stock pipeline with LoRAs loaded in the order given."""
    pipeline = stock(source)
    for name, path in files.items():
        pipeline.load_lora_weights(path, adapter_name=name)
    return pipeline


def weight_of(pipeline: Any, name: str) -> torch.Tensor:
    component, _, layer = name.partition(".")
    return getattr(pipeline, component).get_submodule(layer).weight.data


def summed(source: Path, *parts: tuple[Lora, float]) -> Any:
    """A plain pipeline: base weights + strength * up @ down, summed over LoRAs."""
    pipeline = stock(source)
    for lora, strength in parts:
        for name, (down, up) in lora.items():
            weight_of(pipeline, name).add_(torch.tensordot(up.flatten(1), down, 1), alpha=strength)
    return pipeline


def draw(pipeline: Any, prompt: str = "a red cat", **changes: Any) -> torch.Tensor:
    """The last latents, guidance off unless told otherwise."""
    call = {
        "height": 16,
        "width": 16,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    pipeline.set_progress_bar_config(disable=True)
    return torch.as_tensor(pipeline(prompt, **call | changes)[0])


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-5)


def differ(*pictures: torch.Tensor) -> bool:
    """No two are alike."""
    pairs = [(a, b) for n, a in enumerate(pictures) for b in pictures[:n]]
    return all(float((a - b).abs().max()) > 1e-2 for a, b in pairs)


@contextmanager
def rows_of(module: torch.nn.Module) -> Iterator[list[int]]:
    """The samples in each call of a module."""
    seen: list[int] = []

    def hear(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(len(args[0] if args else kwargs["sample"]))

    hook = module.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def strengths(denoiser: torch.nn.Module) -> dict[str, float]:
    """Each adapted layer, with the adapter's strength where it is at work."""
    return {
        name: module.scaling["guidance"] if "guidance" in module.active_adapters else 0.0
        for name, module in denoiser.named_modules()
        if "guidance" in getattr(module, "scaling", ())
    }


# Another LoRA


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]], ids="-".join)
def test_beside_a_style_lora_it_is_the_sum_of_both(
    source: Path,
    adapter: Path,
    guidance: Lora,
    style: Lora,
    style_file: Path,
    order: Sequence[str],
) -> None:
    files = {"guidance": adapter, "style": style_file}
    pipeline = with_loras(source, **{name: files[name] for name in order})
    pipeline.set_adapters(BOTH, [1.0, 0.7])
    with rows_of(pipeline.unet) as rows:
        picture = draw(pipeline)
    assert rows == [1] * STEPS
    assert same(picture, draw(summed(source, (guidance, 1.0), (style, 0.7))))
    alone = [draw(summed(source, part)) for part in ((guidance, 1.0), (style, 0.7))]
    assert differ(picture, draw(stock(source)), *alone)


def test_the_dial_moves_while_the_style_is_held(
    student: Any, source: Path, guidance: Lora, style: Lora, style_file: Path
) -> None:
    student.load_lora_weights(style_file, adapter_name="style")
    for strength in (0.0, 0.5, 1.25):
        student.set_adapters(BOTH, [strength, 0.7])
        wanted = summed(source, (guidance, strength), (style, 0.7))
        assert same(draw(student), draw(wanted))


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]], ids="-".join)
def test_of_two_loaded_loras_only_the_last_works_until_both_are_set(
    source: Path,
    adapter: Path,
    guidance: Lora,
    style: Lora,
    style_file: Path,
    order: Sequence[str],
) -> None:
    files = {"guidance": adapter, "style": style_file}
    pipeline = with_loras(source, **{name: files[name] for name in order})
    encoder = {n: part for n, part in style.items() if n.startswith("text_encoder.")}
    in_words = draw(summed(source, (guidance, 1.0), (encoder, 1.0)))
    last = {"style": draw(summed(source, (style, 1.0))), "guidance": in_words}
    assert same(draw(pipeline), last[order[-1]])  # in each component by itself
    pipeline.set_adapters("guidance", 0.5)  # the README's dial, which names one
    assert same(draw(pipeline), draw(summed(source, (guidance, 0.5))))


def test_a_scale_for_the_call_turns_the_dial_too(
    student: Any, source: Path, guidance: Lora, style: Lora, style_file: Path
) -> None:
    student.load_lora_weights(style_file, adapter_name="style")
    student.set_adapters(BOTH, [1.0, 0.7])
    picture = draw(student, cross_attention_kwargs={"scale": 0.5})
    assert same(picture, draw(summed(source, (guidance, 0.5), (style, 0.35))))


def test_both_are_fused_and_taken_out_again(
    student: Any, source: Path, guidance: Lora, style: Lora, style_file: Path
) -> None:
    student.load_lora_weights(style_file, adapter_name="style")
    student.set_adapters(BOTH, [1.0, 0.7])
    wanted = summed(source, (guidance, 1.0), (style, 0.7))
    picture = draw(wanted)
    student.fuse_lora(adapter_names=BOTH)
    assert same(draw(student), picture)
    for name in guidance.keys() | style.keys():
        assert same(weight_of(student, f"{name}.base_layer"), weight_of(wanted, name)), name
    student.unfuse_lora()
    assert same(draw(student), picture)
    student.set_adapters(BOTH, [0.5, 0.7])
    assert same(draw(student), draw(summed(source, (guidance, 0.5), (style, 0.7))))
    student.delete_adapters("style")
    student.set_adapters("guidance", 1.0)
    assert same(draw(student), draw(summed(source, (guidance, 1.0))))


def test_a_style_lora_goes_on_the_fused_student(
    student: Any, source: Path, guidance: Lora, style: Lora, style_file: Path
) -> None:
    student.fuse_lora()
    student.unload_lora_weights()
    student.load_lora_weights(style_file, adapter_name="style")
    student.set_adapters("style", 0.7)
    assert same(draw(student), draw(summed(source, (guidance, 1.0), (style, 0.7))))


# Textual inversion


def test_a_learned_word_changes_the_picture_and_not_the_adapter(
    student: Any, source: Path, adapter: Path
) -> None:
    prompt, word = "a red <moss>", {"<moss>": torch.linspace(-2, 2, 16)}
    unknown, before = draw(student, prompt), strengths(student.unet)
    cat = draw(student)
    student.load_textual_inversion(word)
    with rows_of(student.unet) as rows:
        known = draw(student, prompt)
    assert rows == [1] * STEPS
    assert differ(known, unknown)
    assert strengths(student.unet) == before
    assert torch.equal(draw(student), cat)
    first = stock(source)
    first.load_textual_inversion(word)
    unguided = draw(first, prompt)
    first.load_lora_weights(adapter, adapter_name="guidance")
    assert torch.equal(draw(first, prompt), known)
    assert differ(known, unguided)


# ControlNet


@pytest.fixture
def controlled(source: Path) -> Any:
    """A plain ControlNet pipeline of the adapter's own base."""
    pipeline = stock(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        sizes = (8, 16)  # one halving, as the autoencoder's
        control = ControlNetModel.from_unet(pipeline.unet, "rgb", sizes)
        waken(control, std=0.3)  # its outputs begin at zero
    return StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=control.eval())


def test_control_is_one_pass_and_at_scale_zero_the_plain_student(
    student: Any, controlled: Any, adapter: Path
) -> None:
    unguided = draw(controlled, image=IMAGE)
    controlled.load_lora_weights(adapter, adapter_name="guidance")
    assert strengths(controlled.unet) == strengths(student.unet)
    assert not any(hasattr(module, "lora_A") for module in controlled.controlnet.modules())
    with rows_of(controlled.unet) as rows, rows_of(controlled.controlnet) as control_rows:
        picture = draw(controlled, image=IMAGE)
    assert rows == control_rows == [1] * STEPS
    plain = draw(student)
    assert differ(picture, unguided, plain)
    assert same(draw(controlled, image=IMAGE, controlnet_conditioning_scale=0.0), plain)
    with rows_of(controlled.unet) as rows, rows_of(controlled.controlnet) as control_rows:
        draw(controlled, image=IMAGE, guidance_scale=5.0)
    assert rows == control_rows == [2] * STEPS  # the control is computed twice as well


def test_a_pipeline_that_has_the_adapter_passes_it_on(student: Any, controlled: Any) -> None:
    """``from_pipe`` shares the denoiser, the LoRA on it included."""
    taken = StableDiffusionControlNetPipeline.from_pipe(student, controlnet=controlled.controlnet)
    assert taken.unet is student.unet
    whole = draw(taken, image=IMAGE)
    student.set_adapters("guidance", 0.5)
    assert differ(whole, draw(taken, image=IMAGE))
    assert set(strengths(taken.unet).values()) == {0.5}


# IP-Adapter


IMAGE_WIDTH = 8
FACE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def image_prompt(denoiser: Any, *, face: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """An IP-Adapter as its files hold it: image tokens, and keys and values for each layer.

    Args:
        denoiser: Whose cross attention it is for.
        face: Bring a LoRA along on the first attention layer, as those for faces do.
    """
    draws = torch.Generator().manual_seed(3)

    def normals(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    width, tokens = denoiser.config.cross_attention_dim, 4
    layers = [
        denoiser.get_submodule(name.removesuffix(".processor"))
        for name in denoiser.attn_processors
        if "attn2" in name
    ]
    inside = {
        f"{2 * n + 1}.to_{part}_ip.weight": normals(layer.inner_dim, width)
        for n, layer in enumerate(layers)
        for part in "kv"
    }
    if face:
        size = denoiser.get_submodule(FACE).inner_dim
        for part in ("q", "k", "v", "out"):
            inside[f"0.to_{part}_lora.down.weight"] = normals(1, size)
            inside[f"0.to_{part}_lora.up.weight"] = normals(size, 1)
    image = {
        "proj.weight": normals(tokens * width, IMAGE_WIDTH),
        "proj.bias": normals(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": image, "ip_adapter": inside}


def load_image_prompt(pipeline: Any, *, face: bool = False) -> None:
    weights = image_prompt(pipeline.unet, face=face)
    pipeline.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)


PICTURE = {"ip_adapter_image_embeds": [torch.linspace(-1, 1, IMAGE_WIDTH).reshape(1, 1, -1)]}


def test_an_image_prompt_is_one_pass_and_at_scale_zero_the_plain_student(student: Any) -> None:
    plain, before = draw(student), strengths(student.unet)
    load_image_prompt(student)
    assert strengths(student.unet) == before
    with rows_of(student.unet) as rows:
        prompted = draw(student, **PICTURE)
    assert rows == [1] * STEPS
    student.set_adapters("guidance", 0.0)
    assert differ(prompted, plain, draw(student, **PICTURE))
    student.set_adapters("guidance", 1.0)
    student.set_ip_adapter_scale(0.0)
    assert same(draw(student, **PICTURE), plain)
    student.unload_ip_adapter()
    assert torch.equal(draw(student), plain)


def test_the_adapter_goes_on_a_denoiser_that_has_an_image_prompt(
    student: Any, source: Path, adapter: Path
) -> None:
    load_image_prompt(student)
    first = stock(source)
    load_image_prompt(first)
    first.load_lora_weights(adapter, adapter_name="guidance")
    assert strengths(first.unet) == strengths(student.unet)
    assert torch.equal(draw(first, **PICTURE), draw(student, **PICTURE))


def test_an_image_prompt_with_a_lora_switches_the_adapter_off_until_both_are_set(
    student: Any,
) -> None:
    before = strengths(student.unet)
    load_image_prompt(student, face=True)
    assert not any(strengths(student.unet).values())  # diffusers makes its own the only one
    face = draw(student, **PICTURE)
    student.set_adapters(["guidance", "faceid_0"], [1.0, 1.0])
    assert strengths(student.unet) == before
    assert differ(draw(student, **PICTURE), face)


# Other calls of the same components


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_from_a_picture_it_is_one_pass_and_guided(student: Any, kind: type[Any]) -> None:
    call: dict[str, Any] = {"image": IMAGE, "strength": 0.67}  # how far from it
    if kind is StableDiffusionInpaintPipeline:
        call["mask_image"] = torch.ones(1, 1, 16, 16).tril()
    pipeline = kind.from_pipe(student)
    with rows_of(pipeline.unet) as rows:
        drawn = draw(pipeline, **call)
    assert rows == [1] * (STEPS - 1)
    pipeline.set_adapters("guidance", 0.0)
    still = draw(pipeline, **call)
    pipeline.disable_lora()
    assert same(draw(pipeline, **call), still)
    assert differ(drawn, still)


# A style under the teacher


def fused_base(source: Path, style_file: Path, folder: Path) -> Path:
    """The style fused into the base, as the docs say."""
    pipeline = stock(source)
    pipeline.load_lora_weights(style_file)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(folder)
    return folder


def test_an_adapter_trained_on_a_fused_style_works_beside_the_style(
    source: Path, style: Lora, style_file: Path, settings_for: Any, tmp_path: Path
) -> None:
    base = fused_base(source, style_file, tmp_path / "base")
    teacher = draw(summed(source, (style, 0.7)), guidance_scale=5.0)
    assert same(draw(stock(base), guidance_scale=5.0), teacher)
    quick = {"preview_prompts": 0, "learning_rate": 0.05}
    adapter = train(settings_for("sd15", tmp_path, pipeline={"source": str(base)}, distill=quick))
    live = with_loras(source, style=style_file, guidance=adapter)
    live.set_adapters(["style", "guidance"], [0.7, 1.0])
    picture = draw(live)
    assert same(picture, draw(with_loras(base, guidance=adapter)))
    assert differ(picture, draw(stock(base)))


@pytest.mark.parametrize("fused", [False, True])
def test_a_pipeline_saved_with_its_lora_still_on_is_refused(
    source: Path, style: Lora, tmp_path: Path, fused: bool
) -> None:
    in_denoiser = {n: part for n, part in style.items() if n.startswith("unet.")}
    pipeline = stock(source)
    pipeline.load_lora_weights(write_kohya(in_denoiser, tmp_path / "style.safetensors"))
    if fused:
        pipeline.fuse_lora()  # the layers of the LoRA stay until it is unloaded
    pipeline.save_pretrained(tmp_path / "base")
    with pytest.raises(PipelineError, match="saved with a LoRA on it"):
        open_pipeline(str(tmp_path / "base"))


def test_a_denoiser_that_has_a_lora_gets_no_adapter(source: Path, style_file: Path) -> None:
    pipeline = with_loras(source, style=style_file)

    def call() -> None:
        pipeline.unet(torch.zeros(1, 4, 8, 8), torch.tensor(5), torch.zeros(1, 77, 16))

    with pytest.raises(InputError, match="a LoRA is on the denoiser already"):
        attach(pipeline.unet, "attention", 2, 0, call)
