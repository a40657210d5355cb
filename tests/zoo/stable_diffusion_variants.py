"""Pipelines made from Stable Diffusion 1 and 2: other inputs, nets beside the UNet, perturbed
attention. Those made from Stable Diffusion XL are in `stable_diffusion_xl_variants`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetXSAdapter,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    MultiControlNetModel,
    PriorTransformer,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionUpscalePipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    T2IAdapter,
    UnCLIPScheduler,
    UNet2DConditionModel,
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
from .entry import SMALL, Build, Entry, entry
from .stable_diffusion import CHANNELS, lcm, sd15, sd_v

LATENT = autoencoders.CHANNELS
NOTHING: Mapping[str, Any] = MappingProxyType({})
SETTINGS = {"requires_safety_checker": False, "add_watermarker": False}
VIEW = 28  # the side of the picture that a picture encoder reads, in pixels
PATCH = 14
WHOLE = {"strength": 1.0}  # else an image-to-image run of two steps makes one
PICTURE = {"image": "cat.png"}
MASKED = {**PICTURE, "mask_image": "mask.png"}
EDGES = {"image": "edges.png"}
LED = {"control_image": "edges.png"}  # where `image` is the picture to change


def like(
    source: Callable[[], DiffusionPipeline],
    kind: Callable[..., DiffusionPipeline],
    settings: Mapping[str, Any] = NOTHING,
    unet: Mapping[str, Any] = NOTHING,
    **parts: Callable[[], Any],
) -> Build:
    """A pipeline of another class, from the parts of this one that it has arguments for.

    Its UNet is made anew where it differs; `parts` are made when the pipeline is.
    """

    def build() -> DiffusionPipeline:
        given = source().components | SETTINGS | settings
        if unet:
            given["unet"] = changed_unet(source, unet)
        given |= {name: make() for name, make in parts.items()}
        return kind(
            **{n: part for n, part in given.items() if n in inspect.signature(kind).parameters}
        )

    return build


def changed_unet(
    source: Callable[[], DiffusionPipeline], changes: Mapping[str, Any]
) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(source().unet.config, **changes)


def control(source: Callable[[], DiffusionPipeline]) -> ControlNetModel:
    """Reads its picture at the autoencoder's shrinking factor, two."""
    return ControlNetModel.from_unet(
        source().unet, conditioning_embedding_out_channels=(CHANNELS[0],) * 2
    )


def control_xs(source: Callable[[], DiffusionPipeline]) -> ControlNetXSAdapter:
    return ControlNetXSAdapter.from_unet(
        source().unet,
        block_out_channels=CHANNELS,
        conditioning_embedding_out_channels=(CHANNELS[0],) * 2,
    )


def adapter(shrinks: int, kind: str = "full_adapter") -> T2IAdapter:
    return T2IAdapter(
        channels=list(CHANNELS), num_res_blocks=1, downscale_factor=shrinks, adapter_type=kind
    )


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


def gligen() -> DiffusionPipeline:
    """Its gates, scalars that start at zero, stand open."""
    pipeline = like(sd15, StableDiffusionGLIGENPipeline, unet={"attention_type": "gated"})()
    for name, parameter in pipeline.unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            torch.nn.init.ones_(parameter)
    return pipeline


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
INPAINTING = {"in_channels": 2 * LATENT + 1}  # the masked picture and the mask beside the latents
EDITING = {"in_channels": 2 * LATENT}
TWO_LAYERS = {"layers_per_block": 2}  # as many as ControlNet-XS counts on
WIDE = {"height": 64, "width": 576}  # two views of 64 latent pixels, eight apart
GROUNDED = {
    "gligen_phrases": ["a red cat"],
    "gligen_boxes": [[0.1, 0.2, 0.6, 0.8]],
    "gligen_scheduled_sampling_beta": 1.0,  # in every step
}
CONTROLLED: dict[str, Callable[[], Any]] = {"controlnet": partial(control, sd15)}


def _two_controls() -> MultiControlNetModel:
    return MultiControlNetModel([control(sd15), control(sd15)])


def _shrinking_by_8() -> AutoencoderKL:
    """A panorama's views are laid out as if no autoencoder shrank by less."""
    return autoencoders.kl(levels=4)


