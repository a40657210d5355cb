"""Upload a packed run to the hub in one commit, after the user has agreed."""

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
from guidefold.show.hub.card_code import REPOSITORY
from guidefold.show.hub.pack import CARD, check_packed, current_adapter, pack, packed_as, stamp


@dataclass(frozen=True)
class Upload:
    """A planned upload.

    Attributes:
        repository: ``OWNER/NAME``.
        folder: The packed folder.
        files: The size in bytes of each file, by name.
        exists: Whether the repository exists already: files of the same names are replaced.
        private: Whether the repository is, or will be, private.
        remarks: Remarks for the owner.
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
    """Upload a run's packed folder; a missing or outdated one is packed first.

    Args:
        settings: The run's settings.
        repository: ``OWNER/NAME`` on the hub; created if it does not exist.
        agree: Called before anything is uploaded; False stops the upload.
        private: Whether to make the repository private.
        licence: The base's licence as the hub's identifier, where its card is not available.

    Returns:
        The repository's address; None where ``agree`` returned False.

    Raises:
        InputError: An invalid name, no token, a repository that holds something else, or a card
            that the hub refuses.
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
    with _translated_errors(repository):
        exists, is_private = _state(api, repository)
        if exists and private and not is_private:
            raise InputError(
                f"{repository}: is there already, and public",
                "Make it private in its settings on the hub, or choose another name.",
            )
        is_private = is_private or private
        upload = Upload(repository, run.hub, _files(run.hub), exists, is_private, remarks)
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
    """Refuse a name that the hub does not accept.

    Raises:
        InputError: It is no ``OWNER/NAME``.
    """
    try:
        compat.check_repository_name(repository)
    except HFValidationError as error:
        raise InputError(f"{repository}: no name for a repository: {error}", "") from error
    if "/" not in repository:
        raise InputError(f"{repository}: has no owner", f"Use OWNER/NAME: YOU/{repository}.")


def _packed(settings: Settings, run: RunFolder, licence: str | None) -> tuple[str, ...]:
    """Pack unless the folder is current; a current folder keeps edits of its card."""
    known = packed_as(run.hub)
    if known.get("from") != stamp(run) or licence not in (None, known.get("license")):
        return pack(settings, licence=licence).remarks
    check_packed(run.hub)
    return ()


def _files(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }


def _operation(upload: Upload, name: str) -> CommitOperationAdd:
    """A file of the commit; the card gets the repository's name in place of the placeholder."""
    path = upload.folder / name
    if name != CARD:
        return CommitOperationAdd(name, path)
    text = path.read_text(encoding="utf-8").replace(REPOSITORY, upload.repository)
    return CommitOperationAdd(name, text.encode())


def _state(api: HfApi, repository: str) -> tuple[bool, bool]:
    """Whether a repository exists, and whether it is private.

    Raises:
        InputError: It holds no adapter of Guidefold's.
    """
    if not api.repo_exists(repository):
        return False, False
    info = api.model_info(repository)
    names = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    if names and METADATA not in names:
        raise InputError(
            f"{repository}: is there already, and holds no adapter of Guidefold's",
            "Choose another name: files of the same names would be replaced.",
        )
    return True, bool(info.private)


@contextmanager
def _translated_errors(repository: str) -> Iterator[None]:
    """Turn errors of the hub and of the network into errors with a remedy."""
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
    except ValueError as error:  # the hub validates the card's front matter
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
    message = " ".join(str(error.server_message or error).split())
    if status in range(400, 500):
        return InputError(f"{repository}: the hub refuses it: {message}", "")
    return FailedError(f"{repository}: the hub answers {status}: {message}", "Try again later.")
