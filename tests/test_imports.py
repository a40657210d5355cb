"""What is imported when: an import costs seconds, and what an extra brings may be missing.

Read from the syntax trees: what stands at the head of a module is imported with it, and with every
module that imports it there.
"""

import ast
import io
from collections.abc import Iterator
from functools import cache, partial

import pytest
from rich.console import Console
from test_architecture import FILES, TREES

from guidefold.cli import options
from guidefold.cli.bench import bench
from guidefold.cli.main import app

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "matplotlib", "bitsandbytes"}
OF_EXTRAS = {"starlette", "uvicorn", "pyarrow", "tensorboard", "bitsandbytes", "torchao", "optimum"}
MODULES = {
    "guidefold." + name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
    for name in FILES
} | {"guidefold": "__init__.py"}


def head(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that are carried out with a module: in no function, and not for type checkers."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            checked = "TYPE_CHECKING" in ast.unparse(node.test)
            yield from head(node.orelse if checked else [*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from head(node.body)


def named(nodes: Iterator[ast.Import | ast.ImportFrom]) -> set[str]:
    """The modules that imports name, with each that is a module within one."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {str(node.module)} | (within & MODULES.keys())
    return found


@cache
def direct(module: str) -> frozenset[str]:
    return frozenset(named(head(TREES[MODULES[module]].body)))


def loaded(*modules: str) -> set[str]:
    """Everything that is imported with modules: packages of others by their first name."""
    seen, others, left = set(), set(), list(modules)
    while left:
        module = left.pop()
        if not module.startswith("guidefold"):
            others.add(module.split(".")[0])
        elif module not in seen:
            seen.add(module)
            parents = module.split(".")[:-1]
            left += [".".join(parents[: n + 1]) for n in range(len(parents))]
            left += direct(module)
    return seen | others


def functions_of_commands() -> Iterator[tuple[str, ast.FunctionDef]]:
    for command in (*app.registered_commands, *bench.registered_commands):
        run = command.callback
        tree = TREES[MODULES[run.__module__]]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == run.__name__:
                yield run.__name__, node


def by_command() -> dict[str, set[str]]:
    """What each command's function imports when it runs, and what comes with it."""
    return {
        name: loaded(
            *named(n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom))
        )
        for name, node in functions_of_commands()
    }


def test_the_command_line_waits_with_what_takes_long() -> None:
    assert not loaded("guidefold.cli.main") & (HEAVY | {"huggingface_hub", "packaging", "numpy"})


def test_nothing_of_an_extra_comes_unasked() -> None:
    assert not loaded("guidefold.api") & OF_EXTRAS
    needing = {name for name, found in by_command().items() if found & OF_EXTRAS}
    assert needing == {"compare"}


def outside_of_loading(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports within a function that stand in no ``with loading()``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.With) and "loading()" in ast.unparse(child.items[0])):
            yield from outside_of_loading(child)


def test_commands_say_that_they_load_what_takes_long() -> None:
    silent = {
        name
        for name, node in functions_of_commands()
        if loaded(*named(outside_of_loading(node))) & HEAVY
    }
    assert not silent


def test_the_word_stands_on_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {}
    for terminal in (True, False):
        stream = io.StringIO()
        made = partial(Console, file=stream, force_terminal=terminal)
        monkeypatch.setattr(options, "Console", lambda made=made, **how: made(quiet=how["quiet"]))
        with options.loading():
            pass
        printed[terminal] = stream.getvalue()
    assert "Loading torch and diffusers" in printed[True]
    assert not printed[False].strip()


def test_what_is_imported_is_found() -> None:
    """The control."""
    assert "starlette" in loaded("guidefold.show.server")
    assert {"peft", "torch", "guidefold.lora.adapter"} <= loaded("guidefold.api")
    tree = ast.parse(
        "if TYPE_CHECKING:\n import a\nelse:\n import b\ndef f():\n import c\nimport d"
    )
    assert named(head(tree.body)) == {"b", "d"}
