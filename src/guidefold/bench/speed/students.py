"""Make the denoisers side by side: the teacher's, one with a live LoRA, one with it fused.

No time is spent on fusing between two runs, or on switching a LoRA off. The live LoRA shares the
teacher's weights; only the fused denoiser has weights of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from guidefold.bench.speed.methods import Weights
from guidefold.deliver import FILES, layer_names, read_adapter, write_lora
from guidefold.ground import RunError, generator
from guidefold.listen import Findings
from guidefold.lora import adapted_layers, attach, fuse_adapter
from guidefold.run import METADATA, Format, RunFolder

SEED = 0
SIZE_OF_UPDATE = 1e-3  # not zero, and too small to overflow anything


def share(module: nn.Module) -> nn.Module:
    """Copy a module and share its storage: layers can be wrapped in one and not in the other."""
    parameters = {id(p): nn.Parameter(p.detach(), False) for p in module.parameters()}
    buffers = {id(b): b.detach() for b in module.buffers()}
    return copy.deepcopy(module, {**parameters, **buffers})


def settle(module: nn.Module) -> None:
    """Copy a module's weights from the mapped file into aligned memory.

    In the file they lie at any address, and kernels are a few percent slower than on fused weights.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.detach().clone()


def make_denoisers(
    teacher: nn.Module, load: Callable[[nn.Module, Path], None], folder: Path
) -> dict[Weights, nn.Module]:
    """The teacher's denoiser, one with an adapter live, and one with it fused.

    Args:
        teacher: The teacher's denoiser; it is not changed.
        load: Loads an adapter's folder into a denoiser, as clients do.
        folder: The adapter's folder.
    """
    loaded, fused = share(teacher), copy.deepcopy(teacher)
    for module in (loaded, fused):
        load(module, folder)
    fuse_adapter(fused)
    return {"teacher": teacher, "loaded": loaded.eval(), "fused": fused.eval()}


@contextmanager
def random_adapter(
    teacher: nn.Module,
    call: Callable[[nn.Module], object],
    *,
    rank: int,
    targets: str,
    prefix: str | None = None,
) -> Iterator[Path]:
    """Write an adapter with random values into a temporary folder.

    Args:
        teacher: The denoiser that it fits; it is not changed.
        call: Calls a denoiser once, as a pipeline does.
        rank: The rank.
        targets: ``attention``, ``linear`` or ``all``.
        prefix: The component's name, where diffusers will load it; None where plain peft will.

    Yields:
        The folder.

    Raises:
        UnfoldableError: No layer matches the targets.
    """
    scratch = share(teacher)
    adapter = attach(scratch, targets, rank, SEED, lambda: call(scratch))
    tensors = adapter.state_dict()
    noise = generator(SEED, "speed")
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensors[name] = SIZE_OF_UPDATE * torch.randn(tensor.shape, generator=noise)
    with TemporaryDirectory(prefix="guidefold-") as made:
        folder = Path(made)
        kind: Format = "peft" if prefix is None else "diffusers"
        write_lora(folder / FILES[kind], kind, tensors, layer_names(teacher, prefix or ""))
        yield folder


def find_adapter(folder: Path, findings: Findings) -> Path:
    """Find the adapter of a run, and check that it belongs to the pipeline.

    Args:
        folder: Folder of a run or an adapter.
        findings: The probe's findings in the pipeline.

    Raises:
        RunError: There is no adapter.
        CorruptFileError: Its files are not the ones that were written.
        MismatchError: It was trained on another base.
    """
    inner = RunFolder(folder).adapter
    found = inner if inner.is_dir() else folder
    if not (found / METADATA).exists():
        raise RunError(
            f"--adapter {folder}: no adapter there ({METADATA} is missing)",
            "Name the folder of a run that 'guidefold distill' has finished.",
        )
    Findings.from_json(read_adapter(found)["findings"]).check_same_base(findings)
    return found


def describe_adapter(loaded: nn.Module, source: Path | None) -> dict[str, object]:
    """The facts of the adapter that results depend on."""
    layers = adapted_layers(loaded)
    count = sum(p.numel() for name, p in loaded.named_parameters() if ".lora_" in name)
    return {
        "from": "random" if source is None else str(source),
        "layers": len(layers),
        "parameters": count,
    }
