"""Image pipelines on a transformer, of the families beside those that most people use."""

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)

from . import autoencoders, text
from . import image_families_text as texts
from .entry import SHORT, SMALL, UNBINNED, entry
from .image import HEADS, LATENT, PACKED, ROPE, WIDTH, flow

LARGER = {"height": 32, "width": 32}


def loud(model: torch.nn.Module, gain: float = 2.0) -> torch.nn.Module:
    """Scale the matrices up: small random gates in a row would hide what the prompt does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return model


def aura_flow() -> AuraFlowPipeline:
    tokenizer, text_encoder = text.umt5()
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(),
        transformer=loud(
            AuraFlowTransformer2DModel(
                **HEADS,
                sample_size=8,
                in_channels=LATENT,
                out_channels=LATENT,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                joint_attention_dim=text.T5_WIDTH,
                caption_projection_dim=WIDTH,
                pos_embed_max_size=64,
            )
        ),
        scheduler=flow(shift=1.73),
    )


COGVIEW: dict[str, Any] = {
    **HEADS,
    "out_channels": LATENT,
    "num_layers": 2,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}


def _cogview4(in_channels: int) -> dict[str, Any]:
    tokenizer, text_encoder = texts.glm()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoders.kl(),
        "transformer": loud(
            CogView4Transformer2DModel(
                **COGVIEW, in_channels=in_channels, text_embed_dim=text.WIDTH, rope_axes_dim=(8, 8)
            )
        ),
        "scheduler": flow(use_dynamic_shifting=True, time_shift_type="linear", max_shift=0.75),
    }


def cogview4() -> CogView4Pipeline:
    return CogView4Pipeline(**_cogview4(LATENT))


def cogview4_control() -> CogView4ControlPipeline:
    return CogView4ControlPipeline(**_cogview4(2 * LATENT))


def cogview3_plus() -> CogView3PlusPipeline:
    tokenizer, text_encoder = text.t5()
    return CogView3PlusPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(),
        transformer=CogView3PlusTransformer2DModel(
            **COGVIEW, in_channels=LATENT, text_embed_dim=text.T5_WIDTH
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )


HUNYUAN: dict[str, Any] = {
    **HEADS,
    "in_channels": LATENT,
    "patch_size": 2,
    "sample_size": 4,
    "hidden_size": WIDTH,
    "cross_attention_dim": text.WIDTH,
    "cross_attention_dim_t5": text.T5_WIDTH,
    "pooled_projection_dim": 8,
    "use_style_cond_and_image_meta_size": False,
}


def _hunyuan_dit() -> dict[str, Any]:
    """The denoiser also learns a variance, which the pipeline drops: half of its channels."""
    tokenizer, text_encoder = texts.bert()
    tokenizer_2, text_encoder_2 = text.t5()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": text_encoder_2,
        "vae": autoencoders.kl(levels=4),
        "transformer": HunyuanDiT2DModel(**HUNYUAN, num_layers=4),
        "scheduler": DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.03,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def hunyuan_dit() -> HunyuanDiTPipeline:
    return HunyuanDiTPipeline(**_hunyuan_dit())


def hunyuan_dit_pag() -> HunyuanDiTPAGPipeline:
    return HunyuanDiTPAGPipeline(**_hunyuan_dit(), pag_applied_layers="blocks.1")


def hunyuan_dit_controlnet() -> HunyuanDiTControlNetPipeline:
    controlnet = HunyuanDiT2DControlNetModel(**HUNYUAN, transformer_num_layers=4)
    return HunyuanDiTControlNetPipeline(**_hunyuan_dit(), controlnet=controlnet)


def krea2() -> Krea2Pipeline:
    tokenizer, text_encoder = texts.qwen3_vl()
    return Krea2Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        text_encoder_select_layers=(0, 1, 2),
        vae=autoencoders.qwen_image(),
        transformer=Krea2Transformer2DModel(
            **HEADS,
            in_channels=PACKED,
            num_layers=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=text.WIDTH,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=ROPE,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


LAYERS: dict[str, int] = {"num_layers": 1, "num_single_layers": 1}


def bria() -> BriaPipeline:
    tokenizer, text_encoder = text.t5()
    return BriaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(shift=0.0),
        transformer=BriaTransformer2DModel(
            **HEADS,
            **LAYERS,
            in_channels=PACKED,
            joint_attention_dim=text.T5_WIDTH,
            axes_dims_rope=list(ROPE),
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def _bria_fibo() -> dict[str, Any]:
    tokenizer, text_encoder = texts.smol()
    width = text_encoder.config.hidden_size
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoders.wan(),
        "transformer": BriaFiboTransformer2DModel(
            **HEADS,
            **LAYERS,
            in_channels=LATENT,
            joint_attention_dim=2 * width,
            text_encoder_dim=width,
            axes_dims_rope=list(ROPE),
        ),
        "scheduler": flow(use_dynamic_shifting=True),
    }


def bria_fibo() -> BriaFiboPipeline:
    return BriaFiboPipeline(**_bria_fibo())


def bria_fibo_edit() -> BriaFiboEditPipeline:
    return BriaFiboEditPipeline(**_bria_fibo())


def ovis_image() -> OvisImagePipeline:
    tokenizer, text_encoder = texts.qwen3()
    return OvisImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.kl(shift=0.1),
        transformer=OvisImageTransformer2DModel(
            **HEADS,
            **LAYERS,
            in_channels=PACKED,
            out_channels=PACKED,
            joint_attention_dim=text.WIDTH,
            axes_dims_rope=ROPE,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


ENTRIES = {
    "aura_flow": entry(aura_flow, "flow", SMALL | SHORT),
    "cogview4": entry(cogview4, "flow", SMALL | SHORT),
    "cogview4_control": entry(
        cogview4_control, "flow", SMALL | SHORT, inputs={"control_image": "edges.png"}
    ),
    "cogview3_plus": entry(cogview3_plus, "v_prediction", SMALL | SHORT),
    "hunyuan_dit": entry(
        hunyuan_dit, "v_prediction", LARGER | UNBINNED, output="first along dimension 1"
    ),
    "hunyuan_dit_pag": entry(
        hunyuan_dit_pag,
        "v_prediction",
        LARGER | UNBINNED,
        output="first along dimension 1",
        off={"pag_scale": 0.0},
        passes=3,
    ),
    "hunyuan_dit_controlnet": entry(
        hunyuan_dit_controlnet,
        "v_prediction",
        LARGER | UNBINNED,
        inputs={"control_image": "edges.png"},
        output="first along dimension 1",
    ),
    "krea2": entry(krea2, "flow", SMALL | SHORT, off={"guidance_scale": 0.0}),
    "bria": entry(bria, "flow", SMALL | SHORT),
    "bria_fibo": entry(bria_fibo, "flow", {"height": 64, "width": 64}),
    "bria_fibo_edit": entry(
        bria_fibo_edit,
        "flow",
        {"height": 64, "width": 64},
        inputs={"prompt": '{"edit_instruction": "a big red dog"}', "image": "cat.png"},
        takes_prompt=False,  # not one in plain words
        output="first along dimension 1",
    ),
    "ovis_image": entry(ovis_image, "flow", SMALL | SHORT),
}
