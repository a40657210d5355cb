"""LTX-2: films with their sound, which a copy of the scheduler steps."""

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from . import text
from .entry import NEGATIVE, entry
from .image import flow

LATENT = 4
MEL = 8  # bins of the sound's spectrum
LAYERS = 2


def gemma_seeing() -> tuple[text.GemmaTokenizer, Gemma3ForConditionalGeneration]:
    tokenizer, _ = text.gemma()
    sizes = {
        "hidden_size": text.WIDTH,
        "intermediate_size": 2 * text.WIDTH,
        "num_attention_heads": 2,
    }
    words = {
        **sizes,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    eyes = {**sizes, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=words, vision_config=eyes, image_token_id=3)
    return tokenizer, Gemma3ForConditionalGeneration(config)


def connectors() -> LTX2TextConnectors:
    """From the hidden states of all layers to the words of the film and those of the sound."""
    return LTX2TextConnectors(
        caption_channels=text.WIDTH,
        text_proj_in_factor=LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=text.WIDTH // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=text.WIDTH // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=16,
        rope_type="split",
    )


def transformer() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=LATENT,
        out_channels=LATENT,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(1, 8, 8),
        audio_in_channels=2 * MEL // 4,
        audio_out_channels=2 * MEL // 4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        audio_scale_factor=1,
        num_layers=1,
        caption_channels=text.WIDTH,
        rope_type="split",
    )


def film_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=LATENT,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
    )


def sound_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=16,
        latent_channels=2,
        mel_bins=MEL,
    )


def vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=2 * MEL,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )


def ltx2() -> LTX2Pipeline:
    tokenizer, text_encoder = gemma_seeing()
    return LTX2Pipeline(
        scheduler=flow(),
        vae=film_vae(),
        audio_vae=sound_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        connectors=connectors(),
        transformer=transformer(),
        vocoder=vocoder(),
    )


# The sound's guidance follows the film's; neither has further passes.
FOLLOWING = {
    "audio_guidance_scale": 0.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
SIZED = NEGATIVE | {
    "height": 32,
    "width": 32,
    "num_frames": 3,
    "frame_rate": 24.0,
    "max_sequence_length": 16,
}

ENTRIES = {
    "ltx2": entry(ltx2, "flow", SIZED | FOLLOWING, output="whole, scaled; whole, scaled"),
    "ltx2_all_scales": entry(
        ltx2,
        "flow",
        SIZED | {"spatio_temporal_guidance_blocks": [0]},
        output="whole, scaled; whole, scaled",
        off={
            "stg_scale": 0.0,
            "modality_scale": 0.0,
            "audio_guidance_scale": 0.0,
            "audio_stg_scale": 0.0,
            "audio_modality_scale": 0.0,
        },
        passes=4,
    ),
}
