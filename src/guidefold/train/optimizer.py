"""AdamW, in 32 or 8 bits, and Muon: updates, and the state that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from guidefold.ground import ConfigError, MismatchError
from guidefold.run import OptimizerName

LIBRARY = "bitsandbytes"
# The float that each of a byte's 256 values stands for: one table, shared by all parameters.
SHARED = ("qmap1", "qmap2")


def check_optimizer(name: OptimizerName) -> None:
    """Refuse an optimizer that cannot be made.

    Args:
        name: ``adamw``, ``adamw8bit`` or ``muon``.

    Raises:
        ConfigError: Its package is not installed, or torch is too old to have it.
    """
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"distill.optimizer: torch {torch.__version__} has no Muon",
            "Install torch 2.9 or newer, or set distill.optimizer=adamw.",
        )
    if name == "adamw8bit" and find_spec(LIBRARY) is None:
        raise ConfigError(
            f"distill.optimizer: '{name}' needs {LIBRARY}, which is not installed",
            "Install it with pip install 'guidefold[lean]', or set distill.optimizer=adamw.",
        )


def make_optimizer(
    name: OptimizerName, parameters: Sequence[nn.Parameter], weight_decay: float
) -> torch.optim.Optimizer:
    """Make an optimizer; the caller sets the learning rate of each step.

    Args:
        name: ``adamw``, or ``adamw8bit``: a byte for each value of a moment, and a float32 scale
            for every 256 (tensors under 4,096 values keep float32 moments); or ``muon``: momentum
            made orthogonal (Jordan et al. 2024), its steps as large as AdamW's.
        parameters: The parameters to update; for ``muon`` of two dimensions or more.
        weight_decay: The decoupled weight decay.

    Raises:
        ConfigError: Its package is not installed, or torch is too old to have it.
    """
    check_optimizer(name)
    if name == "muon":
        return _make_muon(parameters, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=weight_decay)
    made: torch.optim.Optimizer = import_module(f"{LIBRARY}.optim").AdamW8bit(
        parameters, weight_decay=weight_decay
    )
    return made


def _make_muon(parameters: Sequence[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """The Muon of torch, which knows matrices alone, for convolutions as well.

    A convolution is updated as the matrix of what it computes: a row for each output channel.
    """

    class Muon(torch.optim.Muon):
        def __init__(self) -> None:
            with _as_matrices(parameters):
                super().__init__(
                    parameters, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
                )

        def step(self, closure: Any = None) -> Any:
            with _as_matrices(parameters):
                return super().step(closure)  # type: ignore[no-untyped-call]

        def init_state(self, _group: Any, parameter: nn.Parameter, _g: int, _p: int) -> None:
            """The state before a first step, made as bitsandbytes' optimizers make theirs."""
            zeros = torch.zeros_like(parameter.detach())
            self.state[parameter] = {"momentum_buffer": zeros.reshape(len(zeros), -1)}

    return Muon()


@contextmanager
def _as_matrices(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the context, parameters and gradients of more than two dimensions are matrices."""
    shapes = [parameter.shape for parameter in parameters]
    for parameter in parameters:
        _reshape(parameter, (len(parameter), -1))
    try:
        yield
    finally:
        for parameter, shape in zip(parameters, shapes, strict=True):
            _reshape(parameter, shape)


def _reshape(parameter: nn.Parameter, shape: Sequence[int]) -> None:
    """Give a parameter and its gradient another shape, in the same storage where that can be."""
    gradient, parameter.grad = parameter.grad, None
    parameter.data = parameter.data.reshape(shape)
    parameter.grad = None if gradient is None else gradient.reshape(shape)


def optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's state by name, such as ``exp_avg/NAME``; empty before the first step."""
    states = {name: optimizer.state.get(p, {}) for name, p in parameters.items()}
    return {key: torch.as_tensor(value) for key, _, _, value in _entries(states)}


def restore_optimizer(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Load the state that :func:`optimizer_tensors` returned.

    A parameter without any had no gradient yet, such as those of a denoiser that was not called:
    its state begins with its first step.

    Raises:
        MismatchError: A tensor is missing or unknown, or has another shape or dtype.
    """
    stepped = {key.partition("/")[2] for key in tensors}
    states = {n: _first_state(optimizer, p) for n, p in parameters.items() if n in stepped}
    wanted = {key: torch.as_tensor(value) for key, _, _, value in _entries(states)}
    for key in sorted(wanted.keys() ^ tensors.keys()):
        raise MismatchError(
            f"optimizer: '{key}' is {'missing' if key in wanted else 'unknown'}",
            "It was saved by another optimizer: set distill.optimizer to the checkpoint's.",
        )
    for key, mine in wanted.items():
        if (mine.shape, mine.dtype) != (tensors[key].shape, tensors[key].dtype):
            raise MismatchError(
                f"optimizer: '{key}' is {_describe(tensors[key])} in the file and "
                f"{_describe(mine)} in this run"
            )
    for key, name, entry, value in _entries(states):
        if isinstance(value, torch.Tensor):
            value.copy_(tensors[key])
        else:
            states[name][entry] = tensors[key].item()
    for name, state in states.items():
        optimizer.state[parameters[name]] = state


def _first_state(optimizer: Any, parameter: nn.Parameter) -> dict[str, Any]:
    """A parameter's state before its first step, as the optimizer itself would make it."""
    if not hasattr(optimizer, "init_state"):
        zeros = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
        return {**zeros, "step": torch.tensor(0.0)}
    group = optimizer.param_groups[0]
    index = [id(p) for p in group["params"]].index(id(parameter))
    optimizer.init_state(group, parameter, 0, index)
    return dict(optimizer.state.pop(parameter))


def _entries(
    states: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, str, Any]]:
    """``(key in the file, parameter's name, entry's name, value)``; a shared table has one key."""
    for name, state in states.items():
        for entry, value in state.items():
            yield entry if entry in SHARED else f"{entry}/{name}", name, entry, value


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


class Update(NamedTuple):
    """The result of one optimizer step.

    Attributes:
        learning_rate: The step's learning rate.
        gradient_norm: The norm of the gradients before clipping.
        applied: Whether the gradients were finite; otherwise no parameter changed.
    """

    learning_rate: float
    gradient_norm: float
    applied: bool


class Updates:
    """An optimizer with a schedule; a step whose gradients are not finite is not applied.

    Args:
        optimizer: The optimizer of the adapter's parameters.
        rate: The learning rate of a step, counted from 0.
        max_norm: The norm that gradients are clipped to.
        scaler: The accelerator's scaler of float16 gradients; None in other precisions.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        max_norm: float,
        scaler: Any = None,
    ) -> None:
        self.optimizer, self.rate, self.max_norm, self.scaler = optimizer, rate, max_norm, scaler

    def apply(self, step: int) -> Update:
        """Update the parameters from their gradients.

        Args:
            step: Optimizer steps done before; gives the learning rate.
        """
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        finite = bool(norm.isfinite())
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # skips what is not finite
            self.scaler.update()
        elif finite:
            self.optimizer.step()
        return Update(rate, float(norm), finite)

    def state(self) -> Any:
        """The scaler's state as JSON; None without a scaler."""
        return None if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: Any) -> None:
        """Load the scaler's state, if there is a scaler."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
