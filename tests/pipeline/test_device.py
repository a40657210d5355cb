"""One function decides where a pipeline runs, and takes only what can be used."""

import ast
from pathlib import Path

import pytest
import torch

import guidefold
from guidefold.ground import console
from guidefold.ground.errors import ConfigError
from guidefold.pipeline import device as module
from guidefold.pipeline.device import resolve_device

ROOT = Path(guidefold.__file__).parent


def build_for(
    monkeypatch: pytest.MonkeyPatch, kind: str | None, *, usable: bool, count: int = 1
) -> None:
    """A build of torch for an accelerator, as torch itself answers with and without a driver."""
    found = None if kind is None else torch.device(kind)

    def current(check_available: bool = False) -> torch.device | None:
        return found if usable or not check_available else None

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: usable)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if usable else 0)
    module._say_once.cache_clear()


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_build_without_a_driver_falls_back_to_the_cpu_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    build_for(monkeypatch, kind, usable=False)
    with console.capture() as caught:
        assert [resolve_device("auto") for _ in range(3)] == ["cpu"] * 3
    assert caught.get().count("\n") == 1
    assert f"This torch is built for {kind}" in caught.get()
    with pytest.raises(ConfigError, match=f"'{kind}' cannot be used here"):
        resolve_device(kind)


def test_an_accelerator_that_can_be_used_is_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_for(monkeypatch, "cuda", usable=True, count=2)
    with console.capture() as caught:
        assert resolve_device("auto") == "cuda"
    assert not caught.get()


def test_without_an_accelerator_it_is_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_for(monkeypatch, None, usable=False)
    with console.capture() as caught:
        assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    assert not caught.get()


@pytest.mark.parametrize(
    "device", ["foo", "", "cuda:99", "cuda:-1", "cuda:x", "cpu:3", "meta", "mps", "xpu", "CPU "]
)
@pytest.mark.parametrize("usable", [True, False])
def test_a_device_that_is_not_here_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, device: str, usable: bool
) -> None:
    build_for(monkeypatch, "cuda", usable=usable, count=2)
    with pytest.raises(ConfigError, match=r"^pipeline\.device: '") as caught:
        resolve_device(device)
    assert f"'{device}' cannot be used here" in caught.value.message
    others = "auto, cuda, cuda:0 to cuda:1 or cpu" if usable else "auto or cpu"
    assert caught.value.remedy == f"Use pipeline.device={others}."
    assert len(caught.value.message) < 120


def test_no_other_module_looks_for_an_accelerator() -> None:
    asked = {"current_accelerator", "is_available"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in asked
        and ast.unparse(node.value) == "torch.accelerator"
    }
    found.remove("listen/listener.py")  # which takes the pipeline's device, and chooses none
    assert found == {"pipeline/device.py"}


def test_every_device_is_listed_with_the_reason_why_it_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_for(monkeypatch, "xpu", usable=True, count=2)  # where there are none
    first, second, cpu = module.list_devices()
    assert (first.name, second.name, cpu.name) == ("xpu:0", "xpu:1", "cpu")
    assert first.reason
    assert first.total_bytes is None
    assert cpu.reason == ""
    assert 0 < (cpu.free_bytes or 0) <= (cpu.total_bytes or 0)
    build_for(monkeypatch, None, usable=False)
    assert [device.name for device in module.list_devices()] == ["cpu"]
