"""More image pipelines on a transformer: guider components, and models that read pictures."""

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
)
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from . import autoencoders, text
from . import image_families_text as texts
from .entry import SHORT, SMALL, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow
from .image_families import LAYERS, loud


def longcat_image() -> LongCatImagePipeline:
    """It makes noise of 16 channels, whatever its denoiser says."""
    channels = 16
    tokenizer, text_encoder = texts.qwen2_5_vl()
    return LongCatImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        text_processor=tokenizer,  # only to rewrite prompts, and the real one needs torchvision
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=channels,
            norm_num_groups=4,
            shift_factor=0.1,
        ),
        transformer=LongCatImageTransformer2DModel(
            **HEADS,
            **LAYERS,
            in_channels=4 * channels,
            joint_attention_dim=text.WIDTH,
            pooled_projection_dim=text.WIDTH,
            axes_dims_rope=list(ROPE),
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


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


def hidream() -> HiDreamImagePipeline:
    """It always makes latents of 128 by 128, so the patches are large."""
    tokenizer, text_encoder = text.clip_projected()
    tokenizer_2, text_encoder_2 = text.clip_projected()
    tokenizer_3, text_encoder_3 = text.t5()
    tokenizer_4, text_encoder_4 = texts.llama()
    return HiDreamImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        tokenizer_3=tokenizer_3,
        text_encoder_3=text_encoder_3,
        tokenizer_4=tokenizer_4,
        text_encoder_4=text_encoder_4,
        vae=autoencoders.kl(shift=0.1),
        transformer=HiDreamImageTransformer2DModel(
            **HEADS,
            **LAYERS,
            patch_size=16,
            in_channels=LATENT,
            out_channels=LATENT,
            caption_channels=[text.T5_WIDTH, text.WIDTH],
            text_emb_dim=2 * text.WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=ROPE,
            max_resolution=(128, 128),
            llama_layers=[0, 1],
        ),
        scheduler=flow(shift=3.0),
    )


def flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=LATENT,
        norm_num_groups=4,
        sample_size=16,
    )


def ernie_image() -> ErnieImagePipeline:
    tokenizer, text_encoder = texts.mistral3()
    return ErnieImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=flux2_vae(),
        transformer=loud(
            ErnieImageTransformer2DModel(
                hidden_size=WIDTH,
                num_attention_heads=2,
                num_layers=2,
                ffn_hidden_size=32,
                in_channels=PACKED,
                out_channels=PACKED,
                text_in_dim=text.WIDTH,
                rope_axes_dim=ROPE,
            )
        ),
        scheduler=flow(shift=3.0),
    )


ENTRIES = {
    "longcat_image": entry(longcat_image, "flow", SMALL | {"enable_prompt_rewrite": False}),
    "hunyuan_image": entry(hunyuan_image, "flow", guidance="guider.guidance_scale"),
    "hunyuan_image_refiner": entry(
        hunyuan_image_refiner,
        "flow",
        inputs={"image": "cat.png"},
        guidance="guider.guidance_scale",
    ),
    "hidream": entry(hidream, "flow", SMALL | SHORT, output="whole, negated"),
    "ernie_image": entry(ernie_image, "flow"),
}
