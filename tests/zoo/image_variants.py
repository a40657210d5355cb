"""Variants of the pipelines of ``image.py``: from a picture, inpainting, control, PAG."""

import inspect
from collections.abc import Callable
from typing import Any

from diffusers import (
    ChromaImg2ImgPipeline,
    ChromaInpaintPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
)
from transformers import GemmaConfig, GemmaModel

from . import autoencoders, image, text
from .entry import NEGATIVE, SHORT, SMALL, UNBINNED, Build, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow

Parts = dict[str, Any]


def like(base: Build, kind: type[DiffusionPipeline], **own: Callable[[Parts], Any]) -> Build:
    """A pipeline of another class over the components of one, with some of its own.

    Each of its own components is made from those of the base.
    """

    def built() -> DiffusionPipeline:
        parts = base().components
        taken = inspect.signature(kind).parameters
        kept = {name: part for name, part in parts.items() if name in taken}
        return kind(**kept | {name: make(parts) for name, make in own.items()})

    return built


def resized(component: str, **changes: Any) -> Callable[[Parts], Any]:
    """A component of the base, made anew with other numbers in its configuration."""

    def made(parts: Parts) -> Any:
        return type(parts[component]).from_config(parts[component].config, **changes)

    return made


def sd3_controlnet(extra: int = 0) -> SD3ControlNetModel:
    """`extra`: channels of a mask."""
    return SD3ControlNetModel(
        **HEADS,
        sample_size=8,
        in_channels=LATENT,
        num_layers=1,
        joint_attention_dim=text.T5_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * text.WIDTH,
        pos_embed_max_size=16,
        extra_conditioning_channels=extra,
    )


def sana_controlnet() -> SanaControlNetModel:
    return SanaControlNetModel(
        **HEADS,
        in_channels=LATENT,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=text.WIDTH,
        sample_size=8,
    )


def flux_controlnet(*, guidance_embeds: bool = False) -> FluxControlNetModel:
    return FluxControlNetModel(
        **HEADS,
        in_channels=PACKED,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=text.T5_WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=ROPE,
    )


def chroma_with_flux_setting(parts: Parts) -> ChromaTransformer2DModel:
    """Chroma's inpainting asks the transformer for a setting that only Flux has."""
    parts["transformer"].register_to_config(guidance_embeds=False)
    return parts["transformer"]


def sprint(parts: Parts) -> SanaTransformer2DModel:
    return resized("transformer", guidance_embeds=True, qk_norm="rms_norm_across_heads")(parts)


flux_controlled = resized("transformer", in_channels=2 * PACKED, out_channels=PACKED)


