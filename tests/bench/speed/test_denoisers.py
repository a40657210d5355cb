"""What speed is measured on: real tiny pipelines and denoisers, as their users run them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.small import small_architecture
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from torch import nn
from zoo import ZOO, build

from guidefold.bench.speed import denoisers as speed_models
from guidefold.bench.speed.denoisers import (
    DenoiserAlone,
    WholePipeline,
    clocks_inside,
    find_device,
    processor_time,
)
from guidefold.bench.speed.methods import (
    CFG,
    FUSED,
    GUIDANCE,
    LOADED,
    METHODS,
    SELECTIVE,
    UNGUIDED,
    Method,
    Options,
    TimedModel,
)
from guidefold.bench.speed.students import SEED, settle, share
from guidefold.deliver.export import export
from guidefold.ground.errors import (
    CallError,
    ConfigError,
    MismatchError,
    RunError,
    UnfoldableError,
)
from guidefold.listen.call import call_inputs
from guidefold.listen.capture import run
from guidefold.listen.probe_checks import PROMPT
from guidefold.lora.loaded import adapted_layers
from guidefold.run.settings import Settings
from guidefold.train.distill import distill

STEPS = 4
PASSES = {CFG: 2 * STEPS, UNGUIDED: STEPS, LOADED: STEPS, FUSED: STEPS, SELECTIVE: 3 * STEPS // 2}
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def options(**changes: Any) -> Options:
    values = {"batches": (1, 2), "steps": STEPS, "size": 16, "device": "cpu", "rank": 2}
    return Options(**values | changes)


@pytest.fixture(scope="module")
def whole() -> WholePipeline:
    return WholePipeline(build("sd15"), options())


@pytest.fixture(scope="module")
def alone() -> DenoiserAlone:
    return DenoiserAlone(small_architecture(32, 64), options(size=128))


def go(model: TimedModel, method: Method, batch: int = 1) -> Any:
    return model.run(method, model.denoisers[method.weights], batch)


def pixels(answer: Any) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in answer[0]])


def plain(pipeline: DiffusionPipeline, guidance: float, count: int) -> np.ndarray:
    """An ordinary call: nobody listens, no denoiser is swapped."""
    inputs = call_inputs(pipeline, [PROMPT] * count, {"height": 16, "width": 16})
    inputs |= {"guidance_scale": guidance, "num_inference_steps": STEPS}
    return pixels(run(pipeline, inputs, range(count), "pil"))


@every_method
@pytest.mark.parametrize("batch", [1, 2])
def test_passes_are_counted_where_they_happen(
    whole: WholePipeline, alone: DenoiserAlone, method: Method, batch: int
) -> None:
    assert go(whole, method, batch).rows == batch * PASSES[method]
    assert go(alone, method, batch).rows == batch * PASSES[method]


@pytest.mark.parametrize("batch", [1, 2])
def test_timed_pictures_are_those_of_the_plain_pipeline(whole: WholePipeline, batch: int) -> None:
    for method, guidance in ((CFG, GUIDANCE), (UNGUIDED, 1.0)):
        drawn = pixels(go(whole, method, batch).output)
        np.testing.assert_array_equal(drawn, plain(whole.pipeline, guidance, batch))


def test_the_student_draws_the_same_loaded_or_fused(whole: WholePipeline) -> None:
    loaded, fused = (pixels(go(whole, method).output).astype(int) for method in (LOADED, FUSED))
    assert np.abs(loaded - fused).max() <= 1


def test_the_random_adapter_changes_what_the_denoiser_says(alone: DenoiserAlone) -> None:
    """Else nothing would tell a student from the bound."""
    arguments = alone._arguments(1)
    said = {name: m(**arguments).sample.detach() for name, m in alone.denoisers.items()}
    torch.testing.assert_close(said["loaded"], said["fused"], rtol=1e-4, atol=1e-5)
    assert not torch.equal(said["teacher"], said["loaded"])


def test_the_loaded_student_stands_on_the_teachers_storage(alone: DenoiserAlone) -> None:
    places = {p.data_ptr() for p in alone.denoisers["teacher"].parameters()}
    of_loaded = alone.denoisers["loaded"].named_parameters()
    assert {p.data_ptr() for name, p in of_loaded if ".lora_" not in name} == places
    assert not places & {p.data_ptr() for p in alone.denoisers["fused"].parameters()}


def test_the_fused_student_has_the_teachers_layers(whole: WholePipeline) -> None:
    kinds = {
        name: [(n, type(m)) for n, m in module.named_modules()]
        for name, module in whole.denoisers.items()
    }
    assert kinds["fused"] == kinds["teacher"]
    assert len(adapted_layers(whole.denoisers["loaded"])) > 10


def test_two_modules_on_one_storage_share_tied_weights_too() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    second = share(module)
    assert second[1].weight is second[0].weight
    assert second[0].weight.data_ptr() == module[0].weight.data_ptr()
    assert module[0].weight.requires_grad
    assert not second[0].weight.requires_grad


def test_weights_that_lie_in_a_file_are_measured_where_fused_weights_lie(saved: Any) -> None:
    """A kernel is slower on a weight at an odd address: the bound would look too slow."""
    model = WholePipeline.open(str(saved("sd15")), options())
    for name in ("teacher", "fused"):  # a loaded adapter's own weights lie where clients put them
        assert all(p.data_ptr() % 64 == 0 for p in model.denoisers[name].parameters())


def test_settling_keeps_values_and_ties() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    before = [p.clone() for p in module.parameters()]
    places = [p.data_ptr() for p in module.parameters()]
    settle(module)
    assert module[1].weight is module[0].weight
    assert all(map(torch.equal, before, module.parameters()))
    assert not {p.data_ptr() for p in module.parameters()} & set(places)


def test_the_users_pipeline_is_left_as_it_was() -> None:
    pipeline = build("sd15")
    denoiser = pipeline.unet.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    modules, config = list(denoiser.named_modules()), dict(pipeline.config)
    model = WholePipeline(pipeline, options())
    for method in METHODS:
        go(model, method)
    assert pipeline.unet is denoiser
    assert dict(pipeline.config) == config
    assert list(denoiser.named_modules()) == modules
    assert "forward" not in vars(denoiser)
    assert all(parameter.requires_grad for parameter in denoiser.parameters())
    assert before.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(before[name], t) for name, t in denoiser.state_dict().items())


def test_the_pipeline_has_its_own_denoiser_again_after_a_failure(whole: WholePipeline) -> None:
    class Broken(nn.Module):
        config = whole.teacher.config

        def forward(self, *_: Any, **__: Any) -> None:
            raise ValueError("broken")

    with pytest.raises(CallError):
        whole.run(UNGUIDED, Broken(), 1)
    assert whole.pipeline.unet is whole.teacher


def test_all_clocks_run_and_one_within_the_other(
    whole: WholePipeline, alone: DenoiserAlone
) -> None:
    spent = go(whole, UNGUIDED)
    assert spent.seconds.keys() == set(whole.clocks) == {"denoiser", "processor", "end to end"}
    assert spent.seconds["processor"] > 0
    assert 0 < spent.seconds["denoiser"] < spent.seconds["end to end"]
    assert go(alone, UNGUIDED).seconds.keys() == set(alone.clocks) == {"denoiser", "processor"}
    assert clocks_inside("cuda") == ("denoiser",)


def test_time_inside_the_denoiser_is_all_that_its_clock_counts(
    alone: DenoiserAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake clock that goes on by a second whenever it is read."""
    seconds = iter(range(1000))
    monkeypatch.setattr(alone, "_now", lambda: float(next(seconds)))
    assert go(alone, CFG).seconds["denoiser"] == STEPS


