"""A licence is read from the base's own card, or named; never guessed, never exchanged."""

from pathlib import Path

import pytest

from guidefold.ground.errors import InputError
from guidefold.show.hub import licences
from guidefold.show.hub.licences import base_licence, licence_for


def base(folder: Path, front: str) -> str:
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# A base\n", encoding="utf-8")
    return str(folder)


def test_the_base_s_own_licence_goes_on(tmp_path: Path) -> None:
    source = base(tmp_path, "license: other\nlicense_name: own\nlicense_link: LICENSE\ntags: [a]")
    wanted = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert licence_for(source, None) == wanted
    assert licence_for(source, "other") == wanted
    assert base_licence("bundled") == {"license": "apache-2.0"}


def test_a_checkpoint_s_card_lies_beside_it(tmp_path: Path) -> None:
    base(tmp_path, "license: mit")
    (tmp_path / "model.safetensors").touch()
    assert base_licence(str(tmp_path / "model.safetensors")) == {"license": "mit"}


def test_what_is_not_known_is_left_out_or_named(tmp_path: Path) -> None:
    assert licence_for(str(tmp_path), None) == {}
    assert licence_for("owner/never-downloaded", None) == {}
    assert licence_for(str(tmp_path), "openrail") == {"license": "openrail"}


@pytest.mark.parametrize("front", ["license: [", "tags: [a]", "- a list"])
def test_a_card_that_names_none_is_no_licence(tmp_path: Path, front: str) -> None:
    assert base_licence(base(tmp_path, front)) == {}


def test_a_downloaded_base_is_asked_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Path(base(tmp_path, "license: mit")) / "README.md"
    monkeypatch.setattr(licences, "try_to_load_from_cache", lambda *_: str(card))
    assert base_licence("owner/base") == {"license": "mit"}


def test_another_licence_than_the_base_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="own card says mit"):
        licence_for(base(tmp_path, "license: mit"), "apache-2.0")
    with pytest.raises(InputError, match="no identifier"):
        licence_for(str(tmp_path), "Do what you like")
