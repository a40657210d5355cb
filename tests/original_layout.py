"""A Stable Diffusion pipeline as the single file that the original code wrote."""

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
OUTER = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)
VAE = (
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets", "up.1.block"),
    (r"up_blocks\.1\.resnets", "up.0.block"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    ("group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def write_original_layout(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    layers = pipeline.unet.config.layers_per_block
    for name, tensor in pipeline.unet.state_dict().items():
        tensors[f"model.diffusion_model.{_unet_name(name, layers)}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        renamed = name
        for pattern, new in VAE:
            renamed = re.sub(pattern, new, renamed)
        tensors[f"first_stage_model.{renamed}"] = tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _unet_name(name: str, layers: int) -> str:
    for ours, theirs in OUTER:
        if name.startswith(f"{ours}."):
            name = name.replace(ours, theirs, 1)
            return _resnet_name(name) if ".resnets." in ours else name
    side, block, kind, layer, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name
    ).groups()
    first = int(block) * (layers + 1) + int(layer) + (side == "down")
    number = first if kind in ("resnets", "attentions") else first + layers
    place = {"resnets": "0", "attentions": "1", "downsamplers": "0.op", "upsamplers": "2.conv"}[
        kind
    ]
    rest = _resnet_name(rest) if kind == "resnets" else rest.removeprefix("conv.")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{rest}"


def _resnet_name(name: str) -> str:
    for ours, theirs in RESNET:
        name = re.sub(rf"(^|\.){ours}\.", rf"\g<1>{theirs}.", name)
    return name
