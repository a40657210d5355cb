"""How much memory was needed: counted by the device, or by the system."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guidefold.pipeline import memory
from guidefold.pipeline.memory import peak_memory

LARGE = 2**28
PROBE = f"""
import json, torch
from guidefold.pipeline.memory import peak_memory
found = [peak_memory(torch.device("cpu"))]
large = torch.ones({LARGE} // 4)
found.append(peak_memory(torch.device("cpu")))
del large
found.append(peak_memory(torch.device("cpu")))
print(json.dumps(found))
"""


def test_on_a_cpu_the_most_resident_memory_is_told_and_stays_when_it_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, during, after = json.loads(done.stdout)
    assert {line["kind"] for line in (before, during, after)} == {"resident"}
    assert during["bytes"] - before["bytes"] == pytest.approx(LARGE, rel=0.1)
    assert after["bytes"] == pytest.approx(during["bytes"], rel=0.01)  # the system counts roughly


@pytest.mark.parametrize(("platform_unit", "expected"), [(1024, 7 * 1024), (1, 7)])
def test_a_system_without_proc_is_asked_in_its_own_unit(
    monkeypatch: pytest.MonkeyPatch, platform_unit: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "STATUS", Path("/no/such/file"))
    monkeypatch.setattr(memory, "USAGE_UNIT", platform_unit)
    usage = SimpleNamespace(ru_maxrss=7)
    monkeypatch.setattr("resource.getrusage", lambda _: usage)
    assert peak_memory(torch.device("cpu")) == {"kind": "resident", "bytes": expected}


def test_an_accelerator_tells_the_most_that_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {torch.device("cuda", 1): 5 * 2**30}
    accelerator = SimpleNamespace(max_memory_allocated=counts.__getitem__)
    monkeypatch.setattr(memory.torch, "get_device_module", lambda _: accelerator)
    assert peak_memory(torch.device("cuda", 1)) == {"kind": "allocated", "bytes": 5 * 2**30}


def test_an_accelerator_that_does_not_count_leaves_it_to_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory.torch, "get_device_module", lambda _: SimpleNamespace())
    assert peak_memory(torch.device("mps"))["kind"] == "resident"
