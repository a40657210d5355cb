"""Kandinsky 2 and 3."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    Kandinsky3Img2ImgPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyCombinedPipeline,
    KandinskyImg2ImgCombinedPipeline,
    KandinskyImg2ImgPipeline,
    KandinskyInpaintCombinedPipeline,
    KandinskyInpaintPipeline,
    KandinskyPipeline,
    KandinskyPriorPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgCombinedPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    XLMRobertaTokenizer,
)

from . import autoencoders, text
from .entry import SMALL, Build, entry
from .stable_diffusion import ddim, unet

LATENT = autoencoders.CHANNELS
SIMPLE: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}


def vision_config(side: int = 8) -> CLIPVisionConfig:
    """Looks at a picture in four patches."""
    return CLIPVisionConfig(
        hidden_size=text.WIDTH,
        intermediate_size=2 * text.WIDTH,
        projection_dim=text.WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=side,
        patch_size=side // 2,
    )


def vision(side: int = 8) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(vision_config(side))


def eyes() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def movq(levels: int = 2) -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=LATENT,
        num_vq_embeddings=8,
        norm_num_groups=4,
        vq_embed_dim=LATENT,
    )


def _painter(
    kind: str, extra_channels: int = 0, scheduler: DDIMScheduler | DDPMScheduler | None = None
) -> dict[str, Any]:
    """The denoiser of Kandinsky 2, told an embedding of a picture, and what stands around it."""
    return {
        "unet": unet(
            **SIMPLE,
            in_channels=LATENT + extra_channels,
            out_channels=2 * LATENT,
            addition_embed_type=kind,
            encoder_hid_dim=text.WIDTH,
            encoder_hid_dim_type=f"{kind}_proj".replace("hint_", ""),
        ),
        # It takes the variance that the denoiser learned, so a model output is the whole of both.
        "scheduler": scheduler or DDPMScheduler(variance_type="learned_range", clip_sample=False),
        "movq": movq(),
    }


def _kandinsky22(
    pipeline: type[DiffusionPipeline], kind: str = "image", extra_channels: int = 0
) -> Build:
    return lambda: pipeline(**_painter(kind, extra_channels))


def kandinsky22_ddim() -> KandinskyV22Pipeline:
    return KandinskyV22Pipeline(**_painter("image", scheduler=ddim()))


def multilingual_tokenizer() -> XLMRobertaTokenizer:
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(f"▁{word}", -1.0) for word in dict.fromkeys(text.WORDS)]
    letters = [(letter, -10.0) for letter in ["▁", *text.PRINTABLE]]
    return XLMRobertaTokenizer(
        vocab=[*specials, *pieces, *letters, ("<mask>", 0.0)], model_max_length=77
    )


def _multilingual() -> dict[str, Any]:
    tokenizer = multilingual_tokenizer()
    config = MCLIPConfig(
        transformerDimSize=text.WIDTH,
        imageDimSize=text.WIDTH,
        vocab_size=len(tokenizer),
        hidden_size=text.WIDTH,
        intermediate_size=2 * text.WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=80,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"tokenizer": tokenizer, "text_encoder": MultilingualCLIP(config)}


def _kandinsky21(pipeline: type[DiffusionPipeline], extra_channels: int = 0) -> Build:
    return lambda: pipeline(**_multilingual(), **_painter("text_image", extra_channels, ddim()))


def _prior(pipeline: type[DiffusionPipeline]) -> Build:
    """What turns text into the embedding of a picture."""

    def build() -> DiffusionPipeline:
        tokenizer, text_encoder = text.clip_projected()
        return pipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            image_encoder=vision(),
            image_processor=eyes(),
            prior=PriorTransformer(
                num_attention_heads=2,
                attention_head_dim=8,
                num_layers=1,
                embedding_dim=text.WIDTH,
                num_embeddings=77,
                additional_embeddings=4,
            ),
            scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        )

    return build


def _combined(pipeline: type[DiffusionPipeline], painter: Build) -> Build:
    """A prior and a painter in one: only the painter is listened to."""

    def build() -> DiffusionPipeline:
        prior = _prior(KandinskyV22PriorPipeline)().components
        return pipeline(
            **painter().components, **{f"prior_{name}": part for name, part in prior.items()}
        )

    return build


def _kandinsky3(pipeline: type[DiffusionPipeline]) -> Build:
    def build() -> DiffusionPipeline:
        tokenizer, text_encoder = text.t5()
        return pipeline(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=Kandinsky3UNet(
                in_channels=LATENT,
                time_embedding_dim=8,
                groups=2,
                attention_head_dim=4,
                layers_per_block=2,
                block_out_channels=(8, 8),
                cross_attention_dim=8,
                encoder_hid_dim=text.T5_WIDTH,
            ),
            scheduler=DDPMScheduler(clip_sample=False),
            movq=movq(),
        )

    return build


LEARNED = "first along dimension 1"  # the rest is a variance that the scheduler does not take
QUICK_PRIOR = {"prior_num_inference_steps": 2}
UNET: dict[str, Any] = {"denoiser": "unet"}
EMBEDDED: dict[str, Any] = {
    "image_embeds": "noise-1x16.safetensors",
    "negative_image_embeds": "noise-1x16-9.safetensors",
}
UNASKED: dict[str, Any] = {"inputs": EMBEDDED, "takes_prompt": False, **UNET}
PICTURE = {"image": "cat.png"}
MASKED = PICTURE | {"mask_image": "mask.png"}
HINT = {"hint": "noise-1x3x32x32.safetensors"}
HALF = {"strength": 0.5}
HINTED: dict[str, Any] = {"kind": "image_hint", "extra_channels": LATENT}
MASK_CHANNELS = 1 + LATENT  # the mask, and the latents of what it leaves

ENTRIES = {
    "kandinsky22": entry(_kandinsky22(KandinskyV22Pipeline), "epsilon", **UNASKED),
    "kandinsky22_ddim": entry(kandinsky22_ddim, "epsilon", **UNASKED, output=LEARNED),
    "kandinsky22_img2img": entry(
        _kandinsky22(KandinskyV22Img2ImgPipeline),
        "epsilon",
        SMALL | HALF,
        **UNASKED | {"inputs": EMBEDDED | PICTURE},
    ),
    "kandinsky22_inpaint": entry(
        _kandinsky22(KandinskyV22InpaintPipeline, extra_channels=MASK_CHANNELS),
        "epsilon",
        **UNASKED | {"inputs": EMBEDDED | MASKED},
    ),
    "kandinsky22_controlnet": entry(
        _kandinsky22(KandinskyV22ControlnetPipeline, **HINTED),
        "epsilon",
        {"height": 8, "width": 8, "output_type": "pt"},
        **UNASKED | {"inputs": EMBEDDED | HINT},
    ),
    "kandinsky22_controlnet_img2img": entry(
        _kandinsky22(KandinskyV22ControlnetImg2ImgPipeline, **HINTED),
        "epsilon",
        HALF | {"height": 8, "width": 8, "output_type": "pt"},
        **UNASKED | {"inputs": EMBEDDED | HINT | PICTURE},
    ),
    "kandinsky22_prior": entry(
        _prior(KandinskyV22PriorPipeline), "sample", {"output_type": "pt"}, denoiser="prior"
    ),
    "kandinsky22_prior_emb2emb": entry(
        _prior(KandinskyV22PriorEmb2EmbPipeline),
        "sample",
        HALF | {"output_type": "pt"},
        inputs=PICTURE,
        denoiser="prior",
    ),
    "kandinsky21": entry(
        _kandinsky21(KandinskyPipeline),
        "epsilon",
        SMALL | {"output_type": "pt"},
        inputs=EMBEDDED,
        output=LEARNED,
        **UNET,
    ),
    "kandinsky21_img2img": entry(
        _kandinsky21(KandinskyImg2ImgPipeline),
        "epsilon",
        SMALL | HALF | {"output_type": "pt"},
        inputs=EMBEDDED | PICTURE,
        output=LEARNED,
        **UNET,
    ),
    "kandinsky21_inpaint": entry(
        _kandinsky21(KandinskyInpaintPipeline, extra_channels=MASK_CHANNELS),
        "epsilon",
        SMALL | {"output_type": "pt"},
        inputs=EMBEDDED | MASKED,
        output=LEARNED,
        **UNET,
    ),
    "kandinsky21_prior": entry(
        _prior(KandinskyPriorPipeline), "sample", {"output_type": "pt"}, denoiser="prior"
    ),
    "kandinsky22_combined": entry(
        _combined(KandinskyV22CombinedPipeline, _kandinsky22(KandinskyV22Pipeline)),
        "epsilon",
        SMALL | QUICK_PRIOR,
        **UNET,
    ),
    "kandinsky22_combined_img2img": entry(
        _combined(KandinskyV22Img2ImgCombinedPipeline, _kandinsky22(KandinskyV22Img2ImgPipeline)),
        "epsilon",
        SMALL | HALF | QUICK_PRIOR,
        inputs=PICTURE,
        **UNET,
    ),
    "kandinsky22_combined_inpaint": entry(
        _combined(
            KandinskyV22InpaintCombinedPipeline,
            _kandinsky22(KandinskyV22InpaintPipeline, extra_channels=MASK_CHANNELS),
        ),
        "epsilon",
        SMALL | QUICK_PRIOR,
        inputs=MASKED,
        **UNET,
    ),
    "kandinsky21_combined": entry(
        _combined(KandinskyCombinedPipeline, _kandinsky21(KandinskyPipeline)),
        "epsilon",
        SMALL | QUICK_PRIOR | {"output_type": "pt"},
        output=LEARNED,
        **UNET,
    ),
    "kandinsky21_combined_img2img": entry(
        _combined(KandinskyImg2ImgCombinedPipeline, _kandinsky21(KandinskyImg2ImgPipeline)),
        "epsilon",
        SMALL | HALF | QUICK_PRIOR | {"output_type": "pt"},
        inputs=PICTURE,
        output=LEARNED,
        **UNET,
    ),
    "kandinsky21_combined_inpaint": entry(
        _combined(
            KandinskyInpaintCombinedPipeline,
            _kandinsky21(KandinskyInpaintPipeline, extra_channels=MASK_CHANNELS),
        ),
        "epsilon",
        SMALL | QUICK_PRIOR | {"output_type": "pt"},
        inputs=MASKED,
        output=LEARNED,
        **UNET,
    ),
    "kandinsky3": entry(_kandinsky3(Kandinsky3Pipeline), "epsilon", **UNET),
    "kandinsky3_img2img": entry(
        _kandinsky3(Kandinsky3Img2ImgPipeline), "epsilon", HALF, inputs=PICTURE, **UNET
    ),
}
