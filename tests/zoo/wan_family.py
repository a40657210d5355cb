"""Wan 2.1 and 2.2, and the video pipelines made from them."""

from typing import Any

from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    LucyEditPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from . import autoencoders, text
from .entry import SHORT, entry
from .image import HEADS, LATENT, WIDTH

MASK = 4  # channels beside the condition that say which frames are given
PATCHES = 5  # tokens of the image encoder: four patches and the class


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def sizes(channels: int = LATENT, **changes: Any) -> dict[str, Any]:
    """Settings of a transformer; what comes in beside the noise is in the first channels' count."""
    common: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": LATENT,
        "text_dim": text.T5_WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return HEADS | common | changes


def seeing(channels: int = 2 * LATENT + MASK, **changes: Any) -> dict[str, Any]:
    """Settings of a transformer that also attends to what the image encoder saw."""
    return sizes(channels, image_dim=WIDTH, added_kv_proj_dim=WIDTH, **changes)


def parts() -> dict[str, Any]:
    tokenizer, text_encoder = text.umt5()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoders.wan(),
        "scheduler": unipc(),
    }


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )


def eyes(*, projected: bool = False) -> dict[str, Any]:
    """An image encoder and what cuts pictures to its size."""
    model = CLIPVisionModelWithProjection if projected else CLIPVisionModel
    return {
        "image_encoder": model(_vision()),
        "image_processor": CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    }


def two(transformer: type, settings: dict[str, Any]) -> dict[str, Any]:
    """A denoiser for much noise and one for little; of two steps the second is below 0.9."""
    return {
        "transformer": transformer(**settings),
        "transformer_2": transformer(**settings),
        "boundary_ratio": 0.9,
    }


def wan22() -> WanPipeline:
    return WanPipeline(**parts(), **two(WanTransformer3DModel, sizes()))


def wan22_5b() -> WanPipeline:
    """Each token has a timestep of its own."""
    return WanPipeline(
        **parts(), transformer=WanTransformer3DModel(**sizes()), expand_timesteps=True
    )


def wan_i2v() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(
        **parts(), **eyes(), transformer=WanTransformer3DModel(**seeing())
    )


def wan_first_last_frame() -> WanImageToVideoPipeline:
    settings = seeing(pos_embed_seq_len=2 * PATCHES)
    return WanImageToVideoPipeline(
        **parts(), **eyes(), transformer=WanTransformer3DModel(**settings)
    )


def wan22_i2v() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(
        **parts(), **two(WanTransformer3DModel, sizes(2 * LATENT + MASK))
    )


def wan22_5b_i2v() -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(
        **parts(), transformer=WanTransformer3DModel(**sizes()), expand_timesteps=True
    )


def wan_v2v() -> WanVideoToVideoPipeline:
    return WanVideoToVideoPipeline(**parts(), transformer=WanTransformer3DModel(**sizes()))


def _vace() -> dict[str, Any]:
    side = 2**2  # the mask comes unshuffled: each pixel under a latent one is a channel
    return sizes(vace_layers=[0, 1], vace_in_channels=2 * LATENT + side**2)


def wan_vace() -> WanVACEPipeline:
    return WanVACEPipeline(**parts(), transformer=WanVACETransformer3DModel(**_vace()))


def wan22_vace() -> WanVACEPipeline:
    return WanVACEPipeline(**parts(), **two(WanVACETransformer3DModel, _vace()))


def wan_animate() -> WanAnimatePipeline:
    face = 16
    channels = {str(2**k): 8 for k in range(2, 5)}
    transformer = WanAnimateTransformer3DModel(
        **seeing(),
        latent_channels=LATENT,
        motion_encoder_channel_sizes=channels,
        motion_encoder_size=face,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=WIDTH,
        face_encoder_hidden_dim=WIDTH,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return WanAnimatePipeline(**parts(), **eyes(), transformer=transformer)


def lucy_edit() -> LucyEditPipeline:
    return LucyEditPipeline(
        **parts(), transformer=WanTransformer3DModel(**sizes(2 * LATENT)), expand_timesteps=True
    )


def chronoedit() -> ChronoEditPipeline:
    return ChronoEditPipeline(
        **parts(), **eyes(), transformer=ChronoEditTransformer3DModel(**seeing())
    )


def skyreels2() -> SkyReelsV2Pipeline:
    return SkyReelsV2Pipeline(**parts(), transformer=SkyReelsV2Transformer3DModel(**sizes()))


def skyreels2_i2v() -> SkyReelsV2ImageToVideoPipeline:
    return SkyReelsV2ImageToVideoPipeline(
        **parts(),
        **eyes(projected=True),
        transformer=SkyReelsV2Transformer3DModel(**seeing()),
    )


def anyflow() -> AnyFlowPipeline:
    return AnyFlowPipeline(
        **parts() | {"scheduler": FlowMapEulerDiscreteScheduler(shift=3.0)},
        transformer=AnyFlowTransformer3DModel(**sizes()),
    )


SQUARE = {"height": 32, "width": 32}
FEW = SQUARE | {"num_frames": 5}
SHORTER = SHORT | FEW
BOTH = ("transformer", "transformer_2")
CAT = {"image": "cat.png"}
VIDEO = {"video": "frames"}
POSES = {"pose_video": "frames", "face_video": "frames"}

# A transformer that attends to a picture takes 512 tokens for text, and padding drowns two words:
# no SHORT there, but a negative prompt that fills it.
FULL = {"negative_prompt": "blurry, low quality, " * 100}

ENTRIES = {
    "wan22": entry(wan22, "flow", SHORTER, denoiser=BOTH),
    "wan22_5b": entry(wan22_5b, "flow", SHORTER),
    "wan_i2v": entry(wan_i2v, "flow", FULL | FEW, inputs=CAT),
    "wan_first_last_frame": entry(
        wan_first_last_frame, "flow", FULL | FEW, inputs=CAT | {"last_image": "dog.png"}
    ),
    "wan22_i2v": entry(wan22_i2v, "flow", SHORTER, inputs=CAT, denoiser=BOTH),
    "wan22_5b_i2v": entry(wan22_5b_i2v, "flow", SHORTER, inputs=CAT),
    "wan_v2v": entry(wan_v2v, "flow", SHORT | SQUARE | {"strength": 1.0}, inputs=VIDEO),
    "wan_vace": entry(
        wan_vace,
        "flow",
        SHORT | SQUARE | {"num_frames": 9},
        inputs=VIDEO | {"reference_images": "cat.png"},
    ),
    "wan22_vace": entry(
        wan22_vace, "flow", SHORTER, inputs={"reference_images": "cat.png"}, denoiser=BOTH
    ),
    "wan_animate": entry(
        wan_animate, "flow", FULL | SQUARE | {"segment_frame_length": 9}, inputs=CAT | POSES
    ),
    "lucy_edit": entry(lucy_edit, "flow", SHORT | SQUARE, inputs=VIDEO),
    "chronoedit": entry(chronoedit, "flow", FULL | SQUARE, inputs=CAT),
    "skyreels2": entry(skyreels2, "flow", SHORTER),
    "skyreels2_i2v": entry(skyreels2_i2v, "flow", FULL | FEW, inputs=CAT),
    "anyflow": entry(anyflow, "flow", SHORTER),
}
