"""The student at recorded states: what it says, what its errors are measured by."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny import dial_of
from torch import nn
from toys import some_findings
from zoo import WARNINGS

from guidefold.deliver.export import export
from guidefold.ground.errors import RunError, UnfoldableError, VerifyError
from guidefold.listen.findings import Findings
from guidefold.lora.adapter import attach
from guidefold.lora.dial import Dial
from guidefold.lora.loaded import DIFFUSERS_FILE, adapted_layers
from guidefold.pipeline.denoisers import as_one_module
from guidefold.pipeline.open import open_pipeline
from guidefold.record.trajectory_files import (
    KeptState,
    StateRef,
    read_round,
    state_refs,
    write_trajectory,
)
from guidefold.run.files import read_json
from guidefold.run.folder import RunFolder
from guidefold.run.settings import AdapterSettings, Settings
from guidefold.train.batches import collate
from guidefold.train.checkpoints import load_checkpoint
from guidefold.train.distill import distill
from guidefold.train.loss import loss_scale
from guidefold.train.student import Student

verifying = import_module("guidefold.deliver.verify")  # its door has a function of that name

pytestmark = pytest.mark.filterwarnings(*WARNINGS)


@pytest.fixture(scope="module")
def trained(
    settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Settings of a run that is recorded, trained and exported."""
    recorded = {"trajectories": 6, "states_per_trajectory": 4, "steps": (4, 5)}
    settings = settings_for("sd15", tmp_path_factory.mktemp("trained"), record=recorded)
    distill(settings)
    export(settings)
    return settings


@pytest.fixture
def pipeline(trained: Settings) -> DiffusionPipeline:
    return open_pipeline(trained.pipeline.source)


@pytest.fixture
def refs(trained: Settings) -> list[StateRef]:
    folder = Path(trained.run) / "trajectories" / "round-0"
    return state_refs(folder, read_round(folder), "training")


@pytest.fixture
def findings(trained: Settings) -> Findings:
    return Findings.from_json(read_json(Path(trained.run) / "probe.json"))


@pytest.fixture
def student(
    trained: Settings, pipeline: DiffusionPipeline, refs: list[StateRef], findings: Findings
) -> Student:
    """Fresh: it says what the unguided teacher says."""
    return student_on(pipeline.unet, findings, dial_of(trained, findings), trained.adapter, refs)


def student_on(
    denoiser: nn.Module,
    findings: Findings,
    dial: Dial,
    asked: AdapterSettings,
    refs: list[StateRef],
) -> Student:
    lora = partial(attach, denoiser, asked.targets, asked.rank, 0)
    return Student(denoiser, findings, dial, refs, lora)


def load(student: Student, settings: Settings) -> Student:
    load_checkpoint(RunFolder(settings.run).checkpoints()[-1], student.adapter, None)
    return student


