"""Video pipelines on a transformer: LTX, CogVideoX and families of one pipeline."""

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMochi,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
)

from . import autoencoders, text, video
from .entry import SHORT, entry
from .image import HEADS, LATENT, WIDTH, flow


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
ENTRIES = {
    "ltx_i2v": entry(
        ltx_i2v, "flow", SHORT | FEW, inputs=CAT, output="last along dimension 2, dimensions 0 2 1"
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
