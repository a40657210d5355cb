"""Audio pipelines: Stable Audio, ACE-Step and LongCat."""

from typing import Any

from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    EDMDPMSolverMultistepScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import (
    StableAudio3DurationEmbedder,
)

from . import text
from .entry import NEGATIVE, entry
from .image import LATENT, WIDTH, flow

RATE = 64  # samples a second: a whole second is eight latents
SECOND = 1.0


def _oobleck() -> AutoencoderOobleck:
    """Shrink by 8."""
    return AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 1],
        decoder_channels=8,
        decoder_input_channels=LATENT,
        sampling_rate=RATE,
    )


def stable_audio() -> StableAudioPipeline:
    tokenizer, text_encoder = text.t5()
    tokenizer.model_max_length = 32
    return StableAudioPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=text.T5_WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=4
        ),
        vae=_oobleck(),
        transformer=StableAudioDiTModel(
            sample_size=8,
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            cross_attention_dim=WIDTH,
            cross_attention_input_dim=WIDTH,
            time_proj_dim=8,
            global_states_input_dim=2 * WIDTH,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3,
            sigma_max=80.0,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        ),
    )


def stable_audio3() -> StableAudio3Pipeline:
    tokenizer, text_encoder = text.t5()
    tokenizer.model_max_length = 32
    return StableAudio3Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=AutoencoderSAME(
            patch_size=2,
            encoder_channels=8,
            encoder_c_mults=(1,),
            encoder_strides=(4,),
            encoder_transformer_depths=(1,),
            latent_dim=LATENT,
            dim_heads=8,
            sampling_rate=RATE,
        ),
        duration_embedder=StableAudio3DurationEmbedder(
            output_dim=text.T5_WIDTH, fourier_dim=8, max_val=4.0
        ),
        transformer=StableAudio3DiTModel(
            io_channels=LATENT,
            embed_dim=WIDTH,
            depth=2,
            num_heads=2,
            cond_token_dim=text.T5_WIDTH,
            global_cond_dim=text.T5_WIDTH,
            local_add_cond_dim=LATENT + 1,
            timestep_features_dim=8,
            num_memory_tokens=2,
        ),
        scheduler=flow(),
    )


def ace_step() -> AceStepPipeline:
    tokenizer, language = text.qwen()
    heads: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    return AceStepPipeline(
        tokenizer=tokenizer,
        text_encoder=language.model.language_model,
        vae=_oobleck(),
        transformer=AceStepTransformer1DModel(
            **heads,
            num_hidden_layers=2,
            in_channels=3 * LATENT,
            audio_acoustic_hidden_dim=LATENT,
        ),
        condition_encoder=AceStepConditionEncoder(
            **heads,
            text_hidden_dim=text.WIDTH,
            timbre_hidden_dim=LATENT,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        ),
        scheduler=flow(num_train_timesteps=1),
    )


def longcat_audio() -> LongCatAudioDiTPipeline:
    tokenizer, text_encoder = text.umt5()
    return LongCatAudioDiTPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=LongCatAudioDiTVae(
            channels=8,
            c_mults=[1, 1],
            strides=[2, 4],
            latent_dim=LATENT,
            encoder_latent_dim=2 * LATENT,
            downsampling_ratio=8,
            sample_rate=RATE,
        ),
        transformer=LongCatAudioDiTTransformer(
            dit_dim=WIDTH,
            dit_depth=2,
            dit_heads=2,
            dit_text_dim=text.T5_WIDTH,
            latent_dim=LATENT,
        ),
        scheduler=flow(invert_sigmas=True),
    )


ENTRIES = {
    "stable_audio": entry(stable_audio, "v_prediction", NEGATIVE | {"audio_end_in_s": SECOND}),
    "stable_audio3": entry(stable_audio3, "flow", NEGATIVE | {"duration": SECOND}),
    "ace_step": entry(ace_step, "flow", {"audio_duration": SECOND}),
    "longcat_audio": entry(longcat_audio, "flow", NEGATIVE | {"audio_duration_s": SECOND}),
}
