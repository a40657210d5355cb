"""The first stage of the teacher's training: the autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidefold.demo import CATEGORIES, draw_pictures, draw_seen_facts, seen_ids
from teacher.stage import Stage, step_seed

_KL_WEIGHT = 1e-3
_EDGE_WEIGHT = 0.5


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def reconstruction_loss(output: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error of pixels, and of edges, where a blurred picture shows.

    Args:
        output: The decoder's output, float, `(batch, 3, height, width)`.
        pictures: The encoded pictures, of the same shape.

    Returns:
        A scalar.
    """
    loss = (output - pictures).abs().mean()
    for made, true in zip(edges(output), edges(pictures), strict=True):
        loss = loss + _EDGE_WEIGHT * (made - true).abs().mean()
    return loss


def _draw_ids(batch: int, hard_share: float, generator: torch.Generator) -> Tensor:
    """Facts to draw, a share of them with coloured backgrounds: the hardest to encode."""
    ids = draw_seen_facts(batch, generator)
    hard = seen_ids()[CATEGORIES.index("colours")]
    count = round(hard_share * batch)
    ids[:count] = hard[torch.randint(len(hard), (count,), generator=generator)]
    return ids


def autoencoder_stage(
    autoencoder: Any,
    name: str,
    *,
    folder: Path,
    seed: int,
    steps: int,
    batch: int,
    rate: float,
    hard_share: float = 0.0,
    decoder_only: bool = False,
) -> Stage:
    """Pictures of the world through the autoencoder: pixels, edges and a little KL.

    Args:
        autoencoder: The autoencoder, on the device to train it on.
        name: Name of the stage.
        folder: Folder of the states.
        seed: Decides every picture.
        steps: Steps in all.
        batch: Pictures a step.
        rate: Highest learning rate.
        hard_share: Share of extra pictures, 0..1, with a coloured background.
        decoder_only: Leave the encoder, and so the latents, as they are.

    Returns:
        The stage.
    """
    device = next(autoencoder.parameters()).device

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        ids = _draw_ids(batch, hard_share, generator)
        pictures = 2 * draw_pictures(ids, step_seed(seed + 1, step), device) - 1
        with (
            torch.autocast(device.type, dtype=torch.bfloat16),
            torch.set_grad_enabled(not decoder_only),
        ):
            latents = autoencoder.encode(pictures).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = autoencoder.decode(latents.mean + latents.std * noise).sample
        return reconstruction_loss(output.float(), pictures) + _KL_WEIGHT * _kl(latents)

    modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
    if decoder_only:
        modules = {"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv}
    recipe = {"seed": seed, "batch": batch, "rate": rate, "hard_share": hard_share}
    return Stage(name, folder, modules, loss, steps, rate, 0.995, recipe)


def _kl(latents: Any) -> Tensor:
    """Mean over all elements of the divergence from a unit normal."""
    mean: Tensor = latents.mean.float()
    log_variance: Tensor = latents.logvar.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
