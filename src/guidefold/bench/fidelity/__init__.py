"""How close the student and its rivals come to the teacher, over several trials."""

from guidefold.bench.fidelity.compare import Found, bench_fidelity
from guidefold.bench.fidelity.copy import copy_weights
from guidefold.bench.fidelity.methods import GUIDEFOLD, PAPER, PLAIN, find_methods
from guidefold.bench.fidelity.tables import (
    Table,
    categories,
    cell,
    levels,
    markdown,
    overview,
    to_json,
    to_rich,
    write_pictures,
)
from guidefold.bench.fidelity.trials import Attach, Series, Trial

__all__ = [
    "GUIDEFOLD",
    "PAPER",
    "PLAIN",
    "Attach",
    "Found",
    "Series",
    "Table",
    "Trial",
    "bench_fidelity",
    "categories",
    "cell",
    "copy_weights",
    "find_methods",
    "levels",
    "markdown",
    "overview",
    "to_json",
    "to_rich",
    "write_pictures",
]
