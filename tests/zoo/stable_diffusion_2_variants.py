"""Pipelines made from Stable Diffusion that see their picture through a net of its own, and the
upscalers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PriorTransformer,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionUpscalePipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    UnCLIPScheduler,
)
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

from . import autoencoders, text
from .entry import SMALL, entry
from .stable_diffusion import sd15, sd_v
from .stable_diffusion_variants import LATENT, PICTURE, WHOLE, like, variant

VIEW = 28  # the side of the picture that a picture encoder reads, in pixels
PATCH = 14


def vision() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=text.WIDTH,
            intermediate_size=2 * text.WIDTH,
            projection_dim=text.WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=VIEW,
            patch_size=PATCH,
        )
    )


def view() -> CLIPImageProcessorPil:
    side = {"height": VIEW, "width": VIEW}
    return CLIPImageProcessorPil(size={"shortest_edge": VIEW}, crop_size=side)


def depth() -> DPTForDepthEstimation:
    return DPTForDepthEstimation(
        DPTConfig(
            hidden_size=text.WIDTH,
            intermediate_size=2 * text.WIDTH,
            num_hidden_layers=4,
            num_attention_heads=2,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            image_size=32,
            patch_size=8,
            is_hybrid=False,
        )
    )


def depth_view() -> DPTImageProcessorPil:
    return DPTImageProcessorPil(size={"height": 32, "width": 32})


def _unclip_parts() -> dict[str, Callable[[], Any]]:
    return {
        "image_normalizer": partial(StableUnCLIPImageNormalizer, embedding_dim=text.WIDTH),
        "image_noising_scheduler": partial(DDPMScheduler, beta_schedule="squaredcos_cap_v2"),
    }


def prior() -> PriorTransformer:
    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=text.WIDTH,
        num_embeddings=77,
        additional_embeddings=4,
    )


def unclip() -> StableUnCLIPPipeline:
    tokenizer, text_encoder = text.clip_projected()
    return like(
        sd_v,
        StableUnCLIPPipeline,
        {"prior_tokenizer": tokenizer, "prior_text_encoder": text_encoder},
        LABELLED,
        prior=prior,
        prior_scheduler=partial(
            UnCLIPScheduler, variance_type="fixed_small_log", prediction_type="sample"
        ),
        **_unclip_parts(),
    )()


# A picture's embedding, and as wide a one of how noisy it is.
LABELLED = {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2 * text.WIDTH,
}


def _barely_scaling() -> AutoencoderKL:
    """The upscaler warns of any other factor."""
    return AutoencoderKL.from_config(autoencoders.kl().config, scaling_factor=0.08333)


ENTRIES = {
    "sd15_variation": entry(
        like(
            sd15,
            StableDiffusionImageVariationPipeline,
            image_encoder=vision,
            feature_extractor=view,
        ),
        "epsilon",
        inputs=PICTURE,
        takes_prompt=False,
        denoiser="unet",
    ),
    "sd2_depth": variant(
        sd15,
        StableDiffusionDepth2ImgPipeline,
        WHOLE,
        unet={"in_channels": LATENT + 1},
        depth_estimator=depth,
        feature_extractor=depth_view,
    ),
    "sd2_upscale": entry(
        like(
            sd_v,
            StableDiffusionUpscalePipeline,
            unet={"in_channels": LATENT + 3, "num_class_embeds": 1000},
            vae=_barely_scaling,
            low_res_scheduler=DDPMScheduler,
        ),
        "v_prediction",
        {},
        inputs=PICTURE,
        denoiser="unet",
    ),
    "sd2_latent_upscale": entry(
        like(
            sd15,
            StableDiffusionLatentUpscalePipeline,
            unet={
                "in_channels": 2 * LATENT,
                "out_channels": LATENT + 1,
                "time_cond_proj_dim": 128 + text.WIDTH,
            },
            scheduler=partial(EulerDiscreteScheduler, prediction_type="sample"),
        ),
        "sample",
        {},
        inputs=PICTURE,
        denoiser="unet",
        output="first along dimension 1, scaled",
    ),
    "sd2_unclip": entry(
        unclip, "v_prediction", SMALL | {"prior_num_inference_steps": 2}, denoiser="unet"
    ),
    "sd2_unclip_img2img": entry(
        like(
            sd_v,
            StableUnCLIPImg2ImgPipeline,
            unet=LABELLED,
            image_encoder=vision,
            feature_extractor=view,
            **_unclip_parts(),
        ),
        "v_prediction",
        inputs=PICTURE,
        denoiser="unet",
    ),
}
