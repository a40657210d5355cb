"""Uploading: shown first, agreed to, one commit; what the hub answers comes out in words."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from pages import begun, write

from guidefold.cli import main as cli
from guidefold.ground.errors import (
    CorruptFileError,
    FailedError,
    GuidefoldError,
    InputError,
    RunError,
)
from guidefold.run.config import load_settings
from guidefold.run.files import finished_folder, write_json, write_text
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.show.hub import push as hub
from guidefold.show.hub.pack import Packed, stamp
from guidefold.show.hub.push import Upload, push

NAME = "someone/dial"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has an adapter, as far as its files tell."""
    folder = begun(tmp_path / "run")
    with finished_folder(folder / "adapter") as temporary:
        write_json(temporary / "guidefold.json", {"step": 2})
    return folder


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Packing without a model; each time it is asked to, the licence it was given."""
    asked: list[str | None] = []

    def pack(settings: Settings, licence: str | None = None) -> Packed:
        asked.append(licence)
        run = Path(settings.run)
        with finished_folder(run / "hub") as folder:
            about = {"packed": {"from": stamp(RunFolder(run)), "license": licence}}
            write_json(folder / "guidefold.json", about)
            write_text(folder / "README.md", "load_lora_weights('OWNER/NAME')")
            write_text(folder / "kohya" / "run.safetensors", "tensors")
            write_text(folder / "kohya" / "MANIFEST.json", "{}")
        return Packed(run / "hub", ("No licence.",))

    monkeypatch.setattr(hub, "pack", pack)
    return asked


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, packs: list[str | None]) -> MagicMock:
    """The hub's client with its own signatures, that reaches nobody; nothing is there yet."""
    fake: MagicMock = create_autospec(HfApi, instance=True)
    fake.repo_exists.return_value = False
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return fake


def there(api: MagicMock, *names: str, private: bool = False) -> None:
    api.repo_exists.return_value = True
    files = [MagicMock(rfilename=name) for name in (".gitattributes", *names)]
    api.model_info.return_value = MagicMock(siblings=files, private=private)


def untouched(api: MagicMock) -> bool:
    return not api.create_repo.called and not api.create_commit.called


def answer(status: int, said: str = "") -> HfHubHTTPError:
    response = MagicMock(status_code=status, headers={})
    return HfHubHTTPError("answered", response=response, server_message=said)


def test_what_was_agreed_to_is_uploaded_in_one_commit(run: Path, api: MagicMock) -> None:
    shown: list[Upload] = []

    def agree(upload: Upload) -> bool:
        assert untouched(api)
        shown.append(upload)
        return True

    address = push(load_settings(run), NAME, agree, private=True)
    assert address is not None
    assert address.endswith(f"/{NAME}")
    assert shown[0].files.keys() == {"README.md", "guidefold.json", "kohya/run.safetensors"}
    assert shown[0].files["kohya/run.safetensors"] == len("tensors")
    assert (shown[0].exists, shown[0].private, shown[0].remarks) == (False, True, ("No licence.",))
    api.create_repo.assert_called_once_with(NAME, private=True)
    (repository, operations), _ = api.create_commit.call_args
    assert repository == NAME
    assert {one.path_in_repo for one in operations} == shown[0].files.keys()
    (card,) = (one for one in operations if one.path_in_repo == "README.md")
    assert card.path_or_fileobj == f"load_lora_weights('{NAME}')".encode()
    assert "OWNER/NAME" in (run / "hub" / "README.md").read_text()


def test_without_agreement_nothing_leaves(run: Path, api: MagicMock) -> None:
    assert push(load_settings(run), NAME, lambda _: False) is None
    assert untouched(api)


def test_a_folder_is_packed_where_it_is_missing_or_outdated(
    run: Path, api: MagicMock, packs: list[str | None]
) -> None:
    settings = load_settings(run)
    push(settings, NAME, lambda _: False, licence="mit")
    (run / "hub" / "README.md").write_text("My own words.")
    push(settings, NAME, lambda _: True)
    assert packs == ["mit"]
    (operation, *_) = api.create_commit.call_args[0][1]
    assert operation.path_or_fileobj == b"My own words."
    push(settings, NAME, lambda _: False, licence="openrail")
    write(run / "results.json", {})
    push(settings, NAME, lambda _: False)
    assert packs == ["mit", "openrail", None]


