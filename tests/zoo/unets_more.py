"""Video pipelines on a UNet: AnimateDiff and its kin, ModelScope, I2VGen-XL."""

from typing import Any

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    VideoToVideoSDPipeline,
)

from . import autoencoders, text
from .entry import SMALL, Build, entry
from .media import FRAMES
from .stable_diffusion import CHANNELS, GROUPS, ddim, sdxl, unet
from .unets import eyes, vision

LATENT = autoencoders.CHANNELS
DEEP: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": CHANNELS,
    "norm_num_groups": GROUPS,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": text.WIDTH,
    "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
}


def _parts() -> dict[str, Any]:
    tokenizer, text_encoder = text.clip()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoders.kl(),
        "scheduler": ddim(),
    }


def certain_vae() -> AutoencoderKL:
    """Its latents have next to no variance, for a pipeline that samples them without our seed."""
    vae = autoencoders.kl()
    with torch.no_grad():
        vae.quant_conv.weight[LATENT:] = 0
        vae.quant_conv.bias[LATENT:] = -30
    return vae


def adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=GROUPS,
        motion_max_seq_length=FRAMES,
    )


def controlnet() -> ControlNetModel:
    return ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=CHANNELS)


def sparse_controlnet() -> SparseControlNetModel:
    return SparseControlNetModel(
        block_out_channels=CHANNELS,
        norm_num_groups=GROUPS,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=text.WIDTH,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        conditioning_channels=3,
        conditioning_embedding_out_channels=CHANNELS,
        # The other way samples latents of the conditions, from torch's own random state.
        use_simplified_condition_embedding=False,
        motion_max_seq_length=FRAMES,
        motion_num_attention_heads=2,
    )


def _animated(
    pipeline: type[DiffusionPipeline],
    control: type[ControlNetModel | SparseControlNetModel] | None = None,
    *,
    in_channels: int = LATENT,
    **settings: Any,
) -> Build:
    """Stable Diffusion with layers that look along time."""
    controls = {ControlNetModel: controlnet, SparseControlNetModel: sparse_controlnet}

    def build() -> DiffusionPipeline:
        controlled = {"controlnet": controls[control]()} if control else {}
        denoiser = unet(in_channels=in_channels)
        return pipeline(
            **_parts(), **controlled, **settings, unet=denoiser, motion_adapter=adapter()
        )

    return build


def animatediff_sdxl() -> AnimateDiffSDXLPipeline:
    return AnimateDiffSDXLPipeline(**sdxl().components, motion_adapter=adapter())


def _modelscope(pipeline: type[DiffusionPipeline]) -> Build:
    return lambda: pipeline(**_parts(), unet=UNet3DConditionModel(**DEEP))


def i2vgen_xl() -> I2VGenXLPipeline:
    # It looks for a `text_model` in the encoder, and only this one has it in transformers 5.
    tokenizer, text_encoder = text.clip_projected()
    return I2VGenXLPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=certain_vae(),
        scheduler=ddim(),
        unet=I2VGenXLUNet(**DEEP),
        image_encoder=vision(),
        feature_extractor=eyes(),
    )


UNET: dict[str, Any] = {"denoiser": "unet"}
SHORT_VIDEO = SMALL | {"num_frames": 3}
ALL_FRAMES = SMALL | {"num_frames": FRAMES}
HALF = {"strength": 0.5}
VIDEO = {"video": "frames"}
CONTROL = {"conditioning_frames": "frames"}
PICTURE = {"image": "cat.png"}
STEPPED = "whole, dimensions 0 2 1 3 4"  # the scheduler steps each frame by itself

ENTRIES = {
    "animatediff_video": entry(
        _animated(AnimateDiffVideoToVideoPipeline), "epsilon", SMALL | HALF, inputs=VIDEO, **UNET
    ),
    "animatediff_controlnet": entry(
        _animated(AnimateDiffControlNetPipeline, ControlNetModel),
        "epsilon",
        ALL_FRAMES,
        inputs=CONTROL,
        **UNET,
    ),
    "animatediff_video_controlnet": entry(
        _animated(AnimateDiffVideoToVideoControlNetPipeline, ControlNetModel),
        "epsilon",
        SMALL | HALF,
        inputs=VIDEO | CONTROL,
        **UNET,
    ),
    "animatediff_sparse_controlnet": entry(
        _animated(AnimateDiffSparseControlNetPipeline, SparseControlNetModel),
        "epsilon",
        SHORT_VIDEO | {"controlnet_frame_indices": [0, 2]},
        inputs={"conditioning_frames": ["cat.png", "dog.png"]},
        **UNET,
    ),
    "animatediff_sdxl": entry(animatediff_sdxl, "epsilon", SHORT_VIDEO, **UNET),
    "animatediff_pag": entry(
        _animated(AnimateDiffPAGPipeline, pag_applied_layers="mid_block.*attn1"),
        "epsilon",
        SHORT_VIDEO,
        off={"pag_scale": 0.0},
        passes=3,
        **UNET,
    ),
    "pia": entry(
        _animated(PIAPipeline, in_channels=2 * LATENT + 1),
        "epsilon",
        SHORT_VIDEO,
        inputs=PICTURE,
        **UNET,
    ),
    "modelscope": entry(
        _modelscope(TextToVideoSDPipeline), "epsilon", SHORT_VIDEO, output=STEPPED, **UNET
    ),
    "modelscope_video": entry(
        _modelscope(VideoToVideoSDPipeline), "epsilon", HALF, inputs=VIDEO, output=STEPPED, **UNET
    ),
    "i2vgen_xl": entry(i2vgen_xl, "epsilon", SHORT_VIDEO, inputs=PICTURE, output=STEPPED, **UNET),
}
