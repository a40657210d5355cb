"""What every test shares: one thread, no network, zoo pipelines built and saved once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a Hugging Face library

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import make_settings
from zoo import ZOO, build

from guidefold.probe import Findings, probe
from guidefold.settings import Settings

torch.set_num_threads(1)  # two threads that compete with another process run many times slower


@pytest.fixture(scope="session")
def built() -> Callable[[str], DiffusionPipeline]:
    """A zoo pipeline by name, built once: leave its weights and its components as they are."""
    return cache(build)


@pytest.fixture(scope="session")
def saved(
    built: Callable[[str], DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder that a zoo pipeline was saved to, once."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "pipeline"
        built(name).save_pretrained(folder, safe_serialization=True)
        return folder

    return save


@pytest.fixture(scope="session")
def settings_for(saved: Callable[[str], Path]) -> Callable[..., Settings]:
    """``settings_for(name, tmp_path, record={"batch_size": 2}, seed=1)``: of a tiny run."""

    def make(name: str, folder: Path, **overrides: Any) -> Settings:
        return make_settings(name, saved(name), folder, overrides)

    return make


@pytest.fixture(scope="session")
def found(built: Callable[[str], DiffusionPipeline]) -> Callable[[str], Findings]:
    """What the probe finds in a zoo pipeline, probed once."""

    @cache
    def find(name: str) -> Findings:
        call = dict(ZOO[name].call)
        negative_prompt = call.pop("negative_prompt", None)
        return probe(built(name), call, 5.0, negative_prompt)

    return find


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that sets another number of threads does not slow the others down."""
    yield
    torch.set_num_threads(1)
