"""What is packed, and with what it may be installed."""

import importlib.util
import re
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import guidefold
from guidefold.run.config import make_settings, presets

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_USERS = [name for name in PROJECT["optional-dependencies"] if name not in ("dev", "docs")]


@pytest.fixture
def package() -> ModuleType:
    """The program that tries a built wheel, ``.ci/package.py``."""
    spec = importlib.util.spec_from_file_location("package", ROOT / ".ci" / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {
        pin.split("==")[0].lower(): pin.split("==")[1]
        for pin in lines
        if pin and not pin.startswith("#")
    }


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    stated = [*PROJECT["dependencies"]]
    stated += [
        requirement
        for extra in OF_USERS
        if extra not in ("torchao", "quanto")  # which the tests' environment does not have
        for requirement in PROJECT["optional-dependencies"][extra]
    ]
    bounds = dict(requirement.split(">=") for requirement in stated)
    lowest = pins("constraints-lowest.txt")
    assert {name: lowest[name] for name in bounds} == bounds
    assert set(lowest) - set(bounds) == {"pyparsing"}


def test_the_tested_versions_are_no_lower_than_the_lowest() -> None:
    def number(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    tested = pins("constraints.txt")
    for name, version in pins("constraints-lowest.txt").items():
        assert number(tested[name]) >= number(version), name


def test_the_version_is_stated_once() -> None:
    assert "version" in PROJECT["dynamic"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.M)[1] == guidefold.__version__


def test_what_the_index_shows_needs_no_file_beside_it() -> None:
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    assert all(link.startswith("https://") for pair in links for link in pair if link)
    assert {
        extra for line in re.findall(r"^\| (`.*?) \|", text, re.M) for extra in names(line)
    } == {*OF_USERS}


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_a_wheel_that_lacks_a_file_is_named(package: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "guidefold-0.0.0-py3-none-any.whl"
    source = ROOT / "src"
    kept = [p for p in (source / "guidefold").rglob("*") if p.is_file() and p.suffix != ".pyc"]

    def pack(files: list[Path]) -> None:
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in files:
                archive.writestr(path.relative_to(source).as_posix(), "")

    pack(kept)
    package.check_files(wheel)
    pack([path for path in kept if path.name != "demo.toml"])
    with pytest.raises(SystemExit, match=r"missing \['guidefold/run/presets/demo.toml'\]"):
        package.check_files(wheel)


def test_the_short_demo_is_one_that_the_settings_know(package: ModuleType) -> None:
    assert "demo" in presets()
    make_settings({"run": "r", "pipeline": {"source": "bundled"}}, package.SHORT)
