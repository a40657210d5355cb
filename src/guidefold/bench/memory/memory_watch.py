"""Count the bytes of living tensors, by part.

A storage is counted once, however many tensors share it, from the operation that made it until it
is freed: frozen parameters, modules that are called twice and tensors kept for the backward pass
need no rule of their own. Memory within a kernel (a convolution's workspace, say) is not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from guidefold.ground import compat
from guidefold.listen import tensors_of

TEMPORARY = "temporary"
READS: dict[Any, Callable[[Any], Any]] = {
    torch.Tensor.item: lambda value: value,
    torch.Tensor.tolist: lambda value: value,
    torch.Tensor.__bool__: bool,
    torch.Tensor.__int__: int,
    torch.Tensor.__float__: float,
}
"""Methods that read numbers off a tensor, and what makes their answer of a placeholder."""


class MemoryWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensors while it is entered; within a fake tensor mode, fake tensors.

    Attributes:
        live: Living bytes by part; unmarked tensors are temporary.
        peak_bytes: The most living bytes at once.
        at_peak: Those bytes by part.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Counter[str] = Counter()
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = {}
        self._part_of_new = TEMPORARY
        self._total = 0
        self._storages: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if compat.reads_device(func):  # of a fake tensor: more often than all other operations
            return args[0].device
        if compat.reads_number(func) and compat.is_fake(args[0]):
            return _placeholder(args[0])
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self._register(out)
        else:
            for tensor in tensors_of(out):
                self._register(tensor)
        return out

    def mark(self, part: str, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """Assign tensors to a part.

        Args:
            part: The part's name in :attr:`live`.
            tensors: The tensors; None assigns all that are made from now on.
        """
        if tensors is None:
            self._part_of_new = part
            return
        for key in [self._register(tensor) for tensor in tensors]:
            size, name = self._storages[key]
            self.live[name] -= size
            self.live[part] += size
            self._storages[key] = (size, part)

    def restart(self) -> None:
        """Count the peak anew, from what lives now."""
        self.peak_bytes = 0

    def _register(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = compat.storage_key(storage)
        if key not in self._storages:
            size = storage.nbytes()
            self._storages[key] = (size, self._part_of_new)
            self.live[self._part_of_new] += size
            self._total += size
            # The storage's Python object lives as long as the storage itself.
            weakref.finalize(storage, self._forget, key).atexit = False
            if self._total >= self.peak_bytes:  # >=: of equal peaks the later has more marks
                self.peak_bytes = self._total
                self.at_peak = {name: size for name, size in self.live.items() if size}
        return key

    def _forget(self, key: int) -> None:
        size, part = self._storages.pop(key)
        self.live[part] -= size
        self._total -= size


class Placeholders(TorchFunctionMode):
    """Answers code that depends on the values of tensors without memory.

    A number is read as in :class:`MemoryWatch`; a mask selects everything, the most that it can.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in READS and (args[0].is_meta or compat.is_fake(args[0])):
            return READS[func](_placeholders(args[0]))
        if func is torch.Tensor.__getitem__ and _is_mask(args[1]):
            return args[0].flatten(0, args[1].dim() - 1).clone()
        return func(*args, **(kwargs or {}))


def fused_attention() -> AbstractContextManager[None]:
    """Within the context attention holds no score matrix, as fused kernels of any device do."""
    # Over fake tensors the CPU's kernel represents all of them.
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def _placeholder(tensor: torch.Tensor) -> bool | int | float:
    """The number that code reads off a fake tensor: finite, and true."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _is_mask(index: Any) -> bool:
    """Whether an index is a mask without memory."""
    known = isinstance(index, torch.Tensor) and index.dtype == torch.bool
    return known and (index.is_meta or compat.is_fake(index))


def _placeholders(tensor: torch.Tensor) -> Any:
    """A placeholder for every number of a tensor, nested as the tensor is."""
    return [_placeholders(row) for row in tensor] if tensor.dim() else _placeholder(tensor)