@pytest.mark.parametrize("damage", ["altered", "lost", "elsewhere"])
def test_a_packed_file_that_is_not_as_written_is_not_uploaded(
    run: Path, api: MagicMock, damage: str
) -> None:
    settings, file = load_settings(run), run / "hub" / "kohya" / "run.safetensors"
    push(settings, NAME, lambda _: False)
    file.unlink()
    if damage == "altered":
        file.write_text("tensorz")
    elif damage == "elsewhere":
        file.symlink_to(run / "config.toml")
    with pytest.raises(CorruptFileError, match=r"run\.safetensors: "):
        push(settings, NAME, lambda _: True)
    assert untouched(api)


def test_a_repository_of_guidefold_s_is_brought_up_to_date(run: Path, api: MagicMock) -> None:
    there(api, "guidefold.json", "README.md", private=True)
    shown: list[Upload] = []
    push(load_settings(run), NAME, lambda upload: not shown.append(upload))
    assert (shown[0].exists, shown[0].private) == (True, True)
    assert not api.create_repo.called
    assert api.create_commit.called


def test_somebody_s_other_repository_is_left_alone(run: Path, api: MagicMock) -> None:
    there(api, "model.safetensors")
    with pytest.raises(InputError, match="holds no adapter of Guidefold's"):
        push(load_settings(run), NAME, lambda _: True)
    there(api, "guidefold.json")
    with pytest.raises(InputError, match="there already, and public"):
        push(load_settings(run), NAME, lambda _: True, private=True)
    assert untouched(api)


@pytest.mark.parametrize("name", ["dial", "a/b/c", "some one/dial", "someone/--", ""])
def test_what_is_no_name_is_refused_before_anything_else(
    run: Path, api: MagicMock, packs: list[str | None], name: str
) -> None:
    with pytest.raises(InputError):
        push(load_settings(run), name, lambda _: True)
    assert untouched(api)
    assert packs == []


def test_without_a_token_nothing_is_packed(
    run: Path, api: MagicMock, packs: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        push(load_settings(run), NAME, lambda _: True)
    assert packs == []


def test_a_run_without_a_verified_adapter_is_not_pushed(tmp_path: Path, api: MagicMock) -> None:
    run = begun(tmp_path / "run")
    with pytest.raises(RunError, match="no adapter yet"):
        push(load_settings(run), NAME, lambda _: True)
    assert untouched(api)


ANSWERS: list[tuple[Exception, type[GuidefoldError], str]] = [
    (answer(401), InputError, "does not know the token"),
    (answer(403), InputError, "may not write there"),
    (answer(409, "You already created this repo"), InputError, "You already created"),
    (answer(503, "busy"), FailedError, "answers 503: busy"),
    (HfHubHTTPError.__bases__[0]("connection refused"), FailedError, "no connection to http"),
    (OfflineModeIsEnabled("offline"), InputError, "HF_HUB_OFFLINE is set"),
    (
        ValueError('Invalid metadata in README.md.\n- "license" must be one of [mit]'),
        InputError,
        '"license" must be one of',
    ),
]


@pytest.mark.parametrize(("error", "kind", "words"), ANSWERS, ids=[w for _, _, w in ANSWERS])
@pytest.mark.parametrize("call", ["repo_exists", "create_repo", "create_commit"])
def test_every_refusal_comes_out_in_words(
    run: Path, api: MagicMock, call: str, error: Exception, kind: type[GuidefoldError], words: str
) -> None:
    getattr(api, call).side_effect = error
    with pytest.raises(kind, match=words):
        push(load_settings(run), NAME, lambda _: True)


# The command


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: MagicMock
) -> Callable[..., tuple[int, str, str]]:
    """``command("push", RUN, NAME)``: the command line in this process, ``(code, out, err)``."""
    monkeypatch.setattr(cli, "_quiet", lambda: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guidefold", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_command_shows_what_it_uploads(run: Path, command: Any, api: MagicMock) -> None:
    code, out, _ = command("push", run, NAME, "--yes")
    assert code == 0
    assert "7 B  kohya/run.safetensors" in out
    assert "3 files, " in out
    assert f"to {NAME} (public, new)" in out
    assert "No licence." in out
    assert "Uploaded: " in out
    assert api.create_commit.called


@pytest.mark.parametrize(("said", "code", "words"), [("y", 0, "Uploaded"), ("n", 0, "Nothing")])
def test_the_command_asks(
    run: Path,
    command: Any,
    api: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda _: said == "y")
    found = command("push", run, NAME)
    assert found[0] == code
    assert words in found[1]
    assert api.create_commit.called == (said == "y")


def test_where_nobody_can_be_asked_the_command_says_how_to_go_on(
    run: Path, command: Any, api: MagicMock
) -> None:
    code, _, err = command("push", run, NAME)
    assert code == 2
    assert "Pass --yes" in err
    assert untouched(api)
