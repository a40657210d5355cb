"""Peak memory of a training step, estimated or measured, and the plan of a run."""

from guidefold.bench.memory.architectures import Architecture, load_architecture, make_inputs
from guidefold.bench.memory.cases import CASES, ArchitectureWorkload
from guidefold.bench.memory.plan import GIB, case_of, cheaper, describe, make_plan
from guidefold.bench.memory.synthetic_inputs import materialise
from guidefold.bench.memory.table import bench_memory, check_device, to_json, to_table

__all__ = [
    "CASES",
    "GIB",
    "Architecture",
    "ArchitectureWorkload",
    "bench_memory",
    "case_of",
    "cheaper",
    "check_device",
    "describe",
    "load_architecture",
    "make_inputs",
    "make_plan",
    "materialise",
    "to_json",
    "to_table",
]