def test_processor_time_is_that_of_the_calls_and_hooks_go_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fake clock: each reading is the square of its number."""
    readings = (float(k * k) for k in range(1, 9))
    monkeypatch.setattr(speed_models.time, "process_time", lambda: next(readings))
    module = nn.Linear(1, 1)
    with processor_time(module) as spent:
        module(torch.zeros(1, 1))
        module(torch.zeros(1, 1))
    assert sum(spent) == (4 - 1) + (16 - 9)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


class FixedPixArt(PixArtAlphaPipeline):
    """Knows no callback; takes the zoo's arguments without being told."""

    @functools.wraps(PixArtAlphaPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{**ZOO["pixart"].call, **kwargs})


def test_what_cannot_end_guidance_halfway_is_measured_without_it() -> None:
    """It has no loader of its own either: the student is there all the same."""
    model = WholePipeline(FixedPixArt(**build("pixart").components), options())
    assert SELECTIVE not in model.methods
    assert "Selective Guidance, 1/2: not measured" in model.notes[0]
    assert model.findings.loader == "peft"
    assert go(model, CFG).rows == 2 * STEPS
    assert go(model, LOADED).rows == STEPS


def test_an_adapter_of_a_run_takes_the_random_ones_place(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for("sd15", tmp_path)
    distill(settings)
    export(settings)
    run_folder = Path(settings.run)
    for folder in (run_folder, run_folder / "adapter"):
        model = WholePipeline.open(settings.pipeline.source, options(adapter=folder, rank=7))
        assert model.facts["adapter"]["from"] == str(folder)
        assert go(model, LOADED).rows == STEPS
    with pytest.raises(MismatchError, match="another base"):
        WholePipeline(build("sd_v"), options(adapter=run_folder))


def test_a_folder_without_an_adapter_is_refused_by_name(built: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--adapter .*: no adapter there"):
        WholePipeline(built("sd15"), options(adapter=tmp_path))


def test_an_architecture_takes_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter fits"):
        DenoiserAlone(small_architecture(32, 64), options(adapter=tmp_path))


def test_a_pipeline_without_a_second_pass_has_nothing_to_compare() -> None:
    with pytest.raises(UnfoldableError, match="no second pass"):
        WholePipeline(build("lcm"), options())


def test_a_device_that_is_not_there_is_named_with_its_option() -> None:
    assert find_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="--device nowhere"):
        find_device("nowhere")


def test_the_random_adapter_is_the_same_every_time(alone: DenoiserAlone) -> None:
    again = DenoiserAlone(small_architecture(32, 64), options(size=128))
    mine, other = (
        {n: p for n, p in s.denoisers["loaded"].named_parameters() if ".lora_" in n}
        for s in (alone, again)
    )
    assert SEED == 0
    assert all(torch.equal(mine[name], other[name]) for name in mine)
