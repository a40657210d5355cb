"""What every test shares: one thread, no network, zoo pipelines built and saved once."""

import gc
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a Hugging Face library

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from slow import SLOW, SLOW_FOLDERS
from tiny import make_settings
from zoo import CHOSEN, CHOSEN_IN_FEW_STEPS, ZOO, build

from guidefold.listen.findings import Findings
from guidefold.listen.probe import probe
from guidefold.record.rounds import record
from guidefold.run.settings import Settings

torch.set_num_threads(1)  # two threads that compete with another process run many times slower
# A test waits for no disk, a quarter of its time otherwise. Whether files are flushed, and when, is
# watched in run/test_files.py; what a killed process wrote is there without.
os.fsync = lambda _descriptor: None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-zoo", action="store_true", help="walk every pipeline of the zoo")
    parser.addoption("--quick", action="store_true", help="leave out the files of slow.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = collection_path.stem in SLOW or collection_path.name in SLOW_FOLDERS
    return True if config.option.quick and left_out else None


def pytest_collection_finish() -> None:
    """Keep what the libraries' imports made out of every later garbage collection."""
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put slow files first, and leave the wide zoo at the chosen entries, unless all of it or
    tests by name are wanted.
    """
    rank = {name: place for place, name in enumerate(("zoo", *SLOW))}
    names = {item: "zoo" if "zoo" in item.path.parts else item.path.stem for item in items}
    items.sort(key=lambda item: rank.get(names[item], len(rank)))
    by_name = config.option.keyword or any("::" in argument for argument in config.args)
    if config.option.whole_zoo or by_name:
        return
    walked = {f"test_the_whole_road[{name}]" for name in CHOSEN}
    walked |= {f"test_few_steps_go_the_whole_road[{name}]" for name in CHOSEN_IN_FEW_STEPS}
    passed_over = [
        item for item in items if "the_whole_road[" in item.name and item.name not in walked
    ]
    config.hook.pytest_deselected(items=passed_over)
    items[:] = [item for item in items if item not in set(passed_over)]


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
def recorded(
    saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Settings]:
    """As ``settings_for``, of a run whose teacher is probed and recorded already: once for all
    runs that differ in training alone.
    """
    runs: dict[str, Path] = {}

    def make(name: str, folder: Path, **overrides: Any) -> Settings:
        settings = make_settings(name, saved(name), folder, overrides)
        if (Path(settings.run) / "trajectories").exists():
            return settings
        same = {"pipeline": True, "record": True, "seed": True, "prompts": {"held_out_share"}}
        key = settings.model_dump_json(include=same)
        if key not in runs:
            first = make_settings(name, saved(name), tmp_path_factory.mktemp(name), overrides)
            record(first)
            runs[key] = Path(first.run)
        shutil.copytree(runs[key] / "trajectories", Path(settings.run) / "trajectories")
        shutil.copy(runs[key] / "probe.json", settings.run)
        return settings

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


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights, saved as transformers does."""
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights and the bundled teacher's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from guidefold.pipeline.open import bundled_teacher

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(bundled_teacher() / "tokenizer")
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config=small
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=small | {"image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that sets another number of threads does not slow the others down."""
    yield
    torch.set_num_threads(1)
