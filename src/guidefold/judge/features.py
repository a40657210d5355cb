"""Distances between two sets of pictures, over the features of a vision model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from guidefold.pipeline import VISION, open_vision_model

Matrix = NDArray[np.float64]
Features = Callable[[Sequence[Image]], Matrix]
"""Pictures to features, shape (pictures, features)."""

BATCH_SIZE = 32
NEIGHBOURS = 3


def frechet_distance(one: Matrix, two: Matrix) -> float:
    """Fréchet distance between normal distributions fitted to two sets; 0 for equal ones.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``

    Args:
        one: Features, shape (pictures, features), at least two pictures.
        two: Likewise, with the same features.

    Source:
        Heusel et al. 2017, arXiv 1706.08500, eq. 6, for any features.
    """
    gap = one.mean(axis=0) - two.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, two))
    # The trace of a root needs eigenvalues only. With R = C1^(1/2), C1 C2 has those of R C2 R,
    # which is symmetric, so that eigvalsh applies.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return max(float(gap @ gap + np.trace(first) + np.trace(second) - 2 * both), 0.0)


def recall(reference: Matrix, made: Matrix, neighbours: int = NEIGHBOURS) -> float:
    """The share of reference pictures that the generated ones cover, 0..1.

    A reference picture counts as covered if it lies within the k-nearest-neighbour ball of at
    least one generated picture.

    Args:
        reference: Features, shape (pictures, features).
        made: Features of more than ``neighbours`` generated pictures.
        neighbours: k.

    Source:
        Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2.
    """
    assert len(made) > neighbours
    within = np.sort(_distances(made, made), axis=1)[:, neighbours]  # index 0 is the picture itself
    return float((_distances(reference, made) <= within).any(axis=1).mean())


def compare(reference: Matrix, made: Matrix) -> dict[str, float | None]:
    """Fréchet distance and recall of generated pictures; None where there are too few of them."""
    return {
        "frechet_distance": frechet_distance(reference, made) if len(made) > 1 else None,
        "recall": recall(reference, made) if len(made) > NEIGHBOURS else None,
    }


class VisionModel:
    """A vision model: features of pictures, and CLIP scores where it also reads text.

    Args:
        source: A local folder or hub id that transformers can open, such as
            ``facebook/dinov2-small`` or ``openai/clip-vit-base-patch32``.
        device: The device to run it on.
        setting: The setting that names it, for messages. One of ``evaluate.clip`` reads text.

    Raises:
        ConfigError: It cannot be opened, is no vision model, or reads no text.
    """

    def __init__(
        self, source: str, device: torch.device | str = "cpu", setting: str = VISION
    ) -> None:
        self.device = torch.device(device)
        self.parts = open_vision_model(source, setting, self.device)

    def __call__(self, pictures: Sequence[Image]) -> Matrix:
        """Features of pictures, float64, shape (pictures, features)."""
        return _in_batches(pictures, self._image_features)

    def scores(self, pictures: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """CLIP scores: 100 times the cosine of picture and prompt, negative ones as 0.

        Args:
            pictures: At least one.
            prompts: One per picture.

        Source:
            Hessel et al. 2021, arXiv 2104.08718, with the weight 100 that is in use.
        """
        text = _in_batches(prompts, self._text_features)
        image = self(pictures)
        norms = np.linalg.norm(image, axis=1), np.linalg.norm(text, axis=1)
        cosines = (image * text).sum(1) / norms[0] / norms[1]
        return [float(score) for score in 100 * cosines.clip(0)]

    @torch.no_grad()
    def _image_features(self, pictures: Sequence[Image]) -> torch.Tensor:
        images = [picture.convert("RGB") for picture in pictures]
        pixels = self.parts.processor(images=images, return_tensors="pt").to(self.device)
        if hasattr(self.parts.model, "get_image_features"):
            return _tensor(self.parts.model.get_image_features(**pixels))  # type: ignore[operator]
        return _tensor(self.parts.model(**pixels))

    @torch.no_grad()
    def _text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        tokens = self.parts.tokenizer(
            list(prompts), padding=True, truncation=True, return_tensors="pt"
        )
        return _tensor(self.parts.model.get_text_features(**tokens.to(self.device)))  # type: ignore[operator]


def _in_batches(items: Sequence[Any], model: Callable[[Sequence[Any]], torch.Tensor]) -> Matrix:
    batches = [model(items[k : k + BATCH_SIZE]) for k in range(0, len(items), BATCH_SIZE)]
    return np.concatenate([features.double().cpu().numpy() for features in batches])


def _tensor(output: Any) -> torch.Tensor:
    """One vector per picture: the model's pooled output, else the mean over its patches."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    features: torch.Tensor = output.last_hidden_state.mean(1) if pooled is None else pooled
    return features.flatten(1)


def _distances(one: Matrix, two: Matrix) -> Matrix:
    """Euclidean distances, shape (len(one), len(two))."""
    squares = (one**2).sum(1)[:, None] + (two**2).sum(1)[None] - 2 * one @ two.T
    distances: Matrix = np.sqrt(squares.clip(0))
    return distances
