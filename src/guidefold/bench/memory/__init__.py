"""Peak memory of a training step, estimated or measured, and the plan of a run."""

from guidefold.bench.memory.architectures import Architecture, load_architecture, make_inputs
from guidefold.bench.memory.cases import CASES, ArchitectureWorkload
from guidefold.bench.memory.fit import CARDS, Choices, Fit
from guidefold.bench.memory.plan import GIB, free_memory, make_plan
from guidefold.bench.memory.plan_text import (
    cards_to_table,
    cheaper,
    describe,
    describe_fit,
    fit_to_json,
)
from guidefold.bench.memory.synthetic_inputs import materialise
from guidefold.bench.memory.table import bench_memory, check_device, to_json, to_table

__all__ = [
    "CARDS",
    "CASES",
    "GIB",
    "Architecture",
    "ArchitectureWorkload",
    "Choices",
    "Fit",
    "bench_memory",
    "cards_to_table",
    "cheaper",
    "check_device",
    "describe",
    "describe_fit",
    "fit_to_json",
    "free_memory",
    "load_architecture",
    "make_inputs",
    "make_plan",
    "materialise",
    "to_json",
    "to_table",
]