def _barely_scaling() -> AutoencoderKL:
    """The upscaler warns of any other factor."""
    return AutoencoderKL.from_config(autoencoders.kl().config, scaling_factor=0.08333)


def _one(
    kind: Callable[..., DiffusionPipeline],
    call: Mapping[str, Any] = SMALL,
    inputs: Mapping[str, Any] = PICTURE,
    *,
    unet: Mapping[str, Any] = NOTHING,
    off: Mapping[str, float] = NOTHING,
    passes: int = 2,
    **parts: Callable[[], Any],
) -> Entry:
    """An entry for a pipeline that is Stable Diffusion 1.5 with a few other parts."""
    if "PAG" in kind.__name__:
        off = {"pag_scale": 0.0}
    build = like(sd15, kind, unet=unet, **parts)
    return entry(build, "epsilon", call, inputs=inputs, denoiser="unet", off=off, passes=passes)


ENTRIES = {
    "sd15_img2img": _one(StableDiffusionImg2ImgPipeline, WHOLE),
    "sd15_inpaint": _one(StableDiffusionInpaintPipeline, SMALL | WHOLE, MASKED),
    "sd15_inpaint_9": _one(StableDiffusionInpaintPipeline, SMALL | WHOLE, MASKED, unet=INPAINTING),
    "sd15_pix2pix": _one(StableDiffusionInstructPix2PixPipeline, {}, unet=EDITING, passes=3),
    "sd15_controlnet": _one(StableDiffusionControlNetPipeline, SMALL, EDGES, **CONTROLLED),
    "sd15_controlnet_guess": _one(
        StableDiffusionControlNetPipeline, SMALL | {"guess_mode": True}, EDGES, **CONTROLLED
    ),
    "sd15_controlnet_two": _one(
        StableDiffusionControlNetPipeline,
        SMALL | {"controlnet_conditioning_scale": [1.0, 0.5]},
        {"image": ["edges.png", "cat.png"]},
        controlnet=_two_controls,
    ),
    "sd15_controlnet_img2img": _one(
        StableDiffusionControlNetImg2ImgPipeline, SMALL | WHOLE, PICTURE | LED, **CONTROLLED
    ),
    "sd15_controlnet_inpaint": _one(
        StableDiffusionControlNetInpaintPipeline, SMALL | WHOLE, MASKED | LED, **CONTROLLED
    ),
    "sd15_controlnet_xs": _one(
        StableDiffusionControlNetXSPipeline,
        SMALL,
        EDGES,
        unet=TWO_LAYERS,
        controlnet=partial(control_xs, sd15),
    ),
    "sd15_pag_img2img": _one(StableDiffusionPAGImg2ImgPipeline, WHOLE, passes=3),
    "sd15_pag_inpaint": _one(StableDiffusionPAGInpaintPipeline, SMALL | WHOLE, MASKED, passes=3),
    "sd15_controlnet_pag": _one(
        StableDiffusionControlNetPAGPipeline, SMALL, EDGES, passes=3, **CONTROLLED
    ),
    "sd15_controlnet_pag_inpaint": _one(
        StableDiffusionControlNetPAGInpaintPipeline,
        SMALL | WHOLE,
        MASKED | LED,
        passes=3,
        **CONTROLLED,
    ),
    "sd15_t2i_adapter": _one(
        StableDiffusionAdapterPipeline,
        SMALL,
        EDGES,
        unet={
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        adapter=partial(adapter, shrinks=2),
    ),
    "sd15_gligen": entry(gligen, "epsilon", SMALL | GROUNDED, denoiser="unet"),
    "sd15_panorama": _one(StableDiffusionPanoramaPipeline, WIDE, {}, vae=_shrinking_by_8),
    "sd15_sag": _one(StableDiffusionSAGPipeline, inputs={}, passes=3, off={"sag_scale": 0.0}),
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
    "sd2_depth": _one(
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

UNFOLDABLE = {
    "lcm_img2img": entry(
        like(lcm, LatentConsistencyModelImg2ImgPipeline),
        "epsilon",
        WHOLE,
        inputs=PICTURE,
        denoiser="unet",
        passes=1,
    )
}