def lumina() -> LuminaPipeline:
    tokenizer, _ = text.gemma()
    return LuminaPipeline(
        tokenizer=tokenizer,
        text_encoder=GemmaModel(
            GemmaConfig(
                vocab_size=len(tokenizer),
                hidden_size=text.WIDTH,
                intermediate_size=2 * text.WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        vae=autoencoders.kl(levels=4),
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=LATENT,
            hidden_size=WIDTH,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=text.WIDTH,
        ),
        scheduler=flow(),
    )


SIZED = SMALL | SHORT
TRUE_CFG: dict[str, Any] = {"guidance": "true_cfg_scale"}
IMAGE = {"image": "cat.png"}
MASKED = IMAGE | {"mask_image": "mask.png"}
CONTROL = {"control_image": "edges.png"}
PAG: dict[str, Any] = {"off": {"pag_scale": 0.0}, "passes": 3}
SKIPPING = SIZED | {
    "skip_guidance_layers": [0],
    "skip_layer_guidance_start": -0.1,  # the first step is later than the start
    "skip_layer_guidance_stop": 1.1,
}
FLUX = SIZED | NEGATIVE
KONTEXT = FLUX | {"max_area": 256, "_auto_resize": False}
TARGET_FIRST = LEARNED_VARIANCE = "first along dimension 1"
PIXART = UNBINNED | {"clean_caption": False}
SANA = SHORT | UNBINNED | {"height": 32, "width": 32, "complex_human_instruction": []}

ENTRIES = {
    "sd3_img2img": entry(
        like(image.sd3, StableDiffusion3Img2ImgPipeline), "flow", SIZED, inputs=IMAGE
    ),
    "sd3_inpaint": entry(
        like(
            image.sd3,
            StableDiffusion3InpaintPipeline,
            vae=resized("vae", latent_channels=16),
            transformer=resized("transformer", in_channels=16, out_channels=16),
        ),
        "flow",
        SIZED,
        inputs=MASKED,
    ),
    "sd3_controlnet": entry(
        like(image.sd3, StableDiffusion3ControlNetPipeline, controlnet=lambda _: sd3_controlnet()),
        "flow",
        SIZED,
        inputs=CONTROL,
    ),
    "sd3_controlnet_inpaint": entry(
        like(
            image.sd3,
            StableDiffusion3ControlNetInpaintingPipeline,
            controlnet=lambda _: sd3_controlnet(extra=1),
        ),
        "flow",
        SIZED,
        inputs={"control_image": "cat.png", "control_mask": "mask.png"},
    ),
    "sd3_skip_layer": entry(image.sd3, "flow", SKIPPING, passes=3),
    "sd3_pag": entry(like(image.sd3, StableDiffusion3PAGPipeline), "flow", SIZED, **PAG),
    "sd3_pag_img2img": entry(
        like(image.sd3, StableDiffusion3PAGImg2ImgPipeline), "flow", SIZED, inputs=IMAGE, **PAG
    ),
    "pixart_alpha": entry(
        like(image.pixart, PixArtAlphaPipeline), "epsilon", SIZED | PIXART, output=LEARNED_VARIANCE
    ),
    "pixart_pag": entry(
        like(image.pixart, PixArtSigmaPAGPipeline),
        "epsilon",
        SIZED | PIXART,
        output=LEARNED_VARIANCE,
        **PAG,
    ),
    "sana_pag": entry(like(image.sana, SanaPAGPipeline), "flow", SANA, **PAG),
    "sana_controlnet": entry(
        like(image.sana, SanaControlNetPipeline, controlnet=lambda _: sana_controlnet()),
        "flow",
        SANA,
        inputs=CONTROL,
    ),
    "flux_img2img": entry(
        like(image.flux, FluxImg2ImgPipeline), "flow", FLUX, inputs=IMAGE, **TRUE_CFG
    ),
    "flux_inpaint": entry(
        like(image.flux, FluxInpaintPipeline), "flow", FLUX, inputs=MASKED, **TRUE_CFG
    ),
    "flux_kontext": entry(
        like(image.flux, FluxKontextPipeline),
        "flow",
        KONTEXT,
        inputs=IMAGE,
        output=TARGET_FIRST,
        **TRUE_CFG,
    ),
    "flux_kontext_inpaint": entry(
        like(image.flux, FluxKontextInpaintPipeline),
        "flow",
        KONTEXT,
        inputs=MASKED,
        output=TARGET_FIRST,
        **TRUE_CFG,
    ),
    "flux_controlnet": entry(
        like(image.flux, FluxControlNetPipeline, controlnet=lambda _: flux_controlnet()),
        "flow",
        FLUX,
        inputs=CONTROL,
        **TRUE_CFG,
    ),
    "lumina": entry(
        lumina,
        "flow",
        {"height": 64, "width": 64, "clean_caption": False},
        output=f"{LEARNED_VARIANCE}, negated",
    ),
    "chroma_img2img": entry(like(image.chroma, ChromaImg2ImgPipeline), "flow", SIZED, inputs=IMAGE),
    "chroma_inpaint": entry(
        like(image.chroma, ChromaInpaintPipeline, transformer=chroma_with_flux_setting),
        "flow",
        SIZED,
        inputs=MASKED,
    ),
}

EMBEDDED = image.flux_guidance_embedded

UNFOLDABLE = {
    "sana_sprint": entry(
        like(
            image.sana, SanaSprintPipeline, transformer=sprint, scheduler=lambda _: SCMScheduler()
        ),
        "flow",
        SANA,
        output="whole, scaled",
        passes=1,
    ),
    "sana_sprint_img2img": entry(
        like(
            image.sana,
            SanaSprintImg2ImgPipeline,
            transformer=sprint,
            scheduler=lambda _: SCMScheduler(),
        ),
        "flow",
        SANA,
        inputs=IMAGE,
        output="whole, scaled",
        passes=1,
    ),
    "flux_control": entry(
        like(EMBEDDED, FluxControlPipeline, transformer=flux_controlled),
        "flow",
        SIZED,
        inputs=CONTROL,
        passes=1,
    ),
    "flux_control_img2img": entry(
        like(EMBEDDED, FluxControlImg2ImgPipeline, transformer=flux_controlled),
        "flow",
        SIZED,
        inputs=IMAGE | CONTROL,
        passes=1,
    ),
    "flux_control_inpaint": entry(
        like(EMBEDDED, FluxControlInpaintPipeline, transformer=flux_controlled),
        "flow",
        SIZED,
        inputs=MASKED | CONTROL,
        passes=1,
    ),
    "flux_fill": entry(
        like(
            EMBEDDED,
            FluxFillPipeline,
            # Noise, the masked picture, and four mask pixels for each latent one.
            transformer=resized("transformer", in_channels=3 * PACKED, out_channels=PACKED),
        ),
        "flow",
        SIZED,
        inputs=MASKED,
        passes=1,
    ),
    "flux_controlnet_img2img": entry(
        like(EMBEDDED, FluxControlNetImg2ImgPipeline, controlnet=lambda _: flux_controlnet()),
        "flow",
        SIZED,
        inputs=IMAGE | CONTROL,
        passes=1,
    ),
    "flux_controlnet_inpaint": entry(
        like(EMBEDDED, FluxControlNetInpaintPipeline, controlnet=lambda _: flux_controlnet()),
        "flow",
        SIZED,
        inputs=MASKED | CONTROL,
        passes=1,
    ),
}
