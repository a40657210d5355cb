"""How far apart are two sets of pictures? Distances over features that a vision model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import nn

from guidefold.ground import InputError

Matrix = NDArray[np.float64]
Features = Callable[[Sequence[Image]], Matrix]
"""Pictures to features, shape (pictures, features)."""

AT_ONCE = 32
NEIGHBOURS = 3


def frechet_distance(one: Matrix, two: Matrix) -> float:
    """Distance of the normal distributions that fit two sets best: 0 where they are the same.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``

    Args:
        one: Features, shape (pictures, features), at least two pictures.
        two: Likewise, with the same features.

    Source:
        Heusel et al. 2017, arXiv 1706.08500, eq. 6, over whichever features are given.
    """
    gap = one.mean(axis=0) - two.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, two))
    # The trace of a root needs eigenvalues only, and C1 C2 has those of the symmetric R C2 R.
    root = _root(first)
    both = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return max(float(gap @ gap + np.trace(first) + np.trace(second) - 2 * both), 0.0)


def recall(reference: Matrix, made: Matrix, neighbours: int = NEIGHBOURS) -> float:
    """The share of the reference that what was made comes near to, 0..1: does it leave things out?

    A picture is come near to if it lies within the ball around one that was made which reaches to
    that one's k-th nearest neighbour among those made.

    Args:
        reference: Features, shape (pictures, features).
        made: Likewise, of more than ``neighbours`` pictures.
        neighbours: k.

    Source:
        Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2.
    """
    assert len(made) > neighbours
    within = np.sort(_distances(made, made), axis=1)[:, neighbours]  # the first is itself
    return float((_distances(reference, made) <= within).any(axis=1).mean())


def compare(reference: Matrix, made: Matrix) -> dict[str, float | None]:
    """Fréchet distance and recall of what was made; None where there are too few pictures."""
    return {
        "frechet_distance": frechet_distance(reference, made) if len(made) > 1 else None,
        "recall": recall(reference, made) if len(made) > NEIGHBOURS else None,
    }


class VisionModel:
    """Features of pictures, and CLIP scores where the model reads text too.

    Args:
        source: A local folder or hub id that transformers can open, such as
            ``facebook/dinov2-small`` or ``openai/clip-vit-base-patch32``.
        device: Where to.

    Raises:
        InputError: It cannot be opened, or sees no pictures.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel

        self.source, self.device = source, torch.device(device)
        try:
            self.processor = _open_processor(source)
            self.model: nn.Module = AutoModel.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(
                f"{source}: transformers cannot open it as a vision model: "
                f"{str(error).splitlines()[0]}",
                "Give a folder or hub id of one, such as facebook/dinov2-small.",
            ) from error
        self.model.eval().requires_grad_(False).to(self.device)

    def __call__(self, pictures: Sequence[Image]) -> Matrix:
        """Features of pictures, float64, shape (pictures, features)."""
        return self._in_pieces(pictures, self._see)

    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> float:
        """The CLIP score: 100 times the mean cosine of picture and prompt, those below 0 as 0.

        Args:
            pictures: At least one.
            prompts: One per picture.

        Raises:
            InputError: The model reads no text.

        Source:
            Hessel et al. 2021, arXiv 2104.08718, with the weight 100 that is in use.
        """
        if not hasattr(self.model, "get_text_features"):
            raise InputError(
                f"{self.source}: reads no text, so it cannot score pictures against prompts",
                "Give a CLIP model, such as openai/clip-vit-base-patch32.",
            )
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.source)
        read = self._in_pieces(prompts, partial(self._read, tokenizer))
        seen = self(pictures)
        cosines = (seen * read).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(read, axis=1)
        return float(100 * cosines.clip(0).mean())

    def _in_pieces(self, items: Sequence[Any], of: Callable[[Sequence[Any]], Any]) -> Matrix:
        pieces = [of(items[k : k + AT_ONCE]) for k in range(0, len(items), AT_ONCE)]
        return np.concatenate([p.double().cpu().numpy() for p in pieces])

    @torch.no_grad()
    def _see(self, pictures: Sequence[Image]) -> torch.Tensor:
        whole = [picture.convert("RGB") for picture in pictures]
        pixels = self.processor(images=whole, return_tensors="pt").to(self.device)
        if hasattr(self.model, "get_image_features"):
            return _tensor(self.model.get_image_features(**pixels))  # type: ignore[operator]
        return _tensor(self.model(**pixels))

    @torch.no_grad()
    def _read(self, tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        return _tensor(self.model.get_text_features(**tokens.to(self.device)))  # type: ignore[operator]


def _open_processor(source: str) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(source, backend="pil")


def _tensor(output: Any) -> torch.Tensor:
    """One vector per picture: what the model pools, else the mean over its patches."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    found: torch.Tensor = output.last_hidden_state.mean(1) if pooled is None else pooled
    return found.flatten(1)


def _root(covariance: Matrix) -> Matrix:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(covariance)
    found: Matrix = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return found


def _distances(one: Matrix, two: Matrix) -> Matrix:
    """Euclidean, shape (len(one), len(two))."""
    squares = (one**2).sum(1)[:, None] + (two**2).sum(1)[None] - 2 * one @ two.T
    found: Matrix = np.sqrt(squares.clip(0))
    return found
