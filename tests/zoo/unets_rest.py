"""Pipelines alone of their kind: a cascade, class labels, shapes, pixels."""

from typing import Any

from diffusers import (
    AltDiffusionImg2ImgPipeline,
    AltDiffusionPipeline,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    HeunDiscreteScheduler,
    IFImg2ImgPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    LDMTextToImagePipeline,
    PriorTransformer,
    ShapEImg2ImgPipeline,
    ShapEPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    VersatileDiffusionImageVariationPipeline,
    VersatileDiffusionTextToImagePipeline,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from diffusers.pipelines.shap_e.renderer import ShapERenderer
from transformers import CLIPVisionModel, XLMRobertaConfig, XLMRobertaModel

from . import autoencoders, text
from .entry import SMALL, Build, entry
from .image import HEADS
from .stable_diffusion import GROUPS, ddim, unet
from .unets import SIMPLE, eyes, multilingual_tokenizer, vision, vision_config

LATENT = autoencoders.CHANNELS
WIDTH = text.WIDTH
DIT_CLASSES = 1000  # the pipeline takes the class after the last one for none
SHAPE = 8  # so many vectors, so wide, are a shape


def cascade_unet(**conditions: Any) -> StableCascadeUNet:
    return StableCascadeUNet(
        in_channels=LATENT,
        out_channels=LATENT,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=WIDTH,
        block_out_channels=(WIDTH,),
        num_attention_heads=(2,),
        down_num_layers_per_block=(1,),
        up_num_layers_per_block=(1,),
        down_blocks_repeat_mappers=(1,),
        up_blocks_repeat_mappers=(1,),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=WIDTH,
        dropout=0.0,
        **conditions,
    )


def cascade_prior(**optional: Any) -> StableCascadePriorPipeline:
    tokenizer, text_encoder = text.clip_projected()
    return StableCascadePriorPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        prior=cascade_unet(clip_text_in_channels=WIDTH, clip_image_in_channels=WIDTH),
        scheduler=DDPMWuerstchenScheduler(),
        resolution_multiple=4.0,
        **optional,
    )


def cascade_prior_pictures() -> StableCascadePriorPipeline:
    return cascade_prior(image_encoder=vision(), feature_extractor=eyes())


def versatile() -> VersatileDiffusionTextToImagePipeline:
    tokenizer, text_encoder = text.clip_projected()
    return VersatileDiffusionTextToImagePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        image_unet=unet(),
        text_unet=None,  # once its layers for text are in the other one, it goes
        vae=autoencoders.kl(),
        scheduler=ddim(),
    )


def versatile_variation() -> VersatileDiffusionImageVariationPipeline:
    return VersatileDiffusionImageVariationPipeline(
        image_feature_extractor=eyes(),
        image_encoder=vision(),
        image_unet=unet(),
        vae=autoencoders.kl(),
        scheduler=ddim(),
    )


def dit() -> DiTPipeline:
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=2 * LATENT,
            num_layers=2,
            norm_num_groups=GROUPS,
            sample_size=8,
            num_embeds_ada_norm=DIT_CLASSES,
        ),
        vae=autoencoders.kl(),
        scheduler=ddim(),
    )


def latent_diffusion() -> LDMTextToImagePipeline:
    tokenizer = text.clip_tokenizer()
    config = LDMBertConfig(
        vocab_size=len(tokenizer),
        encoder_layers=1,
        encoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=WIDTH,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LDMTextToImagePipeline(
        tokenizer=tokenizer,
        bert=LDMBertModel(config),
        vqvae=autoencoders.kl(levels=4),
        unet=unet(),
        scheduler=ddim(),
    )


def _alt(pipeline: type[DiffusionPipeline]) -> Build:
    """Stable Diffusion with a text encoder of many languages."""

    def build() -> DiffusionPipeline:
        tokenizer = multilingual_tokenizer()
        config = XLMRobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=80,
            pad_token_id=tokenizer.pad_token_id,
        )
        return pipeline(
            tokenizer=tokenizer,
            text_encoder=XLMRobertaModel(config),
            vae=autoencoders.kl(),
            unet=unet(),
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return build


def _shaped() -> dict[str, Any]:
    return {
        "prior": PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            embedding_dim=SHAPE,
            num_embeddings=SHAPE,
            embedding_proj_dim=WIDTH,
            clip_embed_dim=2 * SHAPE,  # the shape, and a variance that is dropped
            embedding_proj_norm_type="layer",
            norm_in_type="layer",
            encoder_hid_proj_type=None,
            added_emb_type=None,
            additional_embeddings=0,
        ),
        "scheduler": HeunDiscreteScheduler(
            beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True
        ),
        "shap_e_renderer": ShapERenderer(
            param_shapes=((SHAPE, 93), *[(SHAPE, SHAPE)] * 3), d_latent=SHAPE, d_hidden=SHAPE
        ),
    }


