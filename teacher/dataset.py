"""A data set of encoded pictures with their captions: made once, sampled at every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidefold.demo import draw_labels, draw_pictures, draw_seen_facts, spoil
from teacher.checkpoints import read_state, write_state
from teacher.stage import step_seed

_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded pictures and the facts of their captions.

    Attributes:
        latents: Means of the autoencoder's latents, scaled to unit spread, bfloat16,
            `(pictures, 4, 16, 16)`.
        captions: Indices into `all_facts()`, int64, `(pictures,)`; a share is partly wrong.
        labels: Labels of the pictures from `draw_labels`, uint8, `(pictures, 2, 16, 16)`.
        scaling_factor: The factor that the latents were multiplied by.
    """

    latents: Tensor
    captions: Tensor
    labels: Tensor
    scaling_factor: float


@torch.no_grad()
def make_dataset(autoencoder: Any, *, count: int, spoiled_share: float, seed: int) -> Dataset:
    """Draw and encode pictures.

    Args:
        autoencoder: The trained one, on the device to encode on.
        count: Number of pictures.
        spoiled_share: Share of pictures, 0..1, whose caption is partly wrong.
        seed: Decides everything.

    Returns:
        The data set, on the autoencoder's device.
    """
    device = next(autoencoder.parameters()).device
    latents, captions, labels = [], [], []
    for number in range(0, count, _AT_ONCE):
        generator = torch.Generator().manual_seed(step_seed(seed, number))
        ids = draw_seen_facts(min(_AT_ONCE, count - number), generator)
        pictures = 2 * draw_pictures(ids, step_seed(seed + 1, number), device) - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            latents.append(autoencoder.encode(pictures).latent_dist.mean.float())
        labels.append(draw_labels(ids, step_seed(seed + 1, number)).to(torch.uint8))
        spoiled = torch.rand(len(ids), generator=generator) < spoiled_share
        captioned = ids.clone()
        captioned[spoiled] = spoil(ids[spoiled], generator)
        captions.append(captioned)
    every = torch.cat(latents)
    scaling_factor = 1 / float(every.std())
    return Dataset(
        (every * scaling_factor).bfloat16(),
        torch.cat(captions).to(device),
        torch.cat(labels).to(device),
        scaling_factor,
    )


def load_or_make_dataset(
    folder: Path, autoencoder: Any, *, count: int, spoiled_share: float, seed: int
) -> Dataset:
    """Load the data set from a folder; make it and write it there if there is none.

    Args:
        folder: The folder of the data set.
        autoencoder: The trained one, on the device to encode on.
        count: Number of pictures.
        spoiled_share: Share of pictures whose caption is partly wrong.
        seed: Decides everything.

    Returns:
        The data set, on the autoencoder's device.
    """
    device = next(autoencoder.parameters()).device
    recipe = {"count": count, "spoiled_share": spoiled_share, "seed": seed}
    state = read_state(folder)
    if state is not None and state[1]["recipe"] == recipe:
        tensors, facts = state
        return Dataset(
            **{name: tensor.to(device) for name, tensor in tensors.items()},
            scaling_factor=facts["scaling_factor"],
        )
    dataset = make_dataset(autoencoder, count=count, spoiled_share=spoiled_share, seed=seed)
    facts = {"recipe": recipe, "scaling_factor": dataset.scaling_factor}
    tensors = {"latents": dataset.latents, "captions": dataset.captions, "labels": dataset.labels}
    write_state(folder, tensors, facts)
    return dataset
