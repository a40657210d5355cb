"""A tiny adapter and its optimizer, to train, save and compare."""

from pathlib import Path

import torch
from torch import nn

from guidefold.lora.adapter import Adapter, attach
from guidefold.run.folder import RunFolder
from guidefold.train.checkpoints import load_checkpoint, optimizer_tensors, save_checkpoint


class Work:
    """A tiny adapter and its optimizer, to train, save and compare."""

    def __init__(self, rank: int = 2, *, layers: int = 1) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(layers)])
        self.x = torch.arange(6.0).view(2, 3)
        self.adapter: Adapter = attach(self.model, "all", rank, 0, lambda: self.model(self.x))
        self.optimizer = torch.optim.AdamW(self.adapter.named_parameters().values(), lr=0.1)
        self.step = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            (self.model(self.x) - 1).square().sum().backward()
            self.optimizer.step()
            self.step += 1

    def save(self, run: Path, keep: int = 2) -> Path:
        state = {"extra": [1, None]}
        return save_checkpoint(
            RunFolder(run), self.step, self.adapter, self.optimizer, state=state, keep=keep
        )

    def load(self, folder: Path) -> dict[str, object]:
        return load_checkpoint(folder, self.adapter, self.optimizer).to_json()

    def tensors(self) -> dict[str, torch.Tensor]:
        moments = optimizer_tensors(self.adapter.named_parameters(), self.optimizer)
        return {n: t.clone() for n, t in {**self.adapter.state_dict(), **moments}.items()}
