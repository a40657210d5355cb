"""Qwen-Image's variants: from a picture, inpainting, control, editing; and Qwen-Image 2.1."""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    DiffusionPipeline,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
from transformers import (
    PaddleOCRVLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from . import image, text
from .entry import NEGATIVE, Build, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow
from .image_variants import CONTROL, IMAGE, MASKED, SIZED, TRUE_CFG, like

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if message.content is string else message.content[0].text }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> Qwen2Tokenizer:
    tokenizer, _ = text.qwen()
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3_sizes(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": text.WIDTH,
        "intermediate_size": 2 * text.WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }


def qwen_controlnet(extra: int = 0) -> QwenImageControlNetModel:
    """`extra`: channels of a packed mask."""
    return QwenImageControlNetModel(
        **HEADS,
        in_channels=PACKED,
        out_channels=LATENT,
        num_layers=1,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=ROPE,
        extra_condition_channels=extra,
    )


IMAGE_TOKEN = "<|image_pad|>"
TAGS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN]
PATCH = 16


def seeing_tokenizer() -> Qwen2Tokenizer:
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": TAGS})
    tokenizer._set_model_specific_special_tokens({"image_token": IMAGE_TOKEN})
    return tokenizer


def processor(tokenizer: Qwen2Tokenizer, patch: int = 14) -> PaddleOCRVLProcessor:
    """Does what Qwen's own does, but without its video processor, which needs torchvision."""
    size = {"shortest_edge": 4 * patch**2, "longest_edge": 16 * patch**2}
    pictures = Qwen2VLImageProcessor(size=size, patch_size=patch)
    return PaddleOCRVLProcessor(pictures, tokenizer, chat_template=CHAT)


def qwen_seeing() -> QwenImagePipeline:
    """Qwen-Image's parts for pipelines that show the text encoder pictures of a megapixel.

    Its VAE would take seconds for one. Wan's, which has the same settings, can cut patches first.
    """
    parts = image.qwen_image().components
    tokenizer = seeing_tokenizer()
    config = parts["text_encoder"].config
    config.text_config.vocab_size = len(tokenizer)
    config.image_token_id = tokenizer.image_token_id
    config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    parts["tokenizer"] = tokenizer
    parts["text_encoder"] = type(parts["text_encoder"])(config)
    parts["vae"] = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 5,  # as many as times that a side is halved
        latents_mean=[0.0] * LATENT,
        latents_std=[1.0] * LATENT,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        patch_size=PATCH,
    )
    return QwenImagePipeline(**parts)


def qwen_edit(kind: type[DiffusionPipeline]) -> Build:
    return like(qwen_seeing, kind, processor=lambda parts: processor(parts["tokenizer"]))


def qwen_image_21() -> QwenImage21Pipeline:
    tokenizer = seeing_tokenizer()
    config = Qwen3VLConfig(
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        text_config={
            **qwen3_sizes(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "out_hidden_size": text.WIDTH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    return QwenImage21Pipeline(
        processor=processor(tokenizer, patch=16),
        text_encoder=Qwen3VLForConditionalGeneration(config),
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=LATENT,
            dim_mult=[1] * 5,
            num_res_blocks=1,
            temperal_downsample=[False] * 4,
            latents_mean=[0.0] * LATENT,
            latents_std=[1.0] * LATENT,
        ),
        transformer=QwenImage21Transformer2DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            context_in_dim=text.WIDTH,
            axes_dims_rope=ROPE,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


FILL = {"control_image": "cat.png", "control_mask": "mask.png"}
QWEN = SIZED | NEGATIVE
# With its cache, a step's denoiser reads what the first step left in an argument.
QWEN_21 = NEGATIVE | {"height": 64, "width": 64, "output_resolution": 64}
EDIT = NEGATIVE | {"height": 128, "width": 128}
TARGET_FIRST = "first along dimension 1"

ENTRIES = {
    "qwen_image_img2img": entry(
        like(image.qwen_image, QwenImageImg2ImgPipeline), "flow", QWEN, inputs=IMAGE, **TRUE_CFG
    ),
    "qwen_image_inpaint": entry(
        like(image.qwen_image, QwenImageInpaintPipeline), "flow", QWEN, inputs=MASKED, **TRUE_CFG
    ),
    "qwen_image_controlnet": entry(
        like(
            image.qwen_image,
            QwenImageControlNetPipeline,
            controlnet=lambda _: qwen_controlnet(),
        ),
        "flow",
        QWEN,
        inputs=CONTROL,
        **TRUE_CFG,
    ),
    "qwen_image_controlnet_inpaint": entry(
        like(
            image.qwen_image,
            QwenImageControlNetInpaintPipeline,
            controlnet=lambda _: qwen_controlnet(extra=4),
        ),
        "flow",
        QWEN,
        inputs=FILL,
        **TRUE_CFG,
    ),
    "qwen_image_edit": entry(
        qwen_edit(QwenImageEditPipeline),
        "flow",
        EDIT,
        inputs=IMAGE,
        output=TARGET_FIRST,
        **TRUE_CFG,
    ),
    "qwen_image_edit_plus": entry(
        qwen_edit(QwenImageEditPlusPipeline),
        "flow",
        EDIT,
        inputs={"image": ["cat.png", "dog.png"]},
        output=TARGET_FIRST,
        **TRUE_CFG,
    ),
    "qwen_image_edit_inpaint": entry(
        qwen_edit(QwenImageEditInpaintPipeline),
        "flow",
        EDIT,
        inputs=MASKED,
        output=TARGET_FIRST,
        **TRUE_CFG,
    ),
    "qwen_image_21": entry(
        qwen_image_21,
        "flow",
        QWEN_21 | {"use_kv_cache": False},
        output="last along dimension 1",
        **TRUE_CFG,
    ),
    "qwen_image_21_edit": entry(
        qwen_image_21,
        "flow",
        QWEN_21,
        inputs=IMAGE,
        output="last along dimension 1",
        memory=True,
        **TRUE_CFG,
    ),
}
