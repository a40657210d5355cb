"""The tree of exceptions is the one its docstring draws, and each carries its remedy."""

import inspect
import re

import pytest

from guidefold.ground import errors
from guidefold.ground.errors import FailedError, GuidefoldError, InputError

CLASSES = {n: c for n, c in vars(errors).items() if inspect.isclass(c)}


def drawn_tree() -> dict[str, str]:
    """Each drawn exception with the one it hangs from."""
    parents: dict[int, str] = {}
    tree = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1])
            above = [name for d, name in sorted(parents.items()) if d < depth]
            tree[match[2]] = above[-1] if above else "Exception"
            parents = {d: n for d, n in parents.items() if d < depth} | {depth: match[2]}
    return tree


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn_tree() == {name: c.__bases__[0].__name__ for name, c in CLASSES.items()}


@pytest.mark.parametrize("kind", CLASSES.values())
def test_exit_code_tells_wrong_input_from_failed_work(kind: type[GuidefoldError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)
    assert issubclass(kind, InputError | FailedError) or kind is GuidefoldError


def test_message_is_followed_by_the_remedy() -> None:
    assert str(InputError("a.txt:3: wrong", "Mend it.")) == "a.txt:3: wrong\nMend it."
    assert str(InputError("a.txt:3: wrong")) == "a.txt:3: wrong"
