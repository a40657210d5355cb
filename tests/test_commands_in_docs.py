"""Commands in README, docs and guides are such as the program takes; links lead somewhere."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from guidefold.cli.main import app
from guidefold.run.config import load_settings, make_settings, presets

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / ".github").rglob("*.md"),
]
TOLD = [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUP: Any = typer.main.get_command(app)
SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


def blocks(text: str) -> Iterator[str]:
    """The lines of code blocks that are commands, or what commands print."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language in ("", "console", "bash", "shell"):
            yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> Iterator[list[str]]:
    """Every ``guidefold`` command of a page's blocks, in words."""
    for line in blocks(text):
        found = re.match(r"(?:\$ )?(?:\S+/)?(?:accelerate launch .*-m )?guidefold ([^>|]*)", line)
        if found:
            yield shlex.split(found[1], comments=True)


def check(words: list[str]) -> None:
    """Let the program's own parser read a command, and its settings check what is set."""
    command, name, rest = GROUP, "guidefold", words
    while hasattr(command, "commands"):
        if rest and rest[0].startswith("--"):
            break
        assert rest[0] in command.commands, f"no such command: {rest[0]}"
        command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
    if command is GROUP:
        assert rest[0] in ("--version", "--help", "--install-completion")
        return
    context = command.make_context(name, list(rest))
    check_settings(name, context.params)


def check_settings(name: str, given: dict[str, Any]) -> None:
    """Check what a command sets, upon its preset or upon a run's necessary settings."""
    overrides = given.get("overrides") or []
    assert all(SETTING.match(override) for override in overrides), overrides
    source = given.get("config") or given.get("preset") or name
    if source in presets():
        load_settings(source, overrides)
    else:
        values = {"run": "runs/mine", "pipeline": {"source": "FOLDER"}}
        make_settings(values, overrides)


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_in_a_block_is_one_that_the_program_takes(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            check(words)
        except Exception as error:
            pytest.fail(
                f"guidefold {' '.join(words)}\n{type(error).__name__}: {error}", pytrace=False
            )


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_a_sentence_have_verbs_options_and_settings_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for said in re.findall(r"`guidefold ([a-z][^`]*)`", text.replace("\n", " ")):
        words = said.split()
        assert words[0] in GROUP.commands, said
        command = GROUP.commands[words[0]]
        subs = getattr(command, "commands", {})
        command = subs[words[1]] if words[1:] and words[1] in subs else command
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, said


@pytest.mark.parametrize("page", TOLD, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_programs_and_extras_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+): ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line in blocks(text):
        if found := re.match(r"(?:\$ )?make (\w+)", line):
            assert found[1] in targets, line
        if found := re.match(r"(?:\$ )?(?:\S*/)?python (\S+\.py)", line):
            assert (ROOT / found[1]).is_file(), line
    for extras in re.findall(r"(?:guidefold|\.)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), extras


def slug(heading: str) -> str:
    """A heading's anchor, as the site and hosts make it."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower())
    return re.sub(r"\s+", "-", words.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize(
    "wrong",
    [
        "distil sdxl",
        "distill sdxl pipeline.sauce=FOLDER",
        "plan sdxl adapter.rank=none",
        "sample runs/mine --gidance 4",
        "export runs/mine --format flac",
    ],
)
def test_a_command_that_the_program_does_not_take_is_found(wrong: str) -> None:
    """The control."""
    with pytest.raises(Exception):  # noqa: B017 - whatever the parser or the settings raise
        check(wrong.split())
    check(["distill", "sdxl", "pipeline.source=FOLDER", "adapter.rank=8"])
