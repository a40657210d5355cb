"""Image pipelines that read prompts as a chat: Z-Image and Flux 2."""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from . import autoencoders, text
from .entry import SHORT, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow
from .image_qwen import chat_tokenizer, qwen3_sizes
from .image_variants import CONTROL, IMAGE, MASKED, SIZED, Parts, like, resized


def qwen3(kind: type[PreTrainedModel]) -> dict[str, Any]:
    tokenizer = chat_tokenizer()
    return {"tokenizer": tokenizer, "text_encoder": kind(Qwen3Config(**qwen3_sizes(tokenizer)))}


def z_image() -> ZImagePipeline:
    return ZImagePipeline(
        **qwen3(Qwen3Model),
        vae=autoencoders.kl(shift=0.1),
        transformer=ZImageTransformer2DModel(
            in_channels=LATENT,
            dim=WIDTH,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=text.WIDTH,
            axes_dims=list(ROPE),
            axes_lens=[128, 16, 16],
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def z_image_controlnet(extra: int = 0) -> ZImageControlNetModel:
    """`extra`: channels of a mask and of what it hides."""
    return ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=LATENT + extra,
        add_control_noise_refiner="control_noise_refiner",
        dim=WIDTH,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )


def siglip(_: Parts) -> Siglip2VisionModel:
    return Siglip2VisionModel(
        Siglip2VisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_patches=16,
            patch_size=16,
        )
    )


def flux2_transformer(*, guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        **HEADS,
        in_channels=PACKED,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=3 * text.WIDTH,  # of three layers of the text encoder
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )


def flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=LATENT,
        norm_num_groups=4,
        sample_size=16,
    )


def flux2_klein() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        **qwen3(Qwen3ForCausalLM),
        vae=flux2_vae(),
        transformer=flux2_transformer(guidance_embeds=False),
        scheduler=flow(use_dynamic_shifting=True),
    )


def flux2() -> Flux2Pipeline:
    """Guidance enters as an embedding of its scale: there is no second pass."""
    tokenizer = chat_tokenizer()
    # Without what the pipeline says first, which is longer than a short prompt may be.
    tokenizer.chat_template = "{{ messages[-1].content[0].text }}"
    return Flux2Pipeline(
        tokenizer=tokenizer,
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(
                text_config={"model_type": "mistral", **qwen3_sizes(tokenizer)},
                vision_config={
                    "model_type": "pixtral",
                    "hidden_size": WIDTH,
                    "intermediate_size": 2 * WIDTH,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "head_dim": 8,
                },
            )
        ),
        vae=flux2_vae(),
        transformer=flux2_transformer(guidance_embeds=True),
        scheduler=flow(use_dynamic_shifting=True),
    )


# Guidance adds its scale times the difference: two passes at 1.0, one at 0.0.
Z_IMAGE: dict[str, Any] = {"output": "whole, negated", "off": {"guidance_scale": 0.0}}
WHOLE = SHORT | {"height": 32, "width": 32}  # the picture's own size
KLEIN = SIZED | {"text_encoder_out_layers": [0, 1, 2]}
TARGET_FIRST = "first along dimension 1"

ENTRIES = {
    "z_image": entry(z_image, "flow", SIZED, **Z_IMAGE),
    "z_image_img2img": entry(
        like(z_image, ZImageImg2ImgPipeline), "flow", WHOLE, inputs=IMAGE, **Z_IMAGE
    ),
    "z_image_inpaint": entry(
        like(z_image, ZImageInpaintPipeline), "flow", WHOLE, inputs=MASKED, **Z_IMAGE
    ),
    "z_image_controlnet": entry(
        like(z_image, ZImageControlNetPipeline, controlnet=lambda _: z_image_controlnet()),
        "flow",
        SIZED,
        inputs=CONTROL,
        **Z_IMAGE,
    ),
    "z_image_controlnet_inpaint": entry(
        like(
            z_image,
            ZImageControlNetInpaintPipeline,
            controlnet=lambda _: z_image_controlnet(extra=1 + LATENT),
        ),
        "flow",
        SIZED,
        inputs=MASKED | CONTROL,
        **Z_IMAGE,
    ),
    "z_image_omni": entry(
        like(
            z_image,
            ZImageOmniPipeline,
            transformer=resized("transformer", siglip_feat_dim=WIDTH),
            siglip=siglip,
            siglip_processor=lambda _: Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
        ),
        "flow",
        SIZED,
        **Z_IMAGE,
    ),
    "flux2_klein": entry(flux2_klein, "flow", KLEIN),
    "flux2_klein_inpaint": entry(
        like(flux2_klein, Flux2KleinInpaintPipeline),
        "flow",
        KLEIN,
        inputs=MASKED,
        output=TARGET_FIRST,
    ),
}

UNFOLDABLE = {"flux2": entry(flux2, "flow", KLEIN, passes=1)}
