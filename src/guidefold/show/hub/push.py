"""A packed run onto the hub: shown, agreed to, and then one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from guidefold import __version__
from guidefold.ground import FailedError, InputError, compat
from guidefold.run import MANIFEST, METADATA, RunFolder, Settings, require_run
from guidefold.show.hub.card import REPOSITORY
from guidefold.show.hub.pack import CARD, current_adapter, pack, packed_as, stamp


@dataclass(frozen=True)
class Upload:
    """What is about to be uploaded.

    Attributes:
        repository: ``OWNER/NAME``.
        folder: Where the files lie.
        files: Their names there, with their bytes.
        exists: Whether the repository is there already: files of the same names are replaced.
        private: Whether it is, or will be, seen by its owner alone.
        remarks: What the owner should know.
    """

    repository: str
    folder: Path
    files: dict[str, int]
    exists: bool
    private: bool
    remarks: tuple[str, ...]


def push(
    settings: Settings,
    repository: str,
    agree: Callable[[Upload], bool],
    *,
    private: bool = False,
    licence: str | None = None,
) -> str | None:
    """Upload a run's packed folder; it is packed first where it is missing or outdated.

    Args:
        settings: The run's.
        repository: ``OWNER/NAME`` on the hub; made where it is not there.
        agree: Asked before anything leaves this machine.
        private: Make the repository private.
        licence: The base's, by the hub's identifier, where its own card is not here.

    Returns:
        The repository's address; None where nobody agreed.

    Raises:
        InputError: No such name, no token, a repository that holds something else, or a card that
            the hub refuses.
        RunError: There is no adapter, or training has gone on since it was written.
        FailedError: The hub cannot be reached, or fails.
    """
    check_name(repository)
    run = require_run(settings.run)
    current_adapter(run)
    if get_token() is None:
        raise InputError(
            "no token for the hub", "Log in once with 'hf auth login', or set HF_TOKEN."
        )
    remarks = _packed(settings, run, licence)
    api = HfApi()
    with _in_words(repository):
        exists, seen = _state(api, repository)
        if exists and private and not seen:
            raise InputError(
                f"{repository}: is there already, and public",
                "Make it private in its settings on the hub, or choose another name.",
            )
        upload = Upload(repository, run.hub, _files(run.hub), exists, private or seen, remarks)
        if not agree(upload):
            return None
        if not exists:
            api.create_repo(repository, private=private)
        api.create_commit(
            repository,
            [_operation(upload, name) for name in upload.files],
            commit_message=f"Adapter folded by guidefold {__version__}",
        )
    return f"{constants.ENDPOINT}/{repository}"


def check_name(repository: str) -> None:
    """Refuse what the hub would not take for a name.

    Raises:
        InputError: It is no ``OWNER/NAME``.
    """
    try:
        compat.check_repository_name(repository)
    except HFValidationError as error:
        raise InputError(f"{repository}: no name for a repository: {error}", "") from error
    if "/" not in repository:
        raise InputError(f"{repository}: whose?", f"Name it OWNER/NAME: YOU/{repository}.")


def _packed(settings: Settings, run: RunFolder, licence: str | None) -> tuple[str, ...]:
    """Pack where it is needed; what is up to date keeps what was edited in its card."""
    known = packed_as(run.hub)
    current = known.get("from") == stamp(run) and licence in (None, known.get("license"))
    return () if current else pack(settings, licence=licence).remarks


def _files(folder: Path) -> dict[str, int]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in found
        if path.name != MANIFEST and not path.name.startswith(".")
    }


def _operation(upload: Upload, name: str) -> CommitOperationAdd:
    """A file of the commit; in the card the repository's name stands where it was left open."""
    path = upload.folder / name
    if name != CARD:
        return CommitOperationAdd(name, path)
    text = path.read_text(encoding="utf-8").replace(REPOSITORY, upload.repository)
    return CommitOperationAdd(name, text.encode())


def _state(api: HfApi, repository: str) -> tuple[bool, bool]:
    """Whether a repository is there, and whether it is private.

    Raises:
        InputError: It holds what was not pushed from here.
    """
    if not api.repo_exists(repository):
        return False, False
    about = api.model_info(repository)
    names = {file.rfilename for file in about.siblings or ()} - {".gitattributes"}
    if names and METADATA not in names:
        raise InputError(
            f"{repository}: is there already, and holds no adapter of Guidefold's",
            "Choose another name: files of the same names would be replaced.",
        )
    return True, bool(about.private)


@contextmanager
def _in_words(repository: str) -> Iterator[None]:
    """What the hub and the way there answer, as errors that say what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set", "Unset it to reach the hub.") from error
    except HfHubHTTPError as error:
        raise _refusal(repository, error) from error
    except compat.network_errors() as error:
        raise FailedError(
            f"no connection to {constants.ENDPOINT} ({error})",
            "Nothing is half done: the same command begins again.",
        ) from error
    except ValueError as error:  # the hub has read the card's front matter
        raise InputError(
            f"the hub refuses the card: {' '.join(str(error).split())}",
            f"Mend the front matter of {CARD} in the packed folder, or name a licence of the "
            "hub's list with --license.",
        ) from error


def _refusal(repository: str, error: HfHubHTTPError) -> InputError | FailedError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return InputError("the hub does not know the token", "Log in with 'hf auth login'.")
    if status == 403:
        return InputError(
            f"{repository}: the token may not write there",
            "Make one that may write, or choose another owner.",
        )
    said = " ".join(str(error.server_message or error).split())
    if status in range(400, 500):
        return InputError(f"{repository}: the hub refuses it: {said}", "")
    return FailedError(f"{repository}: the hub answers {status}: {said}", "Try again later.")
