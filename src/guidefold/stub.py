"""A denoiser's stand-in: what it is asked, and what becomes of its answers, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from guidefold.arguments import tensors_of, tree_map
from guidefold.outputs import output_tensor
from guidefold.randomness import generator


class RandomStub:
    """Answers in a denoiser's place with noise of the right form, at no cost.

    The real denoiser is asked once per shape of arguments; its answer is the template.

    Args:
        seed: Of the noise.

    Attributes:
        answers: The first tensor of every answer since the last :meth:`clear`.
        real_calls: How often the real denoiser was asked.
    """

    def __init__(self, seed: int) -> None:
        self.answers: list[torch.Tensor] = []
        self.real_calls = 0
        self._seed = seed
        self._draw_number = 0
        self._templates: dict[tuple[Any, ...], Any] = {}

    def clear(self, draw: int = 0) -> None:
        """Forget the answers, keep the templates.

        Args:
            draw: Another number gives other answers from now on.
        """
        self.answers.clear()
        self._draw_number = draw

    def __call__(
        self, name: str, denoiser: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one call."""
        key = (name, *((tuple(t.shape), t.dtype) for t in tensors_of((args, kwargs))))
        if key not in self._templates:
            self._templates[key] = denoiser(*args, **kwargs)
            self.real_calls += 1
        output = map_output(self._draw, self._templates[key])
        self.answers.append(output_tensor(output))
        return output

    def _draw(self, like: torch.Tensor) -> torch.Tensor:
        place = (self._seed, self._draw_number, len(self.answers))
        noise = torch.randn(like.shape, generator=generator(*place))
        return noise.to(like) if like.is_floating_point() else like


def map_output(function: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """Apply a function to every tensor of a denoiser's output, keeping its class."""
    if isinstance(output, Mapping):  # a diffusers BaseOutput is a mapping with attributes
        return type(output)(**{k: tree_map(function, v) for k, v in output.items()})
    return tree_map(function, output)
