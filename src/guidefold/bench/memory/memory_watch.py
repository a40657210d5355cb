"""The bytes that live, by part: counted as tensors are born and as they die.

A storage is counted once, however many tensors look at it, from the operation that made it until
nothing holds it: parameters that are frozen, modules that are called twice and tensors kept for the
backward pass need no rule of their own. What a kernel borrows for itself (a convolution's
workspace, say) is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guidefold.ground import compat
from guidefold.listen import tensors_of

TEMPORARY = "temporary"


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; enter it within a fake tensor mode to count what does not exist.

    Attributes:
        live: Bytes that live now, by part; what no one named is temporary.
        peak_bytes: The most that lived at once.
        at_peak: Those bytes by part.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Counter[str] = Counter()
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = {}
        self._newborn = TEMPORARY
        self._total = 0
        self._storages: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if compat.reads_number(func) and compat.is_fake(args[0]):
            return _plausible(args[0])
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of(out):
            self._see(tensor)
        return out

    def mark(self, part: str, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """Say what tensors are.

        Args:
            part: Their name in :attr:`live`.
            tensors: None takes all that is born from now on.
        """
        if tensors is None:
            self._newborn = part
            return
        for key in [self._see(tensor) for tensor in tensors]:
            size, name = self._storages[key]
            self.live[name] -= size
            self.live[part] += size
            self._storages[key] = (size, part)

    def _see(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = compat.storage_key(storage)
        if key not in self._storages:
            size = storage.nbytes()
            self._storages[key] = (size, self._newborn)
            self.live[self._newborn] += size
            self._total += size
            # The storage's Python object lives as long as the storage itself.
            weakref.finalize(storage, self._forget, key).atexit = False
            if self._total >= self.peak_bytes:  # the later of equals knows more names
                self.peak_bytes = self._total
                self.at_peak = {name: size for name, size in self.live.items() if size}
        return key

    def _forget(self, key: int) -> None:
        size, part = self._storages.pop(key)
        self.live[part] -= size
        self._total -= size


def _plausible(tensor: torch.Tensor) -> bool | int | float:
    """A number for a tensor that holds none: finite, and true."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1
