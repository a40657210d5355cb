"""HunyuanVideo, the pipelines made from it, and HunyuanVideo 1.5."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from . import text
from .entry import NEGATIVE, SHORT, entry
from .image import HEADS, LATENT, ROPE, WIDTH, flow

SIDE = 16  # of the pictures that an image encoder sees
END = "<|end_header_id|>"  # three in a prompt, of which the last is cut off with three tokens more


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


def _hunyuan_i2v(channels: int, condition: str) -> HunyuanVideoImageToVideoPipeline:
    parts = _hunyuan_parts()
    tokenizer = parts["tokenizer"]
    tokenizer.add_tokens(["<image>", END], special_tokens=True)
    language = parts["text_encoder"].config.to_dict() | {"vocab_size": len(tokenizer)}
    config = LlavaConfig(
        text_config=LlamaConfig(**language),
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return HunyuanVideoImageToVideoPipeline(
        **parts | {"text_encoder": LlavaForConditionalGeneration(config)},
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        transformer=HunyuanVideoTransformer3DModel(
            **_hunyuan_sizes(channels), guidance_embeds=False, image_condition_type=condition
        ),
    )


def hunyuan_i2v() -> HunyuanVideoImageToVideoPipeline:
    return _hunyuan_i2v(2 * LATENT + 1, "latent_concat")


def hunyuan_i2v_replacing() -> HunyuanVideoImageToVideoPipeline:
    """The picture's latents take the first frame's place, which the scheduler does not see."""
    return _hunyuan_i2v(LATENT, "token_replace")


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


FEW = {"height": 32, "width": 32, "num_frames": 5}
CAT = {"image": "cat.png"}
TEMPLATE = {"prompt_template": {"template": "a picture of {}", "crop_start": 3}}
SEEING = {
    "prompt_template": {
        "template": f"<image> a {END} picture of {END} {{}} under the tree {END}",
        "crop_start": 6,
        "image_emb_start": 0,
        "image_emb_end": 4,
        "image_emb_len": 4,
    }
}
HUNYUAN: dict[str, Any] = SHORT | NEGATIVE | TEMPLATE | FEW

ENTRIES = {
    "hunyuan_video": entry(hunyuan_video, "flow", HUNYUAN, guidance="true_cfg_scale"),
    "hunyuan_skyreels_i2v": entry(
        hunyuan_skyreels_i2v, "flow", HUNYUAN, inputs=CAT, guidance="true_cfg_scale"
    ),
    "hunyuan_i2v": entry(
        hunyuan_i2v, "flow", HUNYUAN | SEEING, inputs=CAT, guidance="true_cfg_scale"
    ),
    "hunyuan_i2v_replacing": entry(
        hunyuan_i2v_replacing,
        "flow",
        HUNYUAN | SEEING,
        inputs=CAT,
        guidance="true_cfg_scale",
        output="last along dimension 2",
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
}
