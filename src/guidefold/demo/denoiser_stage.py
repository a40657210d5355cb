"""The last stage of the teacher's training: the denoiser, together with the text encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidefold.demo.components import make_scheduler
from guidefold.demo.stage import Stage, step_seed
from guidefold.demo.stock import Stock

CAPTION_DROPOUT = 0.12
"""Share of captions replaced by the empty one, from which the unguided prediction is learned."""

SHAPING, SHAPING_SHARE = (0.55, 0.9), 0.6
"""Where along the timesteps shapes are decided, and the share of each batch that is drawn there.

Naming the wrong shape raises the loss there by 3 to 5 %, elsewhere by less than 1 %."""

_MOST_SIGNAL = 5.0


def loss_weights(alphas_cumprod: Tensor) -> Tensor:
    """Weights of the squared error of v, by timestep.

    An error of v counts evenly while noise prevails. Where the signal-to-noise ratio is large, v is
    little but the noise, which is easy and invisible, and the weight falls as its inverse.

    Args:
        alphas_cumprod: float, `(timesteps,)`; may end in 0, which is pure noise.

    Returns:
        float, `(timesteps,)`, in 0..1.

    Source:
        Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting Strategy*, of which
        this keeps the upper clamp; the lower would give pure noise, where sampling starts, no
        weight.
    """
    # 1 / (1 - a) is the signal-to-noise ratio plus one
    return (_MOST_SIGNAL * (1 - alphas_cumprod)).clamp(max=1.0)


def timestep_places(batch: int, generator: torch.Generator) -> Tensor:
    """Timesteps of a batch, in 0..1: some over the whole range, most where shapes are decided.

    Each part takes one from each of equal ranges: the same mean, less spread.

    Args:
        batch: How many.
        generator: A CPU generator.

    Returns:
        float, `(batch,)`.
    """
    shaping = round(SHAPING_SHARE * batch)
    low, high = SHAPING
    inside = (torch.arange(shaping) + torch.rand(shaping, generator=generator)) / shaping
    rest = batch - shaping
    anywhere = (torch.arange(rest) + torch.rand(rest, generator=generator)) / rest
    return torch.cat([low + (high - low) * inside, anywhere])


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain kernel: the backward of the flash kernel took a third of each step."""
    if device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def denoiser_stage(
    denoiser: Any,
    text_encoder: Any,
    stock: Stock,
    tokens: Tensor,
    *,
    folder: Path,
    seed: int,
    steps: int,
    batch: int,
    rate: float,
) -> Stage:
    """v-prediction on the stock, with captions left out now and then.

    Args:
        denoiser: What to train, on the device to train it on.
        text_encoder: Trained with it, on the same device.
        stock: What to draw from, on the same device.
        tokens: What `caption_tokens` returned.
        folder: Where states are kept.
        seed: Decides pictures, timesteps, noise and which captions are left out.
        steps: Steps in all.
        batch: Pictures a step.
        rate: Highest learning rate.

    Returns:
        The stage.
    """
    device = stock.latents.device
    tokens, empty = tokens.to(device), len(tokens) - 1
    alphas = make_scheduler().alphas_cumprod.float()
    weights = loss_weights(alphas).to(device)
    signal, spread = alphas.sqrt().to(device), (1 - alphas).sqrt().to(device)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        chosen = torch.randint(len(stock.captions), (batch,), generator=generator).to(device)
        dropped = (torch.rand(batch, generator=generator) < CAPTION_DROPOUT).to(device)
        places = timestep_places(batch, generator)
        times = (places * len(alphas)).long().clamp(max=len(alphas) - 1).to(device)
        clean = stock.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator).to(device)
        keep, add = signal[times, None, None, None], spread[times, None, None, None]
        said = tokens[stock.captions[chosen].masked_fill(dropped, empty)]
        with torch.autocast(device.type, dtype=torch.bfloat16), _attention(device):
            hidden = text_encoder(said).last_hidden_state
            predicted = denoiser(keep * clean + add * noise, times, hidden).sample
        error = (predicted.float() - (keep * noise - add * clean)).square().mean(dim=(1, 2, 3))
        weighted: Tensor = (weights[times] * error).mean()
        return weighted

    modules: dict[str, nn.Module] = {"denoiser": denoiser, "text_encoder": text_encoder}
    recipe = {"seed": seed, "batch": batch, "rate": rate, "stock": len(stock.captions)}
    return Stage("denoiser", folder, modules, loss, steps, rate, 0.999, recipe)
