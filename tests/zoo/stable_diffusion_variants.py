"""Pipelines made from Stable Diffusion 1.5, and what makes variants of a pipeline."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetXSAdapter,
    DiffusionPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    MultiControlNetModel,
    SemanticStableDiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionModelEditingPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionSAGPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)

from . import autoencoders
from .entry import SMALL, Build, Entry, entry
from .stable_diffusion import CHANNELS, lcm, sd15

LATENT = autoencoders.CHANNELS
NOTHING: Mapping[str, Any] = MappingProxyType({})
SETTINGS = {"requires_safety_checker": False, "add_watermarker": False}
WHOLE = {"strength": 1.0}  # else an image-to-image run of two steps makes one
PICTURE = {"image": "cat.png"}
MASKED = {**PICTURE, "mask_image": "mask.png"}
EDGES = {"image": "edges.png"}
LED = {"control_image": "edges.png"}  # where `image` is the picture to change


def like(
    source: Callable[[], DiffusionPipeline],
    kind: Callable[..., DiffusionPipeline],
    settings: Mapping[str, Any] = NOTHING,
    unet: Mapping[str, Any] = NOTHING,
    **parts: Callable[[], Any],
) -> Build:
    """A pipeline of another class, from the parts of this one that it has arguments for.

    Its UNet is made anew where it differs; `parts` are made when the pipeline is.
    """

    def build() -> DiffusionPipeline:
        given = source().components | SETTINGS | settings
        if unet:
            given["unet"] = changed_unet(source, unet)
        given |= {name: make() for name, make in parts.items()}
        return kind(
            **{n: part for n, part in given.items() if n in inspect.signature(kind).parameters}
        )

    return build


def changed_unet(
    source: Callable[[], DiffusionPipeline], changes: Mapping[str, Any]
) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(source().unet.config, **changes)


def control(source: Callable[[], DiffusionPipeline]) -> ControlNetModel:
    """Reads its picture at the autoencoder's shrinking factor, two."""
    return ControlNetModel.from_unet(
        source().unet, conditioning_embedding_out_channels=(CHANNELS[0],) * 2
    )


def control_xs(source: Callable[[], DiffusionPipeline]) -> ControlNetXSAdapter:
    return ControlNetXSAdapter.from_unet(
        source().unet,
        block_out_channels=(4, 4),  # its middle makes as many groups as it can, saved or not
        conditioning_embedding_out_channels=(CHANNELS[0],) * 2,
    )


def adapter(shrinks: int, kind: str = "full_adapter") -> T2IAdapter:
    return T2IAdapter(
        channels=list(CHANNELS), num_res_blocks=1, downscale_factor=shrinks, adapter_type=kind
    )


def gligen() -> DiffusionPipeline:
    """Its gates, scalars that start at zero, stand open."""
    pipeline = like(sd15, StableDiffusionGLIGENPipeline, unet={"attention_type": "gated"})()
    for name, parameter in pipeline.unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            torch.nn.init.ones_(parameter)
    return pipeline


INPAINTING = {"in_channels": 2 * LATENT + 1}  # the masked picture and the mask beside the latents
EDITING = {"in_channels": 2 * LATENT}
TWO_LAYERS = {"layers_per_block": 2}  # as many as ControlNet-XS counts on
WIDE = {"height": 64, "width": 576}  # two views of 64 latent pixels, eight apart
GROUNDED = {
    "gligen_phrases": ["a red cat"],
    "gligen_boxes": [[0.1, 0.2, 0.6, 0.8]],
    "gligen_scheduled_sampling_beta": 1.0,  # in every step
}
CONTROLLED: dict[str, Callable[[], Any]] = {"controlnet": partial(control, sd15)}


def _two_controls() -> MultiControlNetModel:
    return MultiControlNetModel([control(sd15), control(sd15)])


def _shrinking_by_8() -> AutoencoderKL:
    """A panorama's views are laid out as if no autoencoder shrank by less."""
    return autoencoders.kl(levels=4)


