"""The ground.

Every error as a tree, random draws as functions of names, progress and polite stops, and the
one room for other libraries' insides. All wings stand on it; it uses none of them.
"""

from guidefold.ground.errors import (
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
from guidefold.ground.progress import (
    Stop,
    Stopped,
    Task,
    console,
    evenly_chosen,
    in_all,
    plural,
    stop_on_signals,
    task,
)
from guidefold.ground.randomness import derive_seed, generator, permutation, unit

__all__ = [
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
    "console",
    "derive_seed",
    "evenly_chosen",
    "generator",
    "in_all",
    "permutation",
    "plural",
    "stop_on_signals",
    "task",
    "unit",
]
