"""Every exception that Guidefold raises on purpose.

    GuidefoldError
    ├── InputError            what the user gave cannot be used (exit code 2)
    │   ├── ConfigError       a setting is missing, unknown or out of range
    │   │   └── CallError     a pipeline refuses the call that settings and rows make
    │   ├── PromptError       a prompt file cannot be read
    │   ├── PipelineError     a pipeline cannot be opened, or not safely
    │   ├── UnfoldableError   a pipeline opens, but its guidance cannot be folded
    │   ├── MismatchError     two things that do not belong together
    │   └── RunError          a run folder is missing, busy or unfinished
    └── FailedError           a run that began did not succeed (exit code 1)
        ├── LibraryError      an installed library lacks what Guidefold needs of it
        ├── CorruptFileError  a finished file is truncated or altered
        ├── CaptureError      a pipeline did not do twice what it did once
        ├── NonFiniteError    a NaN or an infinity turned up
        └── VerifyError       a written adapter does not give back what was trained

Every message says what was wrong, where (``file:line``, field, value), and every exception carries
the remedy: what to do instead.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class GuidefoldError(Exception):
    """A failure that Guidefold foresees.

    Args:
        message: What went wrong, and where.
        remedy: What to do instead; a sentence, or empty where the message says it all.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class InputError(GuidefoldError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is missing, unknown or out of range."""


class CallError(ConfigError):
    """A pipeline refuses the call that settings and rows make."""


class PromptError(InputError):
    """A prompt file cannot be read."""


class PipelineError(InputError):
    """A pipeline cannot be opened, or not safely."""


class UnfoldableError(InputError):
    """A pipeline opens, but its guidance cannot be folded."""


class MismatchError(InputError):
    """Two things that do not belong together: base, rank, prediction type, settings."""


class RunError(InputError):
    """A run folder is missing, busy or unfinished."""


class FailedError(GuidefoldError):
    """A run that began did not succeed."""


class LibraryError(FailedError):
    """An installed library lacks what Guidefold needs of it."""


class CorruptFileError(FailedError):
    """A finished file is truncated or altered."""


class CaptureError(FailedError):
    """A pipeline did not do twice what it did once."""


class NonFiniteError(FailedError):
    """A NaN or an infinity turned up."""


class VerifyError(FailedError):
    """A written adapter does not give back what was trained."""


@contextmanager
def given_by_user() -> Iterator[None]:
    """Within the context, a damaged file is one that the user has named, and no run's own.

    Raises:
        InputError: In the place of a CorruptFileError.
    """
    try:
        yield
    except CorruptFileError as error:
        raise InputError(error.message, error.remedy) from error
