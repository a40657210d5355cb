"""The last stage of the teacher's training: the denoiser, together with the text encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidefold.demo import COLOURS, SHAPES
from teacher.components import make_scheduler
from teacher.dataset import Dataset
from teacher.stage import Stage, step_seed
from teacher.text_stage import Reader

CAPTION_DROPOUT = 0.12
"""Share of captions replaced by the empty one, from which the unguided prediction is learned."""

FOCUS = ((0.5, 0.9, 0.35), (0.9, 1.0, 0.2))
"""Ranges along the timesteps that get a share of each batch beside the even rest: low, high, share.

In the first, shapes are decided: naming the wrong one raises the loss there by 3 to 5 %, elsewhere
by less than 1 %. In the second, places are: whether the square comes above the circle."""

NAMING_WEIGHT, READING_WEIGHT = 0.25, 0.05
"""Weights of the naming and the reading loss beside the squared error of v."""

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
    """Timesteps of a batch, in 0..1: a share over the whole range, the rest in `FOCUS`.

    Each part is stratified, one timestep from each of equal ranges: the same mean, less variance.

    Args:
        batch: Number of timesteps.
        generator: A CPU generator.

    Returns:
        float, `(batch,)`.
    """
    counts = [round(share * batch) for _, _, share in FOCUS]
    parts = [(0.0, 1.0, batch - sum(counts))]
    parts += [(low, high, count) for (low, high, _), count in zip(FOCUS, counts, strict=True)]
    places = []
    for low, high, count in parts:
        inside = (torch.arange(count) + torch.rand(count, generator=generator)) / max(1, count)
        places.append(low + (high - low) * inside)
    return torch.cat(places)


class Naming(nn.Module):
    """A lesson beside the main one: name shape and colour in each cell, from features halfway up.

    Only a few per cent of the squared error of v depend on the caption, so that it hardly tells a
    star from a heart; all of this loss does. The naming layer is thrown away afterwards.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        source = denoiser.up_blocks[1]
        self.choices = [len(SHAPES) + 1, len(COLOURS) + 1]
        self.layer = nn.Conv2d(source.resnets[-1].out_channels, sum(self.choices), 1)
        source.register_forward_hook(self._keep_features)
        self._features: Tensor | None = None

    def _keep_features(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self._features = output

    def forward(self, labels: Tensor) -> Tensor:
        """Cross entropy of the labels, from the denoiser's last features.

        Args:
            labels: int64, `(batch, 2, 16, 16)`, as `draw_labels` returns them.

        Returns:
            The sum over shape and colour of the mean over cells, a scalar.
        """
        assert self._features is not None
        shape, colour = self.layer(self._features).float().split(self.choices, dim=1)
        self._features = None
        return F.cross_entropy(shape, labels[:, 0]) + F.cross_entropy(colour, labels[:, 1])


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain kernel: the backward of the flash kernel took a third of each step."""
    if device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def denoiser_stage(
    denoiser: Any,
    text_encoder: Any,
    dataset: Dataset,
    tokens: Tensor,
    *,
    folder: Path,
    seed: int,
    steps: int,
    batch: int,
    rate: float,
) -> Stage:
    """v-prediction on the data set, with a share of the captions left out.

    Args:
        denoiser: The denoiser, on the device to train it on.
        text_encoder: Trained with it, on the same device.
        dataset: The data set, on the same device.
        tokens: The tokens from `caption_tokens`.
        folder: Folder of the states.
        seed: Decides pictures, timesteps, noise and which captions are left out.
        steps: Steps in all.
        batch: Pictures a step.
        rate: Highest learning rate.

    Returns:
        The stage.
    """
    device = dataset.latents.device
    tokens, empty = tokens.to(device), len(tokens) - 1
    alphas = make_scheduler().alphas_cumprod.float()
    weights = loss_weights(alphas).to(device)
    signal, spread = alphas.sqrt().to(device), (1 - alphas).sqrt().to(device)

    naming = Naming(denoiser).to(device)
    reader = Reader(text_encoder.config.hidden_size).to(device)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        chosen = torch.randint(len(dataset.captions), (batch,), generator=generator).to(device)
        dropped = (torch.rand(batch, generator=generator) < CAPTION_DROPOUT).to(device)
        places = timestep_places(batch, generator)
        times = (places * len(alphas)).long().clamp(max=len(alphas) - 1).to(device)
        clean = dataset.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator).to(device)
        keep, add = signal[times, None, None, None], spread[times, None, None, None]
        prompts = tokens[dataset.captions[chosen].masked_fill(dropped, empty)]
        with torch.autocast(device.type, dtype=torch.bfloat16), _attention(device):
            hidden = text_encoder(prompts).last_hidden_state
            predicted = denoiser(keep * clean + add * noise, times, hidden).sample
            named = naming(dataset.labels[chosen].long())
            read = reader(hidden[~dropped], dataset.captions[chosen[~dropped]])
        error = (predicted.float() - (keep * noise - add * clean)).square().mean(dim=(1, 2, 3))
        weighted: Tensor = (weights[times] * error).mean()
        lessons: Tensor = NAMING_WEIGHT * named + READING_WEIGHT * read
        return weighted + lessons

    modules: dict[str, nn.Module] = {
        "denoiser": denoiser,
        "text_encoder": text_encoder,
        "naming": naming,
        "reader": reader,
    }
    recipe = {"seed": seed, "batch": batch, "rate": rate, "stock": len(dataset.captions)}
    return Stage("denoiser", folder, modules, loss, steps, rate, 0.999, recipe)
