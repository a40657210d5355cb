"""Memory that ran out is recognised in every library's words, and nothing else is."""

import errno

import pytest

from guidefold.ground.progress import task
from guidefold.ground.shortage import asked_for, named, out_of_memory, running


class OutOfMemoryError(RuntimeError):
    """torch's is named so; the ground does not import torch."""


SHORTAGES = {
    "CUDA": (
        OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7 GiB"
        ),
        "20.00 MiB",
    ),
    "the driver": (RuntimeError("CUDA error: out of memory"), ""),
    "the CPU allocator": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "4.00 GiB",
    ),
    "oneDNN": (RuntimeError("could not create a primitive"), ""),
    "Windows": (
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1048576 bytes"),
        "1.00 MiB",
    ),
    "numpy": (MemoryError("Unable to allocate 1.50 GiB for an array with shape (3,)"), "1.50 GiB"),
    "Python": (MemoryError(), ""),
    "the system": (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
}


@pytest.mark.parametrize("name", SHORTAGES)
def test_a_shortage_is_recognised_and_so_is_its_size(name: str) -> None:
    error, size = SHORTAGES[name]
    assert out_of_memory(error)
    assert asked_for(error) == size


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor"),
        OSError(28, "No space"),
        ValueError("x"),
    ],
)
def test_nothing_else_is_a_shortage(error: Exception) -> None:
    assert not out_of_memory(error)


def test_the_innermost_work_is_what_was_running() -> None:
    error = MemoryError()
    with pytest.raises(MemoryError), named("Opening x"), task("Recording", 3):
        raise error
    assert running(error) == "Recording"
    assert running(ValueError()) == ""


def test_other_errors_carry_no_note() -> None:
    error = ValueError("a fault")
    with pytest.raises(ValueError, match="a fault"), task("Recording", 3):
        raise error
    assert not hasattr(error, "__notes__")
