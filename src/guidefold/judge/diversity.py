"""Diversity: how far the pictures of one prompt are apart over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from guidefold.draw import EvaluationPictures, Picture, picture_requests
from guidefold.ground import Task, derive_seed
from guidefold.judge.features import Matrix
from guidefold.pipeline import Prompt
from guidefold.run import Kind


def draw_seeds(
    pictures: EvaluationPictures,
    kind: Kind,
    prompts: Sequence[Prompt],
    count: int,
    progress: Task,
) -> list[Picture]:
    """Draw each prompt with several seeds, the same for every kind.

    Args:
        pictures: The cache that draws and keeps the pictures.
        kind: Who draws; a student's adapter is loaded.
        prompts: The prompts.
        count: Seeds per prompt.
        progress: Advances with every denoising step.

    Returns:
        ``count`` pictures of the first prompt, then those of the next.
    """
    session = pictures.session
    pairs = [
        (prompt, derive_seed(session.settings.seed, "diversity", k, number))
        for k, prompt in enumerate(prompts)
        for number in range(count)
    ]
    rows, seeds = zip(*pairs, strict=True)
    requests = picture_requests(session, kind, rows, seeds)
    # Numbered after the evaluation's pictures, whose files must stay.
    first = session.settings.evaluate.prompts
    return pictures.draw(requests, progress, first=first).pictures


def diversity(features: Matrix, count: int) -> float:
    """The mean distance of two pictures of one prompt, over pairs and prompts.

    ``E |f(a) - f(b)|`` for pictures a, b of one prompt and two seeds.

    Args:
        features: Shape (prompts x count, features), prompt by prompt.
        count: Pictures per prompt, at least two.
    """
    groups = features.reshape(-1, count, features.shape[-1])
    pairs = combinations(range(count), 2)
    return float(np.mean([np.linalg.norm(groups[:, a] - groups[:, b], axis=-1) for a, b in pairs]))