def variant(
    source: Callable[[], DiffusionPipeline],
    kind: Callable[..., DiffusionPipeline],
    call: Mapping[str, Any] = SMALL,
    inputs: Mapping[str, Any] = PICTURE,
    *,
    unet: Mapping[str, Any] = NOTHING,
    off: Mapping[str, float] = NOTHING,
    passes: int = 2,
    **parts: Callable[[], Any],
) -> Entry:
    """An entry for a pipeline that is another one of this class, but for a few parts."""
    if "PAG" in kind.__name__:
        off, passes = {"pag_scale": 0.0}, 3
    build = like(source, kind, unet=unet, **parts)
    return entry(build, "epsilon", call, inputs=inputs, denoiser="unet", off=off, passes=passes)


_one = partial(variant, sd15)

ENTRIES = {
    "sd15_img2img": _one(StableDiffusionImg2ImgPipeline, WHOLE),
    "sd15_inpaint": _one(StableDiffusionInpaintPipeline, SMALL | WHOLE, MASKED),
    "sd15_inpaint_9": _one(StableDiffusionInpaintPipeline, SMALL | WHOLE, MASKED, unet=INPAINTING),
    "sd15_pix2pix": _one(StableDiffusionInstructPix2PixPipeline, {}, unet=EDITING, passes=3),
    "sd15_controlnet": _one(StableDiffusionControlNetPipeline, SMALL, EDGES, **CONTROLLED),
    "sd15_controlnet_guess": _one(
        StableDiffusionControlNetPipeline, SMALL | {"guess_mode": True}, EDGES, **CONTROLLED
    ),
    "sd15_controlnet_two": _one(
        StableDiffusionControlNetPipeline,
        SMALL | {"controlnet_conditioning_scale": [1.0, 0.5]},
        {"image": ["edges.png", "cat.png"]},
        controlnet=_two_controls,
    ),
    "sd15_controlnet_img2img": _one(
        StableDiffusionControlNetImg2ImgPipeline, SMALL | WHOLE, PICTURE | LED, **CONTROLLED
    ),
    "sd15_controlnet_inpaint": _one(
        StableDiffusionControlNetInpaintPipeline, SMALL | WHOLE, MASKED | LED, **CONTROLLED
    ),
    "sd15_controlnet_xs": _one(
        StableDiffusionControlNetXSPipeline,
        SMALL,
        EDGES,
        unet=TWO_LAYERS,
        controlnet=partial(control_xs, sd15),
    ),
    "sd15_pag_img2img": _one(StableDiffusionPAGImg2ImgPipeline, WHOLE),
    "sd15_pag_inpaint": _one(StableDiffusionPAGInpaintPipeline, SMALL | WHOLE, MASKED),
    "sd15_controlnet_pag": _one(StableDiffusionControlNetPAGPipeline, SMALL, EDGES, **CONTROLLED),
    "sd15_controlnet_pag_inpaint": _one(
        StableDiffusionControlNetPAGInpaintPipeline,
        SMALL | WHOLE,
        MASKED | LED,
        **CONTROLLED,
    ),
    "sd15_t2i_adapter": _one(
        StableDiffusionAdapterPipeline,
        SMALL,
        EDGES,
        unet={
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        adapter=partial(adapter, shrinks=2),
    ),
    "sd15_gligen": entry(gligen, "epsilon", SMALL | GROUNDED, denoiser="unet"),
    "sd15_model_editing": _one(StableDiffusionModelEditingPipeline, SMALL, {}),
    "sd15_semantic": _one(
        SemanticStableDiffusionPipeline,
        SMALL | {"editing_prompt": ["a dog"], "edit_warmup_steps": 0},
        {},
        passes=3,
    ),
    "sd15_sag": _one(StableDiffusionSAGPipeline, inputs={}, passes=3, off={"sag_scale": 0.0}),
}

UNFOLDABLE = {
    # It puts a copy of its scheduler's attributes back before each view.
    "sd15_panorama": _one(StableDiffusionPanoramaPipeline, WIDE, {}, vae=_shrinking_by_8),
    "lcm_img2img": entry(
        like(lcm, LatentConsistencyModelImg2ImgPipeline),
        "epsilon",
        WHOLE,
        inputs=PICTURE,
        denoiser="unet",
        passes=1,
    ),
}
