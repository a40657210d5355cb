"""HunyuanImage, whose guidance is a component of the pipeline."""

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
)
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from . import text
from .entry import entry
from .image import HEADS, LATENT, ROPE, flow
from .image_families import LAYERS, loud


def _hunyuan(**changes: Any) -> torch.nn.Module:
    sizes: dict[str, Any] = {
        **HEADS,
        **LAYERS,
        "in_channels": LATENT,
        "out_channels": LATENT,
        "num_refiner_layers": 1,
        "text_embed_dim": text.WIDTH,
        "rope_axes_dim": (4, 4),
    }
    return loud(HunyuanImageTransformer2DModel(**sizes | changes))


def hunyuan_image() -> HunyuanImagePipeline:
    tokenizer, text_encoder = text.qwen()
    tokenizer_2 = ByT5Tokenizer()
    return HunyuanImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
            )
        ),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=LATENT,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75,
        ),
        transformer=_hunyuan(),
        scheduler=flow(shift=5.0),
        guider=AdaptiveProjectedMixGuidance(),
        ocr_guider=AdaptiveProjectedMixGuidance(),
    )


def hunyuan_image_refiner() -> HunyuanImageRefinerPipeline:
    tokenizer, text_encoder = text.qwen()
    channels = 2 * LATENT  # two latent frames, the first one twice, make one
    return HunyuanImageRefinerPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderKLHunyuanImageRefiner(
            latent_channels=LATENT,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
        ),
        transformer=_hunyuan(
            in_channels=2 * channels,
            out_channels=channels,
            patch_size=(1, 1, 1),
            guidance_embeds=True,
            rope_axes_dim=ROPE,
        ),
        scheduler=flow(shift=4.0),
        guider=AdaptiveProjectedMixGuidance(),
    )


ENTRIES = {
    "hunyuan_image": entry(hunyuan_image, "flow", guidance="guider.guidance_scale"),
    "hunyuan_image_refiner": entry(
        hunyuan_image_refiner,
        "flow",
        inputs={"image": "cat.png"},
        guidance="guider.guidance_scale",
    ),
}