def test_a_denoiser_that_empties_its_lists_can_be_asked_twice(
    student: Student, refs: list[StateRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that take a control net's answers off the end of a list."""

    class Greedy(nn.Module):
        def forward(self, sample: torch.Tensor, given: list[torch.Tensor]) -> tuple[torch.Tensor]:
            return (sample + given.pop(),)

    (batch,) = student.calls(refs[:1])
    sample = torch.zeros_like(batch.target)
    batch = replace(batch, arguments=((sample, [torch.ones(1)]), {}))
    monkeypatch.setattr(student, "denoiser", Greedy())
    assert all(torch.equal(student.predict(batch), sample + 1) for _ in range(2))


def residual_guidance(student: Student, refs: list[StateRef], errors: list[float]) -> float:
    """The normalised loss, averaged over states."""
    size = student.measure_guidance(refs, 8)
    dial = student.dial
    scales = [
        loss_scale(size.at(r.timestep), dial.nominal_strength(r.guidance), 0.01, dial.span)
        for r in refs
    ]
    return sum(e / s for e, s in zip(errors, scales, strict=True)) / len(refs)


def test_a_fresh_student_is_the_unguided_teacher(student: Student, refs: list[StateRef]) -> None:
    assert student.errors(refs, 4) == student.errors(refs, 4, adapted=False)


def test_the_loss_of_a_fresh_student_is_one_where_one_size_serves_all(
    student: Student, refs: list[StateRef]
) -> None:
    """Up to seven states make one bin: the mean of what is divided by itself."""
    few = refs[:7]
    found = residual_guidance(student, few, student.errors(few, 4))
    assert found == pytest.approx(1.0, rel=1e-5)


def test_the_loss_of_a_fresh_student_is_one_within_sampling_error(
    student: Student, refs: list[StateRef]
) -> None:
    assert residual_guidance(student, refs, student.errors(refs, 8)) == pytest.approx(1.0, abs=0.3)


def test_the_loss_of_a_student_that_says_the_target_is_zero(
    student: Student, refs: list[StateRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(student, "predict", lambda batch: batch.target)
        errors = student.errors(refs, 8)
    assert residual_guidance(student, refs, errors) == 0.0


def test_errors_do_not_depend_on_the_batch(
    student: Student, trained: Settings, refs: list[StateRef]
) -> None:
    load(student, trained)
    assert student.mixable
    alone = student.errors(refs, 1)
    assert student.errors(refs, 5) == pytest.approx(alone, rel=1e-4)
    assert alone != pytest.approx(student.errors(refs, 1, adapted=False), rel=1e-2)


def test_whether_samples_mix_is_tried_at_the_strength_of_a_guidance_lora_that_stays(
    trained: Settings,
    pipeline: DiffusionPipeline,
    refs: list[StateRef],
    findings: Findings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At zero, as it stands before it is read, every strength would give the same output."""
    tried: list[torch.Tensor] = []

    def try_it(predict: Any, pair: list[StateRef], *_: object) -> bool:
        (batch,) = collate(pair[:1], None, together=False)
        tried.extend(predict(batch, torch.tensor([strength])) for strength in (0.3, 1.3))
        return True

    monkeypatch.setattr(import_module("guidefold.train.student"), "mixing_is_exact", try_it)
    lora = partial(attach, pipeline.unet, "all", 2, 0, steps_rank=1, train_guidance=False)
    student = Student(pipeline.unet, findings, dial_of(trained, findings), refs, lora)
    assert not torch.allclose(*tried, rtol=1e-3, atol=1e-4)
    ups = [tensor for n, tensor in student.adapter.state_dict().items() if ".lora_B." in n]
    assert len(ups) == 2 * len(student.adapter.layers) and not any(up.any() for up in ups)


def test_guidance_recorded_off_cannot_be_measured(student: Student, refs: list[StateRef]) -> None:
    off = [StateRef(r.path, r.row, student.findings.off, r.timestep) for r in refs]
    with pytest.raises(UnfoldableError, match=r"record\.guidance: every state was recorded at 1"):
        student.measure_guidance(off, 4)


def test_strengths_follow_the_dial_or_are_one(student: Student, trained: Settings) -> None:
    g_ref, off = trained.adapter.g_ref, student.findings.off
    assert student.strengths([off, g_ref, 3.0]).tolist() == [0.0, 1.0, 0.5]
    student.dial = replace(student.dial, proportional=False)
    assert student.strengths([off, g_ref, 3.0]).tolist() == [1.0, 1.0, 1.0]


def test_finding_out_leaves_the_student_fresh(student: Student) -> None:
    for name, parameter in student.adapter.named_parameters().items():
        assert bool(parameter.any()) == (".lora_A." in name)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.3])
def test_our_strength_is_the_weight_that_diffusers_gives_the_exported_file(
    student: Student, trained: Settings, refs: list[StateRef], strength: float
) -> None:
    load(student, trained)
    client = open_pipeline(trained.pipeline.source)
    client.load_lora_weights(Path(trained.run) / "adapter", weight_name=DIFFUSERS_FILE)
    client.set_adapters(client.get_active_adapters(), [strength])
    (batch,) = student.calls(refs[:3])
    args, kwargs = batch.arguments
    with torch.no_grad():
        truth = client.unet(*args, **kwargs)[0]
    with student.adapter.student_mode(strength, train=False):
        found = student.predict(batch)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_the_exported_names_are_the_adapter_s(student: Student, trained: Settings) -> None:
    exported = load_file(Path(trained.run) / "adapter" / DIFFUSERS_FILE)
    assert {name.removeprefix("unet.") for name in exported} == student.adapter.state_dict().keys()


def test_a_client_that_loads_fewer_layers_is_found_out_by_name(
    trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        verifying, "adapted_layers", lambda unet: adapted_layers(unet) - {"conv_in"}
    )
    with pytest.raises(VerifyError, match="loads other layers than were trained: conv_in"):
        export(trained)
    assert (Path(trained.run) / "adapter" / DIFFUSERS_FILE).exists()


def test_checkpointing_where_there_is_none_is_refused(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(student.denoiser), "_supports_gradient_checkpointing", False)
    with pytest.raises(UnfoldableError, match="UNet2DConditionModel has no gradient checkpointing"):
        student.enable_checkpointing()


def test_the_base_of_a_student_is_the_pipeline_s_own(
    trained: Settings, pipeline: DiffusionPipeline, refs: list[StateRef], findings: Findings
) -> None:
    before = copy.deepcopy(pipeline.unet.state_dict())
    student = load(
        student_on(pipeline.unet, findings, dial_of(trained, findings), trained.adapter, refs),
        trained,
    )
    assert student.denoiser is pipeline.unet
    student.adapter.detach()
    assert all(torch.equal(t, before[n]) for n, t in pipeline.unet.state_dict().items())


# States of several kinds, and of several denoisers


class Tokens(nn.Module):
    """A denoiser that takes any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 3)

    def forward(self, state: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.proj(state) + timestep.view(-1, 1, 1) / 1000,)


TOKENS_LAYOUT = {"items": [{"items": [{"axis": 0}, {"axis": 0}]}, {"fields": {}}]}


def written(folder: Path, *kinds: dict[str, Any]) -> list[StateRef]:
    """States by the number of their tokens, and by their denoiser where there are several."""
    noise, found = torch.Generator().manual_seed(0), []
    for k, kind in enumerate(kinds):
        shape = (1, kind.get("tokens", 2), 3)
        state, target = (torch.randn(shape, generator=noise) for _ in range(2))
        named = {n: v for n, v in kind.items() if n != "tokens"}
        kept = KeptState(((state, torch.tensor([100.0 * k])), named), target, 100.0 * k, k)
        write_trajectory(folder / f"{k}.safetensors", [kept], None)
        found.append(StateRef(folder / f"{k}.safetensors", 0, 2.0 + k, 100.0 * k))
    return found


def student_of(denoiser: nn.Module, refs: list[StateRef], **findings: Any) -> Student:
    """Awake: its updates are not zero."""
    asked, dial = AdapterSettings(targets="linear", rank=2), Dial(1.0, 5.0, (2.0, 8.0))
    found = some_findings(**{"layout": TOKENS_LAYOUT, **findings})
    student = student_on(denoiser, found, dial, asked, refs)
    for parameter in student.adapter.named_parameters().values():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return student


def test_errors_at_states_of_two_kinds_come_back_in_the_order_asked(tmp_path: Path) -> None:
    refs = written(tmp_path, *({"tokens": 2 + k % 2} for k in range(6)))
    student = student_of(Tokens(), refs)
    assert student.mixable
    assert [batch.places for batch in student.calls(refs)] == [(0, 2, 4), (1, 3, 5)]
    alone = [student.errors([ref], 1)[0] for ref in refs]
    assert len(set(alone)) == len(refs)
    for size in (2, 4, 6):
        assert student.errors(refs, size) == pytest.approx(alone, rel=1e-5)
    assert student.errors(refs[::-1], 6) == pytest.approx(alone[::-1], rel=1e-5)


def test_several_denoisers_are_adapted_each_and_asked_each_for_its_own_states(
    tmp_path: Path,
) -> None:
    parts = {"unet": Tokens(), "unet_2": Tokens()}
    names = [list(parts)[k % 2] for k in (0, 0, 1, 1, 0, 1)]
    refs = written(tmp_path, *({"component": name} for name in names))
    layout = {"items": [TOKENS_LAYOUT["items"][0], {"fields": {"component": None}}]}
    student = student_of(as_one_module(parts), refs, denoisers=tuple(parts), layout=layout)
    assert student.adapter.layers.keys() == {"unet.proj", "unet_2.proj"}
    assert [batch.places for batch in student.calls(refs)] == [(0, 1, 4), (2, 3, 5)]
    alone = [student.errors([ref], 1)[0] for ref in refs]
    assert student.errors(refs, 6) == pytest.approx(alone, rel=1e-5)
    with student.adapter.student_mode(1.0, train=False):
        for ref, name in zip(refs, names, strict=True):
            (args, _), (batch,) = ref.read().arguments, student.calls([ref])
            assert torch.equal(student.predict(batch), parts[name](*args)[0])


def test_a_denoiser_that_no_recorded_state_asks_is_named(tmp_path: Path) -> None:
    parts = {"unet": Tokens(), "unet_2": Tokens()}
    refs = written(tmp_path, *[{"component": "unet"}] * 3)
    with pytest.raises(RunError, match="no recorded state calls unet_2") as caught:
        student_of(as_one_module(parts), refs, denoisers=tuple(parts))
    assert "record.steps" in caught.value.remedy


def test_guidance_is_measured_from_where_it_comes_to_nothing(tmp_path: Path) -> None:
    """States at the origin and with guidance off have none to measure."""
    refs = written(tmp_path, *[{}] * 4)  # at guidance 2, 3, 4 and 5
    student = student_of(Tokens(), refs, off=2.0, origin=3.0)
    errors = student.errors(refs, 4, adapted=False)
    size = student.measure_guidance(refs, 4)
    truth = (errors[2] / 1 + errors[3] / 4) / 2
    assert size.at(300.0) == pytest.approx(truth, rel=1e-5)
