"""Let all parts of a packed output count alike in an error, such as a film's and its sound's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from guidefold.listen import unpack
from guidefold.train.batches import Batch
from guidefold.train.loss import GuidanceSize, squared_error


@dataclass(frozen=True)
class Balance:
    """The size of guidance in each part of the output, at each noise level.

    With ``D_k(t)`` the size in part ``k`` of ``K`` and ``D`` their mean, part ``k``, which has
    ``N_k`` of ``N`` elements, is multiplied by ``sqrt(D / D_k * N / (K N_k))``. The mean squared
    error of what is weighed so is ``1/K sum_k D / D_k E_k``, with ``E_k`` the part's own. An error
    is divided by ``D``, so each part is divided by its own size, and the parts are averaged.

    Attributes:
        sizes: ``D_k``, one for each part.
    """

    sizes: tuple[GuidanceSize, ...]

    @staticmethod
    def measure(measured: Sequence[tuple[Batch, torch.Tensor]], origin: float) -> Balance:
        """Measure on recorded states.

        Args:
            measured: Batches, each with the unguided teacher's output.
            origin: The guidance scale at which guidance is zero; at states that were recorded
                there nothing is divided by.
        """
        timesteps: list[float] = []
        errors: list[list[float]] = []
        for batch, output in measured:
            targets, outputs = (unpack(t, batch.shapes) for t in (batch.target, output))
            own = [
                squared_error(o, t).view(len(batch.timesteps), -1).mean(1).tolist()
                for o, t in zip(outputs, targets, strict=True)
            ]
            for k, (timestep, guidance) in enumerate(
                zip(batch.timesteps, batch.guidance, strict=True)
            ):
                span = (guidance - origin) ** 2 or 1.0
                timesteps.append(timestep)
                errors.append([part[k] / span for part in own])
        return Balance(
            tuple(GuidanceSize.measure(timesteps, list(part)) for part in zip(*errors, strict=True))
        )

    def weigh(self, packed: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Weigh a packed output or target of a batch, shape (rows, elements)."""
        parts = unpack(packed, batch.shapes)
        weights = torch.tensor(list(map(self._weights, batch.timesteps)), device=packed.device)
        weights = weights.repeat_interleave(len(packed) // len(weights), 0)
        elements = packed.shape[1] / len(parts)
        weighed = [
            part.flatten(1) * (weights[:, k : k + 1] * elements / part[0].numel()).sqrt()
            for k, part in enumerate(parts)
        ]
        return torch.cat(weighed, 1)

    def _weights(self, timestep: float) -> list[float]:
        sizes = [size.at(timestep) for size in self.sizes]
        return [sum(sizes) / len(sizes) / size for size in sizes]
