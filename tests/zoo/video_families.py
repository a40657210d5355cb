"""Video pipelines on a transformer: HunyuanVideo, LTX, CogVideoX and families of one pipeline."""

from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMochi,
    ClassifierFreeGuidance,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from . import autoencoders, text, video
from .entry import NEGATIVE, SHORT, entry
from .image import HEADS, LATENT, ROPE, WIDTH, flow

SIDE = 16  # of the pictures that an image encoder sees


def siglip() -> dict[str, Any]:
    """An image encoder and what cuts pictures to its size."""
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return {"image_encoder": SiglipVisionModel(config), "feature_extractor": processor}


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """Shrink by 8 on each side and by 4 in time."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def _hunyuan_parts(*, shifting: bool = False) -> dict[str, Any]:
    tokenizer = text.t5_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,  # the last two are skipped
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer_2, text_encoder_2 = text.clip()
    return {
        "tokenizer": tokenizer,
        "text_encoder": LlamaModel(llama),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": text_encoder_2,
        "vae": hunyuan_vae(),
        "scheduler": flow(use_dynamic_shifting=shifting, shift=1.0 if shifting else 7.0),
    }


def _hunyuan_sizes(channels: int = LATENT) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": LATENT,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": text.WIDTH,
        "rope_axes_dim": ROPE,
    }
    return HEADS | sizes


def hunyuan_video() -> HunyuanVideoPipeline:
    return HunyuanVideoPipeline(
        **_hunyuan_parts(), transformer=HunyuanVideoTransformer3DModel(**_hunyuan_sizes())
    )


def hunyuan_skyreels_i2v() -> HunyuanSkyreelsImageToVideoPipeline:
    return HunyuanSkyreelsImageToVideoPipeline(
        **_hunyuan_parts(), transformer=HunyuanVideoTransformer3DModel(**_hunyuan_sizes(2 * LATENT))
    )


def hunyuan_framepack() -> HunyuanVideoFramepackPipeline:
    transformer = HunyuanVideoFramepackTransformer3DModel(
        **_hunyuan_sizes(), has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True
    )
    return HunyuanVideoFramepackPipeline(
        **_hunyuan_parts(shifting=True), **siglip(), transformer=transformer
    )


def _hunyuan15_parts() -> dict[str, Any]:
    tokenizer, language = text.qwen()
    # The pipeline drops the first 108 tokens, which a system's message fills.
    tokenizer.chat_template = (
        "{% for turn in messages if turn.role == 'user' %}"
        "{{ ' system' * 108 }} {{ turn.content }}{% endfor %}"
    )
    encoder = language.model.language_model
    torch.nn.init.normal_(encoder.embed_tokens.weight)  # read unnormed: smaller, no word matters
    tokenizer_2 = ByT5Tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=text.T5_WIDTH,
        d_kv=8,
        d_ff=2 * text.T5_WIDTH,
        num_layers=1,
        num_heads=2,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": T5EncoderModel(t5),
        "vae": AutoencoderKLHunyuanVideo15(
            latent_channels=LATENT,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            spatial_compression_ratio=4,
        ),
        "transformer": HunyuanVideo15Transformer3DModel(
            **HEADS,
            in_channels=2 * LATENT + 1,
            out_channels=LATENT,
            num_layers=1,
            num_refiner_layers=1,
            text_embed_dim=text.WIDTH,
            text_embed_2_dim=text.T5_WIDTH,
            image_embed_dim=WIDTH,
            rope_axes_dim=ROPE,
            target_size=SIDE,
        ),
        "scheduler": flow(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def hunyuan_video15() -> HunyuanVideo15Pipeline:
    return HunyuanVideo15Pipeline(**_hunyuan15_parts())


def hunyuan_video15_i2v() -> HunyuanVideo15ImageToVideoPipeline:
    return HunyuanVideo15ImageToVideoPipeline(**_hunyuan15_parts(), **siglip())


def ltx_i2v() -> LTXImageToVideoPipeline:
    return LTXImageToVideoPipeline(**video.ltx().components)


def ltx_condition() -> LTXConditionPipeline:
    return LTXConditionPipeline(**video.ltx().components | {"scheduler": flow()})


def cogvideox_v2v() -> CogVideoXVideoToVideoPipeline:
    return CogVideoXVideoToVideoPipeline(**video.cogvideox().components)


def _conditioned() -> dict[str, Any]:
    """CogVideoX whose denoiser takes a condition's latents beside the noise."""
    parts = video.cogvideox().components
    transformer = CogVideoXTransformer3DModel.from_config(
        parts["transformer"].config, in_channels=2 * LATENT
    )
    return parts | {"transformer": transformer}


