"""More image pipelines on a transformer, of the families beside those that most people use."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)

from . import autoencoders, text
from . import image_families_text as texts
from .entry import SHORT, SMALL, UNBINNED, entry
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


def nucleus() -> NucleusMoEImagePipeline:
    tokenizer, text_encoder = texts.qwen3_vl_whole()
    transformer = NucleusMoEImageTransformer2DModel(
        **HEADS,
        in_channels=PACKED,
        out_channels=LATENT,
        num_layers=2,
        num_key_value_heads=1,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=ROPE,
        mlp_ratio=12.0,  # the inner width is rounded down to a multiple of 128
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    )
    for name, parameter in transformer.named_parameters():
        if ".experts." in name:  # they are made without values
            torch.nn.init.normal_(parameter, std=0.1)
    return NucleusMoEImagePipeline(
        processor=tokenizer,  # the real one also reads pictures, and needs torchvision
        text_encoder=text_encoder,
        vae=autoencoders.qwen_image(),
        transformer=loud(transformer),
        scheduler=flow(use_dynamic_shifting=True),
    )


def bria_fibo2() -> BriaFibo2Pipeline:
    """It takes its text from fixed layers, up to the 35th."""
    tokenizer, text_encoder = texts.qwen3_vl_whole(layers=35)
    return BriaFibo2Pipeline(
        processor=tokenizer,  # the real one also reads pictures, and needs torchvision
        text_encoder=text_encoder,
        vae=flux2_vae(),
        transformer=BriaFibo2Transformer2DModel(
            in_channels=LATENT,
            dim=96,  # the inner width is rounded down to a multiple of 256
            n_layers=5,
            n_refiner_layers=1,
            n_heads=12,
            cap_feat_dim=3 * text.WIDTH,
            injection_layer_ids=(0, 1, 2, 3, 4),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=64,
            axes_dims=ROPE,
            axes_lens=(64, 16, 16),
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def _joy(
    transformer: type[JoyImageEditTransformer3DModel | JoyImageEditPlusTransformer3DModel],
) -> dict[str, Any]:
    """The first of the two always makes about a megapixel, so the autoencoder shrinks by 32."""
    tokenizer, text_encoder = texts.qwen3_vl_whole()
    return {
        "tokenizer": tokenizer,
        "processor": tokenizer,  # the real one reads pictures, and needs torchvision
        "text_encoder": text_encoder,
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=LATENT,
            dim_mult=[1] * 6,
            num_res_blocks=1,
            temperal_downsample=[False] * 5,
            latents_mean=[0.0] * LATENT,
            latents_std=[1.0] * LATENT,
            scale_factor_spatial=32,
            scale_factor_temporal=1,
        ),
        "transformer": loud(
            transformer(
                in_channels=LATENT,
                out_channels=LATENT,
                hidden_size=WIDTH,
                num_attention_heads=2,
                text_dim=text.WIDTH,
                num_layers=2,
                rope_dim_list=list(ROPE),
            )
        ),
        "scheduler": flow(shift=4.0),
    }


def joy_image() -> JoyImageEditPipeline:
    return JoyImageEditPipeline(**_joy(JoyImageEditTransformer3DModel))


def joy_image_plus() -> JoyImageEditPlusPipeline:
    return JoyImageEditPlusPipeline(**_joy(JoyImageEditPlusTransformer3DModel))


def _prx(in_channels: int) -> dict[str, Any]:
    tokenizer, text_encoder = text.gemma()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "transformer": loud(
            PRXTransformer2DModel(
                in_channels=in_channels,
                patch_size=2,
                context_in_dim=text.WIDTH,
                hidden_size=WIDTH,
                num_heads=2,
                depth=2,
                axes_dim=[4, 4],
            )
        ),
        "scheduler": flow(shift=3.0),
    }


def prx() -> PRXPipeline:
    return PRXPipeline(**_prx(LATENT), vae=autoencoders.kl(shift=0.1))


def prx_pixel() -> PRXPixelPipeline:
    """The denoiser tells the picture, of which the pipeline makes a flow."""
    return PRXPixelPipeline(**_prx(in_channels=3))


# They cannot read a text without the library ftfy.
READ = {
    "prompt_embeds": f"noise-1x8x{text.WIDTH}.safetensors",
    "negative_prompt_embeds": f"noise-1x8x{text.WIDTH}-9.safetensors",
}

ENTRIES = {
    "longcat_image": entry(longcat_image, "flow", SMALL | {"enable_prompt_rewrite": False}),
    "hidream": entry(hidream, "flow", SMALL | SHORT, output="whole, negated"),
    "ernie_image": entry(ernie_image, "flow"),
    "nucleus": entry(nucleus, "flow", SMALL | {"return_index": -1}, output="whole, negated"),
    "bria_fibo2": entry(bria_fibo2, "flow"),
    "joy_image": entry(joy_image, "flow"),
    "joy_image_plus": entry(joy_image_plus, "flow", {"height": 128, "width": 128}),
    "prx": entry(prx, "flow", SMALL | UNBINNED, inputs=READ, takes_prompt=False),
    "prx_pixel": entry(
        prx_pixel,
        "flow",
        SMALL | UNBINNED,
        inputs=READ,
        takes_prompt=False,
        output="whole, scaled",
    ),
}
