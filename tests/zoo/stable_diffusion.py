"""Pipelines on a UNet: Stable Diffusion and what was made from it."""

from typing import Any

from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from . import autoencoders, text
from .entry import SMALL, entry

CHANNELS = (8, 16)
GROUPS = 4


def unet(**changes: Any) -> UNet2DConditionModel:
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": CHANNELS,
        "norm_num_groups": GROUPS,
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": text.WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**sizes | changes)


def ddim(prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def _parts() -> dict[str, Any]:
    tokenizer, text_encoder = text.clip()
    return {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": autoencoders.kl()}


def _unchecked() -> dict[str, Any]:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd15() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**_parts(), **_unchecked(), unet=unet(), scheduler=ddim())


def sd_v() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        **_parts(), **_unchecked(), unet=unet(), scheduler=ddim("v_prediction")
    )


def sd15_pag() -> StableDiffusionPAGPipeline:
    return StableDiffusionPAGPipeline(
        **_parts(), **_unchecked(), unet=unet(), scheduler=ddim(), pag_applied_layers="mid"
    )


def lcm() -> LatentConsistencyModelPipeline:
    """Guidance enters as an embedding of its scale: there is no second pass."""
    return LatentConsistencyModelPipeline(
        **_parts(), **_unchecked(), unet=unet(time_cond_proj_dim=16), scheduler=LCMScheduler()
    )


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer, text_encoder = text.clip()
    tokenizer_2, text_encoder_2 = text.clip_projected()
    numbers, width = 6, 8  # original size, crop and target size, each number embedded
    return StableDiffusionXLPipeline(
        vae=autoencoders.kl(),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        unet=unet(
            cross_attention_dim=2 * text.WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=width,
            projection_class_embeddings_input_dim=numbers * width + text.WIDTH,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )


def animatediff() -> AnimateDiffPipeline:
    adapter = MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=GROUPS,
        motion_max_seq_length=8,
    )
    return AnimateDiffPipeline(
        **_parts(),
        unet=unet(),
        motion_adapter=adapter,
        scheduler=ddim(),
        feature_extractor=None,
    )


ENTRIES = {
    "sd15": entry(sd15, "epsilon", denoiser="unet"),
    "sdxl": entry(sdxl, "epsilon", denoiser="unet"),
    "sd_v": entry(sd_v, "v_prediction", denoiser="unet"),
    "animatediff": entry(animatediff, "epsilon", SMALL | {"num_frames": 3}, denoiser="unet"),
    "sd15_pag": entry(sd15_pag, "epsilon", denoiser="unet", off={"pag_scale": 0.0}, passes=3),
}

UNFOLDABLE = {"lcm": entry(lcm, "epsilon", denoiser="unet", passes=1)}