def cogvideox_i2v() -> CogVideoXImageToVideoPipeline:
    return CogVideoXImageToVideoPipeline(**_conditioned())


def cogvideox_control() -> CogVideoXFunControlPipeline:
    return CogVideoXFunControlPipeline(**_conditioned())


def mochi() -> MochiPipeline:
    tokenizer, text_encoder = text.t5()
    return MochiPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderKLMochi(
            latent_channels=LATENT,
            encoder_block_out_channels=(32, 32, 32, 32),  # its norms have 32 groups
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=[0.0] * LATENT,
            latents_std=[1.0] * LATENT,
        ),
        transformer=MochiTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            num_layers=2,
            pooled_projection_dim=WIDTH,
            text_embed_dim=text.T5_WIDTH,
            time_embed_dim=8,
            max_sequence_length=16,
        ),
        scheduler=flow(invert_sigmas=True),
    )


def allegro() -> AllegroPipeline:
    tokenizer, text_encoder = text.t5()
    return AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderKLAllegro(
            latent_channels=LATENT,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,  # rotary embeddings of time, height and width each take a third
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            cross_attention_dim=48,
            sample_height=4,
            sample_width=4,
            sample_frames=2,
            caption_channels=text.T5_WIDTH,
        ),
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
        ),
    )


def latte() -> LattePipeline:
    tokenizer, text_encoder = text.t5()
    return LattePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(),
        transformer=LatteTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=2 * LATENT,
            num_layers=1,
            cross_attention_dim=WIDTH,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            caption_channels=text.T5_WIDTH,
            video_length=3,
        ),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


SQUARE = {"height": 32, "width": 32}
FEW = SQUARE | {"num_frames": 9}
CAT = {"image": "cat.png"}
VIDEO = {"video": "frames"}
TEMPLATE = {"prompt_template": {"template": "a video of {}", "crop_start": 3}}
HUNYUAN: dict[str, Any] = SHORT | NEGATIVE | TEMPLATE | SQUARE | {"num_frames": 5}

ENTRIES = {
    "hunyuan_video": entry(hunyuan_video, "flow", HUNYUAN, guidance="true_cfg_scale"),
    "hunyuan_skyreels_i2v": entry(
        hunyuan_skyreels_i2v, "flow", HUNYUAN, inputs=CAT, guidance="true_cfg_scale"
    ),
    "hunyuan_framepack": entry(
        hunyuan_framepack,
        "flow",
        HUNYUAN | {"latent_window_size": 2},
        inputs=CAT,
        guidance="true_cfg_scale",
    ),
    "hunyuan_video15": entry(
        hunyuan_video15,
        "flow",
        {"height": 16, "width": 16, "num_frames": 5},
        guidance="guider.guidance_scale",
    ),
    "hunyuan_video15_i2v": entry(
        hunyuan_video15_i2v,
        "flow",
        {"num_frames": 5},
        inputs=CAT,
        guidance="guider.guidance_scale",
    ),
    "ltx_i2v": entry(
        ltx_i2v, "flow", SHORT | FEW, inputs=CAT, output="unpacked, last along dimension 2"
    ),
    "ltx_condition": entry(ltx_condition, "flow", SHORT | FEW, inputs=CAT, output="whole, negated"),
    "cogvideox_v2v": entry(
        cogvideox_v2v, "v_prediction", SHORT | SQUARE | {"strength": 1.0}, inputs=VIDEO
    ),
    "cogvideox_i2v": entry(cogvideox_i2v, "v_prediction", SHORT | FEW, inputs=CAT),
    "cogvideox_control": entry(
        cogvideox_control, "v_prediction", SHORT | SQUARE, inputs={"control_video": "frames"}
    ),
    "mochi": entry(mochi, "flow", SHORT | SQUARE | {"num_frames": 7}),
    "allegro": entry(
        allegro, "epsilon", SHORT | SQUARE | {"num_frames": 8, "clean_caption": False}
    ),
    "latte": entry(
        latte,
        "epsilon",
        {"height": 16, "width": 16, "video_length": 3, "clean_caption": False},
        output="first along dimension 1",
    ),
}
