"""Video pipelines on a transformer."""

from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)

from . import autoencoders, text
from .entry import SHORT, entry
from .image import HEADS, LATENT, WIDTH, flow


def wan() -> WanPipeline:
    tokenizer, text_encoder = text.umt5()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.wan(),
        transformer=WanTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            text_dim=text.T5_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=flow(shift=3.0),
    )


def ltx() -> LTXPipeline:
    tokenizer, text_encoder = text.t5()
    return LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.ltx(),
        transformer=LTXVideoTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            cross_attention_dim=WIDTH,
            num_layers=2,
            caption_channels=text.T5_WIDTH,
        ),
        scheduler=flow(use_dynamic_shifting=True),
    )


def cogvideox() -> CogVideoXPipeline:
    tokenizer, text_encoder = text.t5()
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.cogvideox(),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENT,
            out_channels=LATENT,
            time_embed_dim=8,
            text_embed_dim=text.T5_WIDTH,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=16,
            use_rotary_positional_embeddings=True,
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    )


FEW = {"height": 32, "width": 32, "num_frames": 9}

ENTRIES = {
    "wan": entry(wan, "flow", SHORT | {"height": 32, "width": 32, "num_frames": 5}),
    "ltx": entry(ltx, "flow", SHORT | FEW),
    "cogvideox": entry(cogvideox, "v_prediction", SHORT | FEW),
}
