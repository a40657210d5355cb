"""Image pipelines that read prompts with a Qwen: Qwen-Image's variants, Z-Image, Flux 2."""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    DiffusionPipeline,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
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
    PaddleOCRVLProcessor,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from . import autoencoders, image, text
from .entry import NEGATIVE, SHORT, Build, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow
from .image_variants import CONTROL, IMAGE, MASKED, SIZED, TRUE_CFG, Parts, like, resized

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
QWEN_21 = NEGATIVE | {"height": 64, "width": 64, "output_resolution": 64, "use_kv_cache": False}
EDIT = NEGATIVE | {"height": 128, "width": 128}
# Guidance adds its scale times the difference: two passes at 1.0, one at 0.0.
Z_IMAGE: dict[str, Any] = {"output": "stacked, negated", "off": {"guidance_scale": 0.0}}
WHOLE = SHORT | {"height": 32, "width": 32}  # the picture's own size
KLEIN = SIZED | {"text_encoder_out_layers": [0, 1, 2]}
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
        qwen_image_21, "flow", QWEN_21, output="last along dimension 1", **TRUE_CFG
    ),
    "qwen_image_21_edit": entry(
        qwen_image_21,
        "flow",
        QWEN_21,
        inputs=IMAGE,
        output="last along dimension 1",
        **TRUE_CFG,
    ),
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