def shap_e() -> ShapEPipeline:
    tokenizer, text_encoder = text.clip_projected()
    return ShapEPipeline(tokenizer=tokenizer, text_encoder=text_encoder, **_shaped())


def shap_e_img2img() -> ShapEImg2ImgPipeline:
    return ShapEImg2ImgPipeline(
        image_encoder=CLIPVisionModel(vision_config()),
        image_processor=eyes(),
        **_shaped(),
    )


def _deepfloyd(
    pipeline: type[DiffusionPipeline], *, larger: bool = False, learned: bool = True
) -> Build:
    """It paints in pixels; the second stage enlarges a picture, noised to a level it is told."""

    def build() -> DiffusionPipeline:
        tokenizer, text_encoder = text.t5()
        stage: dict[str, Any] = {}
        if larger:
            stage["image_noising_scheduler"] = DDPMScheduler()
        return pipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet(
                **SIMPLE,
                in_channels=6 if larger else 3,
                out_channels=6,
                class_embed_type="timestep" if larger else None,
                encoder_hid_dim=text.T5_WIDTH,
                encoder_hid_dim_type="text_proj",
                addition_embed_type="text",
                addition_embed_type_num_heads=2,
                cross_attention_norm="layer_norm",
                act_fn="gelu",
            ),
            scheduler=DDPMScheduler(
                variance_type="learned_range" if learned else "fixed_small",
                beta_schedule="squaredcos_cap_v2",
                thresholding=True,
                sample_max_value=1.5,
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
            **stage,
        )

    return build


UNET: dict[str, Any] = {"denoiser": "unet"}
PICTURE = {"image": "cat.png"}
MASKED = PICTURE | {"mask_image": "mask.png"}
RAW = {"clean_caption": False}
PIXELS = RAW | {"height": 8, "width": 8}
ENLARGED = PICTURE | {"original_image": "dog.png"}
HALF = {"strength": 0.5}
LEARNED = "first along dimension 1"

ENTRIES = {
    "cascade_prior": entry(cascade_prior, "epsilon", SMALL, denoiser="prior"),
    "cascade_prior_pictures": entry(
        cascade_prior_pictures,
        "epsilon",
        SMALL,
        inputs={"images": ["cat.png"]},
        denoiser="prior",
    ),
    "versatile": entry(versatile, "epsilon", denoiser="image_unet"),
    "versatile_variation": entry(
        versatile_variation, "epsilon", inputs=PICTURE, takes_prompt=False, denoiser="image_unet"
    ),
    "dit": entry(
        dit, "epsilon", {}, inputs={"class_labels": [3]}, takes_prompt=False, output=LEARNED
    ),
    "latent_diffusion": entry(latent_diffusion, "epsilon", {"height": 32, "width": 32}, **UNET),
    "alt_diffusion": entry(_alt(AltDiffusionPipeline), "epsilon", **UNET),
    "alt_diffusion_img2img": entry(
        _alt(AltDiffusionImg2ImgPipeline), "epsilon", {"strength": 1.0}, inputs=PICTURE, **UNET
    ),
    "shap_e": entry(shap_e, "sample", {}, denoiser="prior", output="first along dimension 2"),
    "shap_e_img2img": entry(
        shap_e_img2img,
        "sample",
        {},
        inputs=PICTURE,
        takes_prompt=False,
        denoiser="prior",
        output="first along dimension 2",
    ),
    "deepfloyd": entry(_deepfloyd(IFPipeline), "epsilon", PIXELS, **UNET),
    "deepfloyd_fixed_variance": entry(
        _deepfloyd(IFPipeline, learned=False), "epsilon", PIXELS, output=LEARNED, **UNET
    ),
    "deepfloyd_img2img": entry(
        _deepfloyd(IFImg2ImgPipeline), "epsilon", RAW | HALF, inputs=PICTURE, **UNET
    ),
    "deepfloyd_inpaint": entry(
        _deepfloyd(IFInpaintingPipeline), "epsilon", RAW, inputs=MASKED, **UNET
    ),
    "deepfloyd_larger": entry(
        _deepfloyd(IFSuperResolutionPipeline, larger=True),
        "epsilon",
        PIXELS,
        inputs=PICTURE,
        **UNET,
    ),
    "deepfloyd_larger_inpaint": entry(
        _deepfloyd(IFInpaintingSuperResolutionPipeline, larger=True),
        "epsilon",
        RAW | HALF,
        inputs=ENLARGED | MASKED,
        **UNET,
    ),
}
