"""Pipelines made from Stable Diffusion XL."""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import (
    ControlNetUnionModel,
    MultiControlNetModel,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetXSPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPAGImg2ImgPipeline,
    StableDiffusionXLPAGPipeline,
)

from . import text
from .entry import SMALL, entry
from .stable_diffusion import CHANNELS, sdxl
from .stable_diffusion_variants import (
    EDGES,
    EDITING,
    INPAINTING,
    LED,
    MASKED,
    PICTURE,
    TWO_LAYERS,
    WHOLE,
    adapter,
    control,
    control_xs,
    like,
    variant,
)


def control_union() -> ControlNetUnionModel:
    """One net for several kinds of pictures, with a transformer that mixes them."""
    wide = ControlNetUnionModel.from_unet(
        sdxl().unet,
        conditioning_embedding_out_channels=(CHANNELS[0],) * 2,
        load_weights_from_unet=False,
    )
    mixed = {"num_trans_channel": CHANNELS[0], "num_proj_channel": CHANNELS[0], "num_trans_head": 2}
    return ControlNetUnionModel.from_config(wide.config, **mixed)


def _two_controls() -> MultiControlNetModel:
    return MultiControlNetModel([control(sdxl), control(sdxl)])


CONTROLLED: dict[str, Callable[[], Any]] = {"controlnet": partial(control, sdxl)}
UNITED: dict[str, Callable[[], Any]] = {"controlnet": control_union}
MODE = {"control_mode": [0]}
REFINER = like(
    sdxl,
    StableDiffusionXLImg2ImgPipeline,
    {"requires_aesthetics_score": True, "tokenizer": None, "text_encoder": None},
    {
        "cross_attention_dim": text.WIDTH,
        "projection_class_embeddings_input_dim": 5 * 8 + text.WIDTH,
    },
)

_xl = partial(variant, sdxl)

# Not here: perturbed attention with inpainting, and with a control net from a picture. Asked for
# latents, these two return before they take the perturbed attention off the UNet again.

ENTRIES = {
    "sdxl_img2img": _xl(StableDiffusionXLImg2ImgPipeline, WHOLE),
    "sdxl_refiner": entry(REFINER, "epsilon", WHOLE, inputs=PICTURE, denoiser="unet"),
    "sdxl_inpaint": _xl(StableDiffusionXLInpaintPipeline, SMALL | WHOLE, MASKED),
    "sdxl_inpaint_9": _xl(StableDiffusionXLInpaintPipeline, SMALL | WHOLE, MASKED, unet=INPAINTING),
    "sdxl_pix2pix": _xl(StableDiffusionXLInstructPix2PixPipeline, unet=EDITING, passes=3),
    "sdxl_controlnet": _xl(StableDiffusionXLControlNetPipeline, SMALL, EDGES, **CONTROLLED),
    "sdxl_controlnet_guess": _xl(
        StableDiffusionXLControlNetPipeline, SMALL | {"guess_mode": True}, EDGES, **CONTROLLED
    ),
    "sdxl_controlnet_two": _xl(
        StableDiffusionXLControlNetPipeline,
        SMALL | {"controlnet_conditioning_scale": [1.0, 0.5]},
        {"image": ["edges.png", "cat.png"]},
        controlnet=_two_controls,
    ),
    "sdxl_controlnet_img2img": _xl(
        StableDiffusionXLControlNetImg2ImgPipeline, SMALL | WHOLE, PICTURE | LED, **CONTROLLED
    ),
    "sdxl_controlnet_inpaint": _xl(
        StableDiffusionXLControlNetInpaintPipeline, SMALL | WHOLE, MASKED | LED, **CONTROLLED
    ),
    "sdxl_controlnet_union": _xl(
        StableDiffusionXLControlNetUnionPipeline, SMALL | MODE, LED, **UNITED
    ),
    "sdxl_controlnet_union_img2img": _xl(
        StableDiffusionXLControlNetUnionImg2ImgPipeline,
        SMALL | WHOLE | MODE,
        PICTURE | LED,
        **UNITED,
    ),
    "sdxl_controlnet_union_inpaint": _xl(
        StableDiffusionXLControlNetUnionInpaintPipeline,
        SMALL | WHOLE | MODE,
        MASKED | LED,
        **UNITED,
    ),
    "sdxl_controlnet_xs": _xl(
        StableDiffusionXLControlNetXSPipeline,
        SMALL,
        EDGES,
        unet=TWO_LAYERS,
        controlnet=partial(control_xs, sdxl),
    ),
    "sdxl_pag": _xl(StableDiffusionXLPAGPipeline, SMALL, {}),
    "sdxl_pag_img2img": _xl(StableDiffusionXLPAGImg2ImgPipeline, WHOLE),
    "sdxl_controlnet_pag": _xl(StableDiffusionXLControlNetPAGPipeline, SMALL, EDGES, **CONTROLLED),
    "sdxl_t2i_adapter": _xl(
        StableDiffusionXLAdapterPipeline,
        SMALL,
        EDGES,
        adapter=partial(adapter, shrinks=4, kind="full_adapter_xl"),
    ),
}
