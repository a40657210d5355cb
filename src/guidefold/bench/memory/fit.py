"""The fastest settings with which a run fits into a memory.

Two training steps of one sample are estimated, with gradient checkpointing and without; the peaks
of all other settings follow from their parts. They are bounds from above: of what a step holds
beside weights, gradients and moments, a batch of n samples holds at most n times as much, and a
layer in few bits holds its whole weight only while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from guidefold.bench.memory.estimate import Peak, estimate_both
from guidefold.bench.memory.meta_pipeline import only_plannable
from guidefold.bench.memory.outline import (
    LIBRARY_BITS,
    PipelineWorkload,
    Recording,
    bytes_of,
    case_of,
    open_quantised,
    outline,
    sizes_of,
    two_largest_layers,
)
from guidefold.bench.memory.plan import SPARE
from guidefold.lora import BITS, shrink_weights
from guidefold.pipeline import can_quantize, is_movable
from guidefold.run import Offload, Quantization, Settings, Storage

CARDS = (8, 12, 16, 24, 48, 80)
"""Memory of usual cards, in GiB."""
FIXED = ("weights", "adapter", "gradients", "optimizer")
"""The parts of a step that do not grow with the batch."""
STORED: tuple[tuple[Quantization, Storage], ...] = (
    ("none", "same"),
    ("none", "int8"),
    ("none", "int4"),
    ("torchao_int8", "same"),
    ("bitsandbytes_4bit", "same"),
)
"""Quantisation of the teacher, and storage of frozen weights, from what changes least."""
OFFLOADS: tuple[Offload, ...] = ("none", "component", "group")


@dataclass(frozen=True)
class Fit:
    """Settings that fit, and what they take.

    Attributes:
        quantization: ``pipeline.quantization``.
        offload: ``pipeline.offload``.
        frozen_weights: ``distill.frozen_weights``.
        checkpointing: ``distill.gradient_checkpointing``.
        accumulation: ``distill.accumulation``.
        encoding_bytes: Most bytes of tensors at once while prompts are encoded.
        recording_bytes: The same while the teacher's denoiser runs.
        peak_bytes: The same in a training step.
    """

    quantization: Quantization
    offload: Offload
    frozen_weights: Storage
    checkpointing: bool
    accumulation: int
    encoding_bytes: int
    recording_bytes: int
    peak_bytes: int

    def overrides(self, settings: Settings) -> list[str]:
        """What to set, as ``section.key=value``, where it is not set so already."""
        pipeline, distill = settings.pipeline, settings.distill
        pairs = {
            "pipeline.quantization": (self.quantization, pipeline.quantization),
            "pipeline.offload": (self.offload, pipeline.offload),
            "distill.frozen_weights": (self.frozen_weights, distill.frozen_weights),
            "distill.gradient_checkpointing": (self.checkpointing, distill.gradient_checkpointing),
            "distill.accumulation": (self.accumulation, distill.accumulation),
        }
        return [f"{key}={_plain(new)}" for key, (new, old) in pairs.items() if new != old]


class Choices:
    """What a run takes by its settings, from few estimates.

    Args:
        settings: The run's; rank, targets, precision, sizes and batch stay as they are.
        here: Whether it is to run on this machine: with libraries that are installed.
        offloads: Whether there is an accelerator to move parts of the pipeline to.

    Raises:
        PipelineError: The configs cannot be found, or make no pipeline.
        UnfoldableError: The pipeline cannot run without weights.
    """

    def __init__(self, settings: Settings, *, here: bool = False, offloads: bool = True) -> None:
        self.settings, self.here = settings, here
        self.single_file = Path(settings.pipeline.source).is_file()
        self.offloads = OFFLOADS if offloads else ("none",)
        self.outline = outline(settings, 1)
        self._sizes = dict[tuple[Quantization, Storage], int]()
        self._recordings = {settings.pipeline.quantization: self.outline.recording}

    def fastest(self, available_bytes: int) -> Fit | None:
        """The first of all settings, from the fastest on, that leaves a tenth of the memory.

        Args:
            available_bytes: The memory.

        Returns:
            The settings; None if none fit.
        """
        limit = (1 - SPARE) * available_bytes
        for quantization, frozen in self._stored():
            trained = (t for t in self._trained(quantization, frozen) if t[2] <= limit)
            recorded = (r for r in self._recorded(quantization) if max(r[1:]) <= limit)
            training, recording = next(trained, None), next(recorded, None)
            if training is not None and recording is not None:
                checkpointing, pieces, peak = training
                offload, encoding, recorded_bytes = recording
                return Fit(
                    quantization,
                    offload,
                    frozen,
                    checkpointing,
                    pieces,
                    encoding,
                    recorded_bytes,
                    peak,
                )
        return None

    @property
    def parameters(self) -> int:
        """Parameters of the denoiser."""
        return self._workload.parameters

    def stored_bytes(self, quantization: Quantization) -> int:
        """Bytes of all weights: with offloading, they lie in the host's memory.

        Args:
            quantization: Of the teacher.
        """
        return sum(self._recording(quantization).sizes.values())

    def _stored(self) -> Iterator[tuple[Quantization, Storage]]:
        """Ways to store the weights, from that of the settings on."""
        settings = self.settings
        current = (settings.pipeline.quantization, settings.distill.frozen_weights)
        yield current
        smaller = STORED[STORED.index(current) + 1 :] if current in STORED else ()
        for quantization, frozen in smaller:
            if quantization == "none":
                allowed = "student" not in settings.record.rounds
            else:
                allowed = not self.single_file and (not self.here or can_quantize(quantization))
            if allowed:
                yield quantization, frozen

    def _trained(
        self, quantization: Quantization, frozen: Storage
    ) -> Iterator[tuple[bool, int, int]]:
        """Checkpointing, pieces and peak of a training step, from the fastest on."""
        batch = self.settings.distill.batch_size
        for checkpointing, peak in self._steps.items():
            fixed = sum(peak.parts.get(name, 0) for name in FIXED)
            for pieces in (n for n in range(1, batch + 1) if batch % n == 0):
                growing = (peak.peak_bytes - fixed) * (batch // pieces)
                yield (
                    checkpointing,
                    pieces,
                    fixed + growing + self._saved(quantization, frozen, peak),
                )

    @cached_property
    def _workload(self) -> PipelineWorkload:
        workload = self.outline.workload()
        workload.pieces = 2  # with gradients held, memory is at its peak
        return workload

    @cached_property
    def _steps(self) -> dict[bool, Peak]:
        with only_plannable(self._workload.name):
            return estimate_both(case_of(self.settings), self._workload)

    def _saved(self, quantization: Quantization, frozen: Storage, peak: Peak) -> int:
        """Bytes that another storage of the weights adds: less than none, as a rule."""
        settings = self.settings
        how = (quantization, frozen)
        if how == (settings.pipeline.quantization, settings.distill.frozen_weights):
            return 0
        if how not in self._sizes:
            self._sizes[how] = self._weights(*how)
        return self._sizes[how] - peak.parts["weights"]

    def _weights(self, quantization: Quantization, frozen: Storage) -> int:
        """Bytes of stored weights, and of the layers that are whole while they compute."""
        denoiser = self.outline.open_denoiser()
        whole = two_largest_layers(denoiser)
        bits = LIBRARY_BITS.get(quantization) or BITS.get(frozen)
        if bits is None:
            return bytes_of(denoiser)
        shrink_weights(denoiser, *bits)
        return bytes_of(denoiser) + whole

    def _recorded(self, quantization: Quantization) -> Iterator[tuple[Offload, int, int]]:
        """Offloading and peaks of text encoding and recording, from the fastest on."""
        for offload in self.offloads:
            if is_movable(quantization, offload):
                yield offload, *self._recording(quantization).peaks(offload)

    def _recording(self, quantization: Quantization) -> Recording:
        if quantization not in self._recordings:
            self._recordings[quantization] = self._quantised(quantization)
        return self._recordings[quantization]

    def _quantised(self, quantization: Quantization) -> Recording:
        """What recording takes of a quantised teacher: a layer is whole while it computes."""
        whole = self.outline.recording
        sizes, layers = sizes_of(open_quantised(self.settings, self.outline.folder, quantization))
        beside = {name: size + whole.layers[name] for name, size in whole.beside.items()}
        return replace(whole, beside=beside, sizes=sizes, layers=layers)


def _plain(value: str | bool | int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
