"""Sound pipelines on a UNet, which paints a spectrogram."""

from typing import Any

from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
)
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from . import autoencoders, text
from .entry import entry
from .stable_diffusion import CHANNELS, GROUPS, ddim, unet

LATENT = autoencoders.CHANNELS
WIDTH = text.WIDTH


def _sound() -> dict[str, Any]:
    """What turns a picture of a sound into the sound."""
    return {
        "vae": AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=LATENT,
            norm_num_groups=GROUPS,
        ),
        "vocoder": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=16,
                upsample_initial_channel=8,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1]],
                initializer_range=0.3,
            )
        ),
        "scheduler": ddim(),
    }


def byte_tokenizer() -> RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *text.BYTES]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=96)


def _clap_text(tokenizer: RobertaTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 100,
        "pad_token_id": tokenizer.pad_token_id,
    }


def audioldm() -> AudioLDMPipeline:
    """Text is told to the denoiser as a class is: as one vector."""
    tokenizer = byte_tokenizer()
    return AudioLDMPipeline(
        **_sound(),
        tokenizer=tokenizer,
        text_encoder=ClapTextModelWithProjection(ClapTextConfig(**_clap_text(tokenizer))),
        unet=unet(
            cross_attention_dim=CHANNELS,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
        ),
    )


def audioldm2() -> AudioLDM2Pipeline:
    """A language model dreams on from the embeddings of two text encoders."""
    tokenizer = byte_tokenizer()
    tokenizer_2, text_encoder_2 = text.t5()
    ears = ClapAudioConfig(
        spec_size=16,
        num_mel_bins=8,
        window_size=2,
        patch_size=2,
        patch_stride=[2, 2],
        patch_embeds_hidden_size=8,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        depths=[1, 1],
        num_attention_heads=[2, 2],
        num_hidden_layers=2,
    )
    clap = ClapConfig(
        text_config=_clap_text(tokenizer), audio_config=ears.to_dict(), projection_dim=WIDTH
    )
    return AudioLDM2Pipeline(
        **_sound(),
        tokenizer=tokenizer,
        text_encoder=ClapModel(clap),
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        feature_extractor=ClapFeatureExtractor(feature_size=8),
        projection_model=AudioLDM2ProjectionModel(WIDTH, text.T5_WIDTH, WIDTH),
        language_model=GPT2LMHeadModel(
            GPT2Config(vocab_size=8, n_positions=640, n_embd=WIDTH, n_layer=1, n_head=2)
        ),
        unet=AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=CHANNELS,
            norm_num_groups=GROUPS,
            layers_per_block=1,
            attention_head_dim=2,
            cross_attention_dim=((None, WIDTH, text.T5_WIDTH),) * 2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
    )


ENTRIES = {
    "audioldm": entry(audioldm, "epsilon", {}, denoiser="unet"),
    "audioldm2": entry(audioldm2, "epsilon", {"max_new_tokens": 2}, denoiser="unet"),
}
