"""Compare the student and its rivals with the teacher, over several seeds."""

from guidefold.bench.fidelity.compare import MethodResult, bench_fidelity
from guidefold.bench.fidelity.copy import copy_weights
from guidefold.bench.fidelity.methods import GUIDEFOLD, METHODS, PAPER, PLAIN
from guidefold.bench.fidelity.tables import (
    Table,
    alignment_ratios,
    categories,
    cell,
    levels,
    markdown,
    overview,
    to_json,
    to_rich,
    write_pictures,
)
from guidefold.bench.fidelity.trials import Attach, Trial, TrialResult, Trials

__all__ = [
    "GUIDEFOLD",
    "METHODS",
    "PAPER",
    "PLAIN",
    "Attach",
    "MethodResult",
    "Table",
    "Trial",
    "TrialResult",
    "Trials",
    "alignment_ratios",
    "bench_fidelity",
    "categories",
    "cell",
    "copy_weights",
    "levels",
    "markdown",
    "overview",
    "to_json",
    "to_rich",
    "write_pictures",
]
