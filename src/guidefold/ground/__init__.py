"""The ground.

Every error as a tree, random draws as functions of names, parsers that do not crash, progress and
polite stops, the one room for other libraries' insides, and the one place that keeps their notes
away. All wings stand on it; it uses none of them.
"""

from guidefold.ground.errors import (
    CallError,
    CaptureError,
    ConfigError,
    CorruptFileError,
    FailedError,
    GuidefoldError,
    InputError,
    LibraryError,
    MismatchError,
    NonFiniteError,
    PipelineError,
    PromptError,
    RunError,
    UnfoldableError,
    VerifyError,
)
from guidefold.ground.parse import (
    check_regular,
    is_there,
    parse_json,
    parse_toml,
    read_json,
    read_text,
    shown,
    too_deep,
    unencodable,
)
from guidefold.ground.progress import (
    Stop,
    Stopped,
    Task,
    console,
    evenly_chosen,
    planned_steps,
    plural,
    stop_on_signals,
    task,
)
from guidefold.ground.quiet import quiet_libraries, quiet_loading
from guidefold.ground.randomness import (
    LARGEST_SEED,
    check_seeds,
    derive_seed,
    generator,
    permutation,
    unit,
)
from guidefold.ground.shortage import asked_for, named, out_of_memory, running

__all__ = [
    "LARGEST_SEED",
    "CallError",
    "CaptureError",
    "ConfigError",
    "CorruptFileError",
    "FailedError",
    "GuidefoldError",
    "InputError",
    "LibraryError",
    "MismatchError",
    "NonFiniteError",
    "PipelineError",
    "PromptError",
    "RunError",
    "Stop",
    "Stopped",
    "Task",
    "UnfoldableError",
    "VerifyError",
    "asked_for",
    "check_regular",
    "check_seeds",
    "console",
    "derive_seed",
    "evenly_chosen",
    "generator",
    "is_there",
    "named",
    "out_of_memory",
    "parse_json",
    "parse_toml",
    "permutation",
    "planned_steps",
    "plural",
    "quiet_libraries",
    "quiet_loading",
    "read_json",
    "read_text",
    "running",
    "shown",
    "stop_on_signals",
    "task",
    "too_deep",
    "unencodable",
    "unit",
]
