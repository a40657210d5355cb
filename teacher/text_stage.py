"""The second stage of the teacher's training: the text encoder learns what captions say.

It could learn that from pictures alone, and goes on to do so together with the denoiser. But to
begin there is a plainer lesson, some hundred times cheaper: read every fact off the caption's last
token. The denoiser then finds the facts where it looks for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidefold.demo import RELATIONS, all_facts, draw_seen_facts, fact_table
from teacher.stage import Stage, step_seed


def caption_tokens(tokenizer: Any) -> Tensor:
    """Tokens of every caption of the world, and of the empty caption last.

    Args:
        tokenizer: The teacher's.

    Returns:
        int64, `(facts + 1, TOKENS)`, in the order of `all_facts()`.
    """
    captions = [*(facts.caption for facts in all_facts()), ""]
    return torch.as_tensor(tokenizer(captions, padding="max_length").input_ids)


def answers() -> Tensor:
    """The labels of every caption: its facts, and which thing lies on which side.

    The side follows from the relation and from the order of the things. But the denoiser draws
    places, not orders, and took very long to find that out by itself.

    Returns:
        int64, `(facts, questions)`, in the order of `all_facts()`; 0 where there is nothing to say.
    """
    table = fact_table()
    first, second, relation = table[:, 2:4], table[:, 5:7], table[:, 8:9]
    sides = []
    for here, opposite in (("above", "below"), ("to the left of", "to the right of")):
        forward, backward = RELATIONS.index(here), RELATIONS.index(opposite)
        straight, turned = relation == forward, relation == backward
        nothing = torch.full_like(first, -1)
        sides.append(torch.where(straight, first, torch.where(turned, second, nothing)))
        sides.append(torch.where(straight, second, torch.where(turned, first, nothing)))
    return torch.cat([table, *sides], dim=1) + 1


class Reader(nn.Module):
    """Reads every answer off a caption's last token by one linear layer; thrown away afterwards.

    Args:
        width: Width of the text encoder.
    """

    answers: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("answers", answers(), persistent=False)
        self.choices = [int(column.max()) + 1 for column in self.answers.T]
        self.layer = nn.Linear(width, sum(self.choices))

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Cross entropy of what is read.

        Args:
            hidden: The text encoder's last states, `(batch, tokens, width)`.
            ids: The captions' facts, indices into `all_facts()`, int64, `(batch,)`.

        Returns:
            The sum over questions of the mean over captions, a scalar.
        """
        parts = self.layer(hidden[:, -1]).float().split(self.choices, dim=1)
        right = self.answers[ids].T
        return torch.stack(
            [F.cross_entropy(part, answer) for part, answer in zip(parts, right, strict=True)]
        ).sum()


def text_stage(
    text_encoder: Any,
    tokens: Tensor,
    *,
    folder: Path,
    seed: int,
    steps: int,
    batch: int,
    rate: float,
) -> Stage:
    """Facts read off the last token by one linear layer, which is thrown away afterwards.

    Args:
        text_encoder: The text encoder, on the device to train it on.
        tokens: The tokens from `caption_tokens`.
        folder: Folder of the states.
        seed: Decides the captions of each step.
        steps: Steps in all.
        batch: Captions a step.
        rate: Highest learning rate.

    Returns:
        The stage.
    """
    device = next(text_encoder.parameters()).device
    reader = Reader(text_encoder.config.hidden_size).to(device)
    tokens = tokens.to(device)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        ids = draw_seen_facts(batch, generator).to(device)
        wrong: Tensor = reader(text_encoder(tokens[ids]).last_hidden_state, ids)
        return wrong

    modules: dict[str, nn.Module] = {"text_encoder": text_encoder, "reader": reader}
    recipe = {"seed": seed, "batch": batch, "rate": rate}
    return Stage("text", folder, modules, loss, steps, rate, 0.99, recipe)
