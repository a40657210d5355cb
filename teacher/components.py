"""The parts of the bundled teacher: small, but each an ordinary diffusers or transformers class.

To the type checker they are `Any`: diffusers imports its classes lazily, behind stand-ins without
methods.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from guidefold.demo import PICTURE_SIZE, words

LATENT_CHANNELS, LATENT_SIZE = 4, 16
TOKENS = 16
"""Longest caption in tokens, its two marks included; the longest caption of the world has 12."""

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True, slots=True)
class TeacherSize:
    """Width and depth of the parts."""

    autoencoder_channels: tuple[int, int, int] = (16, 32, 32)
    denoiser_channels: tuple[int, int, int] = (32, 64, 128)
    text_width: int = 128
    text_layers: int = 2
    norm_groups: int = 8


BUNDLED = TeacherSize()
TINY = TeacherSize((8, 8, 8), (8, 16, 16), text_width=16, text_layers=1, norm_groups=4)
"""For tests: every part, hardly any arithmetic."""


def make_autoencoder(size: TeacherSize) -> Any:
    """The autoencoder: 64 x 64 pictures to 16 x 16 latents of 4 channels, and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=size.autoencoder_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=size.norm_groups,
        sample_size=PICTURE_SIZE,
        mid_block_add_attention=False,  # keeps the decoder cheap; plain shapes need no more
    )


def make_denoiser(size: TeacherSize) -> Any:
    """The denoiser: attention to the caption at 8 x 8 and 4 x 4, none at 16 x 16."""
    head_width = min(32, size.denoiser_channels[0])
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=size.denoiser_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=size.text_width,
        # diffusers' name for this argument is a known slip: it holds the number of heads
        attention_head_dim=tuple(width // head_width for width in size.denoiser_channels),
        norm_num_groups=size.norm_groups,
    )


def _pairs_apart(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word under the merges known so far."""
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        place = pairs.index(best)
        symbols = [*symbols[:place], "".join(best), *symbols[place + 2 :]]
    return symbols


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and merges under which every word of the world is one token.

    A word that the merges leave in pieces gets further merges. They rank last, so that the words
    before it come out as they did.
    """
    ranks: dict[tuple[str, str], int] = {}
    letters = sorted({letter for word in words() for letter in word})
    tokens = letters + [letter + _WORD_END for letter in letters]
    for word in words():
        symbols = [*word[:-1], word[-1] + _WORD_END]
        while len(symbols := _pairs_apart(symbols, ranks)) > 1:
            ranks[symbols[0], symbols[1]] = len(ranks)
            tokens.append(symbols[0] + symbols[1])
    return {token: index for index, token in enumerate([*tokens, _START, _END])}, list(ranks)


def make_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer over the words of the world.

    Args:
        folder: An existing folder for its two files, `vocab.json` and `merges.txt`.

    Returns:
        The tokenizer; captions have at most `TOKENS` tokens.
    """
    vocabulary, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def make_text_encoder(size: TeacherSize) -> Any:
    """The text encoder, trained together with the denoiser."""
    vocabulary, _ = _vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=max(1, size.text_width // 32),
        max_position_embeddings=TOKENS,
        projection_dim=size.text_width,
        bos_token_id=vocabulary[_START],
        eos_token_id=vocabulary[_END],
        pad_token_id=vocabulary[_END],
    )
    return CLIPTextModel(config)


def make_scheduler() -> Any:
    """DDIM with v-prediction; its last timestep is pure noise, and sampling starts there."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not used by trailing spacing; pipelines warn about any other value
        clip_sample=False,
        set_alpha_to_one=True,
    )


def make_pipeline(autoencoder: Any, denoiser: Any, text_encoder: Any, tokenizer: Any) -> Any:
    """The parts as an ordinary `StableDiffusionPipeline`."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
