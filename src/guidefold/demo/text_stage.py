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

from guidefold.demo.captions import all_facts
from guidefold.demo.stage import Stage, step_seed
from guidefold.demo.world import draw_seen_facts, fact_table


def caption_tokens(tokenizer: Any) -> Tensor:
    """Tokens of every caption of the world, and of the empty caption last.

    Args:
        tokenizer: The teacher's.

    Returns:
        int64, `(facts + 1, TOKENS)`, in the order of `all_facts()`.
    """
    captions = [*(facts.caption for facts in all_facts()), ""]
    return torch.as_tensor(tokenizer(captions, padding="max_length").input_ids)


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
        text_encoder: What to train, on the device to train it on.
        tokens: What `caption_tokens` returned.
        folder: Where states are kept.
        seed: Decides the captions of each step.
        steps: Steps in all.
        batch: Captions a step.
        rate: Highest learning rate.

    Returns:
        The stage.
    """
    device = next(text_encoder.parameters()).device
    answers = (fact_table() + 1).to(device)  # -1, nothing to say, is an answer too
    choices = [int(column.max()) + 1 for column in answers.T]
    reader = nn.Linear(text_encoder.config.hidden_size, sum(choices)).to(device)
    tokens = tokens.to(device)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        ids = draw_seen_facts(batch, generator).to(device)
        said = text_encoder(tokens[ids]).last_hidden_state[:, -1]
        parts = reader(said).split(choices, dim=1)
        wrong = [
            F.cross_entropy(part, answer)
            for part, answer in zip(parts, answers[ids].T, strict=True)
        ]
        return torch.stack(wrong).sum()

    modules: dict[str, nn.Module] = {"text_encoder": text_encoder, "reader": reader}
    recipe = {"seed": seed, "batch": batch, "rate": rate}
    return Stage("text", folder, modules, loss, steps, rate, 0.99, recipe)
