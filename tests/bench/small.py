"""An architecture of the same make as the real ones, as small as a test needs it."""

import json
from typing import Any

from guidefold.bench.memory.architectures import Architecture, read_architecture
from guidefold.bench.memory.cases import ArchitectureWorkload


def small_values(*channels: int) -> dict[str, Any]:
    """What an architecture's file holds.

    Args:
        channels: Of the denoiser's levels; all but the last have cross-attention.
    """
    cross, attending = 2 * channels[0], len(channels) - 1
    levels = range(4)
    return {
        "title": "A small UNet",
        "size": 128,
        "denoiser": {
            "class": "diffusers.UNet2DConditionModel",
            "parameters": 0,
            "inputs": {
                "sample": ["batch", 4, "latent", "latent"],
                "timestep": ["batch"],
                "encoder_hidden_states": ["batch", 77, cross],
            },
            "config": {
                "sample_size": 16,
                "block_out_channels": list(channels),
                "down_block_types": [*["CrossAttnDownBlock2D"] * attending, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * attending],
                "cross_attention_dim": cross,
                "attention_head_dim": 8,
                "layers_per_block": 1,
            },
        },
        "encoders": {
            "text_encoder": {
                "class": "transformers.CLIPTextModel",
                "config_class": "transformers.CLIPTextConfig",
                "parameters": 0,
                "inputs": {"input_ids": ["batch", 77]},
                "config": {
                    "vocab_size": 1000,
                    "hidden_size": cross,
                    "intermediate_size": 2 * cross,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                    "bos_token_id": 0,
                    "eos_token_id": 2,
                },
            }
        },
        "autoencoder": {
            "class": "diffusers.AutoencoderKL",
            "parameters": 0,
            "inputs": {"x": ["batch", 3, "size", "size"]},
            "config": {
                "block_out_channels": [32 for _ in levels],
                "down_block_types": ["DownEncoderBlock2D" for _ in levels],
                "up_block_types": ["UpDecoderBlock2D" for _ in levels],
                "latent_channels": 4,
            },
        },
    }


def small_architecture(*channels: int) -> Architecture:
    return read_architecture("small", small_values(*channels))


def small_workload(batch: int = 2, size: int = 128) -> ArchitectureWorkload:
    return ArchitectureWorkload(small_architecture(32, 64), batch, size)


def as_toml(values: dict[str, Any]) -> str:
    """The small architecture's file: JSON's values are TOML's, as inline tables."""

    def value(item: object) -> str:
        if not isinstance(item, dict):
            return json.dumps(item)
        return "{" + ", ".join(f"{k} = {value(v)}" for k, v in item.items()) + "}"

    return "".join(f"{name} = {value(item)}\n" for name, item in values.items())
