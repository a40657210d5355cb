"""Image pipelines on a transformer."""

from typing import Any

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from . import autoencoders, text
from .entry import NEGATIVE, SHORT, SMALL, UNBINNED, entry

LATENT = autoencoders.CHANNELS
PACKED = 4 * LATENT  # two by two latent pixels make one token
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
WIDTH = 16
ROPE = (2, 2, 4)


def flow(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**settings)


def sd3() -> StableDiffusion3Pipeline:
    tokenizer, text_encoder = text.clip_projected()
    tokenizer_2, text_encoder_2 = text.clip_projected()
    tokenizer_3, text_encoder_3 = text.t5()
    return StableDiffusion3Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        tokenizer_3=tokenizer_3,
        text_encoder_3=text_encoder_3,
        vae=autoencoders.kl(shift=0.1),
        transformer=SD3Transformer2DModel(
            **HEADS,
            sample_size=8,
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            joint_attention_dim=text.T5_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * text.WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        ),
        scheduler=flow(shift=3.0),
    )


def pixart() -> PixArtSigmaPipeline:
    """The denoiser also learns a variance, which the pipeline drops: half of its channels."""
    tokenizer, text_encoder = text.t5()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(),
        transformer=PixArtTransformer2DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=2 * LATENT,
            num_layers=2,
            cross_attention_dim=WIDTH,
            caption_channels=text.T5_WIDTH,
            sample_size=8,
            norm_num_groups=4,
        ),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )


def qwen_image() -> QwenImagePipeline:
    tokenizer, text_encoder = text.qwen()
    return QwenImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.qwen_image(),
        transformer=QwenImageTransformer2DModel(
            **HEADS,
            in_channels=PACKED,
            out_channels=LATENT,
            num_layers=2,
            joint_attention_dim=text.WIDTH,
            axes_dims_rope=ROPE,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def chroma() -> ChromaPipeline:
    tokenizer, text_encoder = text.t5()
    return ChromaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(shift=0.1),
        transformer=ChromaTransformer2DModel(
            **HEADS,
            in_channels=PACKED,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=text.T5_WIDTH,
            axes_dims_rope=ROPE,
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def _flux(*, guidance_embeds: bool) -> FluxPipeline:
    tokenizer, text_encoder = text.clip()
    tokenizer_2, text_encoder_2 = text.t5()
    return FluxPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        vae=autoencoders.kl(shift=0.1),
        transformer=FluxTransformer2DModel(
            **HEADS,
            in_channels=PACKED,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=text.T5_WIDTH,
            pooled_projection_dim=text.WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=ROPE,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def flux() -> FluxPipeline:
    return _flux(guidance_embeds=False)


def flux_guidance_embedded() -> FluxPipeline:
    """Guidance enters as an embedding of its scale: there is no second pass."""
    return _flux(guidance_embeds=True)


def lumina2() -> Lumina2Pipeline:
    tokenizer, text_encoder = text.gemma()
    return Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(levels=4, shift=0.1),
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=LATENT,
            hidden_size=WIDTH,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=ROPE,
            axes_lens=(128, 16, 16),
            cap_feat_dim=text.WIDTH,
        ),
        scheduler=flow(),
    )


def sana() -> SanaPipeline:
    tokenizer, text_encoder = text.gemma()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.deep_compression(),
        transformer=SanaTransformer2DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=WIDTH,
            caption_channels=text.WIDTH,
            sample_size=8,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


ENTRIES = {
    "sd3": entry(sd3, "flow", SMALL | SHORT),
    "pixart": entry(
        pixart,
        "epsilon",
        SMALL | SHORT | UNBINNED | {"clean_caption": False},
        output="first along dimension 1",
    ),
    "qwen_image": entry(qwen_image, "flow", SMALL | SHORT | NEGATIVE, guidance="true_cfg_scale"),
    "chroma": entry(chroma, "flow", SMALL | SHORT),
    "lumina2": entry(
        lumina2,
        "flow",
        {"height": 64, "width": 64, "max_sequence_length": 32, "system_prompt": "a photo of"},
        output="whole, negated",
    ),
    "flux": entry(flux, "flow", SMALL | SHORT | NEGATIVE, guidance="true_cfg_scale"),
    "sana": entry(
        sana,
        "flow",
        SHORT | UNBINNED | {"height": 32, "width": 32, "complex_human_instruction": None},
    ),
}

UNFOLDABLE = {
    "flux_guidance_embedded": entry(flux_guidance_embedded, "flow", SMALL | SHORT, passes=1)
}
