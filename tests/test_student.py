"""The student at recorded states: what it says, what its errors are measured by."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from zoo import WARNINGS

from guidefold import export as exporting
from guidefold.adapter import DIFFUSERS_FILE, adapted_layers
from guidefold.checkpoints import find_checkpoints, load_checkpoint
from guidefold.distill import distill
from guidefold.errors import UnfoldableError, VerifyError
from guidefold.export import export
from guidefold.objective import loss_scale, strength_of
from guidefold.pipelines import open_pipeline
from guidefold.findings import Findings
from guidefold.runs import read_json
from guidefold.settings import AdapterSettings, Settings
from guidefold.shards import StateRef, read_round, state_refs
from guidefold.student import Student

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
    return Student(pipeline.unet, findings, trained.adapter, 0, refs)


def load(student: Student, settings: Settings) -> Student:
    load_checkpoint(find_checkpoints(Path(settings.run))[-1], student.adapter, None)
    return student


def residual_guidance(student: Student, refs: list[StateRef], errors: list[float]) -> float:
    """The normalised loss, averaged over states."""
    size = student.measure_guidance(refs, 8)
    off, g_ref = student.findings.off, student.asked.g_ref
    scales = [
        loss_scale(size.at(r.timestep), strength_of(r.guidance, off, g_ref), 0.01, g_ref - off)
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
        patch.setattr(student, "predict", lambda batch, _model: batch.target)
        errors = student.errors(refs, 8)
    assert residual_guidance(student, refs, errors) == 0.0


def test_errors_do_not_depend_on_the_batch(
    student: Student, trained: Settings, refs: list[StateRef]
) -> None:
    load(student, trained)
    assert student.together
    alone = student.errors(refs, 1)
    assert student.errors(refs, 5) == pytest.approx(alone, rel=1e-4)
    assert alone != pytest.approx(student.errors(refs, 1, adapted=False), rel=1e-2)


def test_guidance_recorded_off_cannot_be_measured(student: Student, refs: list[StateRef]) -> None:
    off = [StateRef(r.path, r.row, student.findings.off, r.timestep) for r in refs]
    with pytest.raises(UnfoldableError, match=r"record\.guidance: every state was recorded at 1"):
        student.measure_guidance(off, 4)


def test_strengths_follow_the_dial_or_are_one(student: Student, trained: Settings) -> None:
    g_ref, off = trained.adapter.g_ref, student.findings.off
    assert student.strengths([off, g_ref, 3.0]).tolist() == [0.0, 1.0, 0.5]
    student.asked = AdapterSettings(g_ref=g_ref, dial=False)
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
        exporting, "adapted_layers", lambda unet: adapted_layers(unet) - {"conv_in"}
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
    student = load(Student(pipeline.unet, findings, trained.adapter, 0, refs), trained)
    assert student.model is student.denoiser is pipeline.unet
    student.adapter.detach()
    assert all(torch.equal(t, before[n]) for n, t in pipeline.unet.state_dict().items())
