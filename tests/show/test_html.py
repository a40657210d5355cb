"""Documents: every value escaped, one style and one script admitted, and nothing else."""

import base64
import hashlib

import pytest
from jinja2 import UndefinedError

from guidefold.show.html import content_policy, fill, read_parts


def test_the_policy_admits_one_style_and_one_script_by_their_hashes() -> None:
    rules = content_policy("a {}", "b();", "img-src data:", "connect-src 'self'").split("; ")
    assert rules[:3] == ["default-src 'none'", "img-src data:", "connect-src 'self'"]
    assert rules[-2:] == ["base-uri 'none'", "form-action 'none'"]
    for rule, text in zip(rules[3:5], ("a {}", "b();"), strict=True):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rule.split(" ")[1] == f"'sha256-{digest}'"


def test_parts_stand_one_after_the_other() -> None:
    both = read_parts("wipe.js", "page.js")
    assert both == f"{read_parts('wipe.js')}\n{read_parts('page.js')}"


def test_values_are_escaped_and_style_and_script_are_not() -> None:
    values = {"name": "<b>", "pipeline": "&", "steps": 1, "prompt": "</textarea>", "dial": '["]'}
    values |= {
        "start": 0,
        "student_steps": 1,
        "dial_trained": True,
        "warning": "",
        "longest_prompt": 1,
        "largest_seed": 1,
    }
    text = fill("compare.html", "a > b {}", "1 < 2;", "", **values)
    assert "<style>a > b {}</style>" in text
    assert "<script>1 < 2;</script>" in text
    assert "<h1>&lt;b&gt;</h1>" in text
    assert "&lt;/textarea&gt;</textarea>" in text
    assert 'data-dial="[&#34;]"' in text


def test_a_value_that_nobody_gave_is_our_mistake() -> None:
    with pytest.raises(UndefinedError):
        fill("compare.html", "", "", "")
