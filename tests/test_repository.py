"""What stands around the code, for hosts, contributors and reporters, names things that exist."""

import re
from pathlib import Path
from typing import Any

import yaml

import guidefold

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def recipe(target: str) -> list[str]:
    found = re.search(rf"^{target}:[^\n]*\n((?:\t.*\n)+)", makefile(), re.M)
    assert found is not None, target
    return [line.strip() for line in found[1].splitlines()]


def test_workflows_run_the_targets_that_everybody_runs() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "check.yml")["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {command.split()[1] for command in runs if command.startswith("make ")}
    assert targets >= {"check", "quick", "test", "package"}
    for target in targets:
        assert recipe(target)
    assert set(jobs["quick"]["strategy"]["matrix"]["os"]) == {
        f"{system}-latest" for system in ("ubuntu", "windows", "macos")
    }


def test_workflows_may_only_read() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert read(path)["permissions"] == {"contents": "read"}


def test_every_form_asks_for_the_doctor() -> None:
    forms = [read(path) for path in FORMS if path.name != "config.yml"]
    assert len(forms) >= 2
    for form in forms:
        asked = {field["id"]: field for field in form["body"]}
        assert asked["doctor"]["attributes"]["label"] == "guidefold doctor"
        assert asked["doctor"]["validations"]["required"]


def test_hooks_run_what_make_check_runs() -> None:
    (source,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in source["hooks"]]
    checks = [line.removeprefix("$(BIN)/").removesuffix(" .") for line in recipe("check")]
    assert hooks == checks


def test_every_promise_of_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^(?:@every_file\n)?def {name}\(", source, re.M), name


def test_the_citation_is_of_this_version() -> None:
    assert str(read(ROOT / "CITATION.cff")["version"]) == guidefold.__version__


def test_entries_of_the_log_are_dated_newest_first() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (\d{4}-\d{2}-\d{2})$", text, re.M)
    assert dates
    assert dates == sorted(dates, reverse=True)
