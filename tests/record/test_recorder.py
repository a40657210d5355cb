"""Recording: what is stored is what the pipeline does, and a stopped recording goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AmusedScheduler, DiffusionPipeline
from listening import Heard, run_by_hand
from safetensors.torch import load_file
from tiny import PROMPTS, dial_of
from zoo import ZOO, build

from guidefold.ground.errors import CaptureError, CorruptFileError, MismatchError, UnfoldableError
from guidefold.ground.progress import Stop, Stopped
from guidefold.ground.randomness import generator
from guidefold.listen.call import run_inputs
from guidefold.listen.findings import Findings
from guidefold.listen.output_map import OutputMap, output_tensor
from guidefold.listen.probe import probe
from guidefold.lora.adapter import Adapter, attach
from guidefold.pipeline.offloading import OFFLOADERS
from guidefold.pipeline.prompts import Prompt, load_prompts, split_prompts
from guidefold.record.plans import Plan, plan_round
from guidefold.record.recorder import Recorder, add_noise, record_round
from guidefold.record.rounds import recorder_for
from guidefold.record.trajectory_files import KeptState
from guidefold.run.files import read_lines
from guidefold.run.folder import LINES
from guidefold.run.settings import Settings

FAMILIES = (
    "sd15",
    "sdxl",
    "sd3",
    "pixart",
    "qwen_image",
    "chroma",
    "wan",
    "animatediff",
    "lumina2",
    "ltx",
)
STEPS = 3
every_family = pytest.mark.parametrize("name", FAMILIES)
close = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def ready(built: Any, found: Any, settings_for: Any, tmp_path: Path) -> Callable[..., Recorder]:
    """``ready(name, **record)``: a recorder of a zoo pipeline that keeps every state."""

    def make(name: str, **record: Any) -> Recorder:
        record = {"states_per_trajectory": STEPS} | record
        settings = settings_for(name, tmp_path, record=record)
        dial = dial_of(settings, found(name))
        recorder = recorder_for(built(name), found(name), dial, settings)
        recorder.settings = settings  # by which tests plan
        return recorder

    return make


def plans_of(settings: Settings) -> list[list[Plan]]:
    prompts, held_out = split_prompts(load_prompts(settings.prompts.path), 0.3)
    return plan_round(settings, prompts, held_out, 0)


def call_of(name: str, plan: Plan, guidance: float) -> dict[str, Any]:
    """The call as a user would write it."""
    entry = ZOO[name]
    own = {"prompt": [plan.prompt.text], "num_inference_steps": plan.steps}
    return {**entry.call, **own, entry.guidance_argument: guidance}


def say(name: str, recorder: Recorder, state: KeptState) -> torch.Tensor:
    """The denoiser's answer to recorded arguments, through the map that the zoo names."""
    args, kwargs = state.arguments
    with torch.no_grad():
        raw = output_tensor(getattr(recorder.pipeline, ZOO[name].denoisers[0])(*args, **kwargs))
    channels = state.target.shape[1]
    maps = {"whole": raw, "whole, negated": -raw, "first along dimension 1": raw[:, :channels]}
    return maps[ZOO[name].output_map]


def check_states(
    name: str, recorder: Recorder, states: list[KeptState], targets: Heard, unguided: Heard
) -> None:
    """Targets and arguments against two runs by hand."""
    assert [state.index for state in states] == list(range(STEPS))
    for state in states:
        k = state.index
        assert state.timestep == targets.timesteps[k]
        torch.testing.assert_close(state.target, targets.model_outputs[k], **close)
        torch.testing.assert_close(say(name, recorder, state), unguided.model_outputs[k], **close)
        assert not torch.allclose(state.target, unguided.model_outputs[k], atol=1e-3)


# The three state sources against runs by hand


@every_family
def test_teacher_states_hold_the_guided_output_and_the_unguided_arguments(
    ready: Any, name: str
) -> None:
    recorder = ready(name)
    plan = plans_of(recorder.settings)[0][0]
    ((_, states),) = recorder.record("teacher", [plan])
    teacher = run_by_hand(recorder.pipeline, call_of(name, plan, plan.guidance), plan.seed)
    off = call_of(name, plan, 1.0)
    unguided = run_by_hand(recorder.pipeline, off, plan.seed, teacher.states)
    check_states(name, recorder, states, teacher, unguided)
    for state in states:
        assert torch.equal(state.target, teacher.model_outputs[state.index])


def closed_form(name: str, clean: torch.Tensor, timestep: float, noise: torch.Tensor) -> Any:
    """Forward noise from the equations of each family, a function of the timestep alone."""
    if ZOO[name].prediction == "flow":
        sigma = timestep / 1000
        return (1 - sigma) * clean + sigma * noise
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    if name == "sdxl":  # Euler keeps the signal and adds noise; its timesteps lie between
        sigmas = ((1 - alphas) / alphas).sqrt()
        low = int(timestep)
        sigma = sigmas[low].lerp(sigmas[min(low + 1, 999)], timestep - low)
        return (clean + sigma * noise).float()
    alpha = alphas[int(timestep)]
    return (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).float()


@every_family
def test_noise_states_are_the_closed_form_on_the_teacher_s_own_pictures(
    ready: Any, name: str
) -> None:
    recorder = ready(name)
    plan = plans_of(recorder.settings)[0][0]
    ((_, states),) = recorder.record("noise", [plan])
    on, off = call_of(name, plan, plan.guidance), call_of(name, plan, 1.0)
    free = run_by_hand(recorder.pipeline, on, plan.seed)
    expected = free.states[:1]
    for index in range(1, STEPS):
        noise = torch.randn(free.last.shape, generator=generator(plan.seed, "noise", index))
        expected.append(closed_form(name, free.last, free.timesteps[index], noise))
    teacher = run_by_hand(recorder.pipeline, on, plan.seed, expected)
    unguided = run_by_hand(recorder.pipeline, off, plan.seed, expected)
    check_states(name, recorder, states, teacher, unguided)
    assert not torch.allclose(free.model_outputs[1], teacher.model_outputs[1], atol=1e-3)


@contextmanager
def attached(name: str, recorder: Recorder, plan: Plan) -> Iterator[Adapter]:
    """An adapter with something to say, taken off again."""
    denoiser = getattr(recorder.pipeline, ZOO[name].denoisers[0])
    call = call_of(name, plan, 1.0) | {"output_type": "latent"}
    adapter = attach(denoiser, "all", 2, 0, lambda: recorder.pipeline(**call))
    with torch.no_grad():
        for key, parameter in adapter.named_parameters().items():
            if ".lora_B." in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    try:
        yield adapter
    finally:
        adapter.detach()


@every_family
def test_student_states_are_those_of_the_stock_pipeline_with_the_adapter_on(
    ready: Any, name: str
) -> None:
    recorder = ready(name)
    plan = plans_of(recorder.settings)[0][0]
    strength = (plan.guidance - 1) / (5 - 1)  # the dial, g_ref 5
    off = call_of(name, plan, 1.0)
    with attached(name, recorder, plan) as adapter:
        recorder.adapter = adapter
        ((_, states),) = recorder.record("student", [plan])
        with torch.no_grad():
            for key, parameter in adapter.named_parameters().items():
                parameter.mul_(strength if ".lora_B." in key else 1)
        student = run_by_hand(recorder.pipeline, off, plan.seed)
        for state in states:
            said = say(name, recorder, state)
            torch.testing.assert_close(said, student.model_outputs[state.index], **close)
    on = call_of(name, plan, plan.guidance)
    teacher = run_by_hand(recorder.pipeline, on, plan.seed, student.states)
    unguided = run_by_hand(recorder.pipeline, off, plan.seed, student.states)
    check_states(name, recorder, states, teacher, unguided)
    assert not torch.allclose(student.model_outputs[1], unguided.model_outputs[1], atol=1e-4)


def test_without_a_dial_the_student_visits_at_strength_one(ready: Any) -> None:
    recorder = ready("sd15")
    plan = replace(plans_of(recorder.settings)[0][0], guidance=3.0)
    recorder.dial = replace(recorder.dial, proportional=False)
    with attached("sd15", recorder, plan) as recorder.adapter:
        ((_, states),) = recorder.record("student", [plan])
        student = run_by_hand(recorder.pipeline, call_of("sd15", plan, 1.0), plan.seed)
    (state, *_), _ = states[-1].arguments
    torch.testing.assert_close(state, student.states[states[-1].index], **close)


def test_the_house_negative_prompt_is_in_the_targets(ready: Any) -> None:
    recorder = ready("sd15")
    plan = plans_of(recorder.settings)[0][0]
    pipeline = recorder.settings.pipeline.model_copy(update={"negative_prompt": "blurry"})
    recorder.inputs = partial(run_inputs, recorder.pipeline, recorder.findings, pipeline)
    ((_, states),) = recorder.record("teacher", [plan])
    on = call_of("sd15", plan, plan.guidance)
    plain = run_by_hand(recorder.pipeline, on, plan.seed)
    told = run_by_hand(recorder.pipeline, on | {"negative_prompt": ["blurry"]}, plan.seed)
    assert torch.equal(states[1].target, told.model_outputs[1])
    assert not torch.equal(states[1].target, plain.model_outputs[1])


# Batches


def recorded(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_does_not_change_what_is_recorded(ready: Any, tmp_path: Path, name: str) -> None:
    folders = {}
    for size in (1, 3):
        recorder = ready(name, batch_size=size, guidance=(4.0, 4.0))
        folders[size] = tmp_path / str(size)
        record_round(folders[size], "teacher", plans_of(recorder.settings), recorder)
    one, three = recorded(folders[1]), recorded(folders[3])
    assert one.keys() == three.keys()
    for file, tensors in one.items():
        assert tensors.keys() == three[file].keys()
        for key, tensor in tensors.items():
            assert tensor.dtype == three[file][key].dtype
            off = float((tensor.double() - three[file][key].double()).abs().max())
            assert off <= 1e-5 * max(1.0, float(tensor.double().abs().max())), key


def test_prompts_that_change_each_other_s_arguments_are_recorded_one_by_one(ready: Any) -> None:
    recorder = ready("sd15", batch_size=3)
    together = recorder.record("teacher", plans_of(recorder.settings)[0])
    recorder.findings = replace(recorder.findings, mixed_lengths=False)
    apart = recorder.record("teacher", plans_of(recorder.settings)[0])
    assert [plan for plan, _ in together] == [plan for plan, _ in apart]
    for (_, ours), (plan, theirs) in zip(together, apart, strict=True):
        alone = recorder.record("teacher", [plan])[0][1]
        for a, b, c in zip(ours, theirs, alone, strict=True):
            assert torch.equal(b.target, c.target)
            torch.testing.assert_close(a.target, b.target, **close)


# Stopping and going on


class StopAfter(Stop):
    """Asks to stop after a number of batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.signal, self.left = 15, batches

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def recording(ready: Any) -> tuple[Recorder, list[list[Plan]]]:
    """Five training trajectories and a held-out one, in batches of two."""
    recorder = ready("sd15", trajectories=5, batch_size=2)
    return recorder, plans_of(recorder.settings)


def record(folder: Path, recording: Any, **options: Any) -> int:
    recorder, plans = recording
    return record_round(folder, "teacher", plans, recorder, **options)


def test_the_first_batch_tells_what_the_whole_round_will_take(
    tmp_path: Path, recording: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, recording)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("To record")]
    assert line.startswith("To record 6 trajectories: about ")
    assert "on disk, peak memory so far" in line
    record(tmp_path, recording)
    assert "To record" not in capsys.readouterr().out


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Manifest lines in the order of their plans, without how long each took."""
    lines = sorted(read_lines(folder / LINES), key=lambda line: line["index"])
    assert all(line.pop("seconds") >= 0 for line in lines)
    return lines


def assert_equal_recordings(one: Path, two: Path) -> None:
    assert lines_of(one) == lines_of(two)
    ours, theirs = recorded(one), recorded(two)
    assert ours.keys() == theirs.keys()
    for file, tensors in ours.items():
        assert tensors.keys() == theirs[file].keys()
        assert all(torch.equal(t, theirs[file][key]) for key, t in tensors.items())


@pytest.mark.parametrize("stops", [[1], [0, 1, 1], [3]])
def test_a_stopped_recording_goes_on_and_equals_an_uninterrupted_one(
    tmp_path: Path, recording: Any, stops: list[int]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    size = record(whole, recording)
    for batches in stops:
        with pytest.raises(Stopped, match="of 6 trajectories recorded") as caught:
            record(parts, recording, stop=StopAfter(batches))
        assert caught.value.exit_code == 128 + 15
    assert record(parts, recording) == size
    assert_equal_recordings(whole, parts)


def lose_a_line(folder: Path) -> None:
    """As if the process had died between a file and its line."""
    text = (folder / LINES).read_text().splitlines(keepends=True)
    (folder / LINES).write_text("".join(text[:-1]))


def tear_a_line(folder: Path) -> None:
    (folder / LINES).write_bytes((folder / LINES).read_bytes()[:-20])


def lose_half_a_batch(folder: Path) -> None:
    lose_a_line(folder)
    (folder / "training-000003.safetensors").unlink(missing_ok=True)
    text = (folder / LINES).read_text().splitlines(keepends=True)
    (folder / LINES).write_text("".join(line for line in text if '"index": 3,' not in line))


@pytest.mark.parametrize("crash", [lose_a_line, tear_a_line, lose_half_a_batch])
def test_a_recording_that_died_goes_on_and_equals_an_uninterrupted_one(
    tmp_path: Path, recording: Any, crash: Callable[[Path], None]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    record(whole, recording)
    record(parts, recording)
    crash(parts)
    record(parts, recording)
    assert_equal_recordings(whole, parts)


def test_a_finished_recording_is_not_recorded_again(
    tmp_path: Path, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "round", recording)
    monkeypatch.setattr(Recorder, "record", lambda *_: pytest.fail("recorded again"))
    record(tmp_path / "round", recording)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_recording_is_refused_by_the_file_s_name(
    tmp_path: Path, recording: Any, damage: str
) -> None:
    record(tmp_path / "round", recording)
    path = tmp_path / "round" / "training-000002.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    else:
        data[-1] ^= 128
        path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"training-000002\.safetensors"):
        record(tmp_path / "round", recording)


# What does not belong together


def test_changed_prompts_are_refused_by_name(tmp_path: Path, recording: Any) -> None:
    recorder, plans = recording
    record(tmp_path / "round", recording)
    other = Prompt("an old tree", "prompts.txt:1")
    changed = [[replace(plan, prompt=other) for plan in batch] for batch in plans]
    with pytest.raises(MismatchError, match="recorded with another prompt_sha256"):
        record(tmp_path / "round", (recorder, changed))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fingerprint": "0" * 16}, "base"),
        ({"output_map": OutputMap("whole", negated=True)}, "output_map"),
    ],
)
def test_another_base_is_refused_by_name(
    tmp_path: Path, recording: Any, changes: dict[str, Any], field: str
) -> None:
    recorder, _ = recording
    record(tmp_path / "round", recording)
    recorder.findings = replace(recorder.findings, **changes)
    with pytest.raises(MismatchError, match=f"recorded with another {field}"):
        record(tmp_path / "round", recording)


def test_another_state_source_and_another_student_are_refused_by_name(
    tmp_path: Path, recording: Any
) -> None:
    recorder, plans = recording
    folder = tmp_path / "round"
    with attached("sd15", recorder, plans[0][0]) as recorder.adapter:
        recorder.adapter_hash = "one"
        record_round(folder, "student", plans, recorder)
        with pytest.raises(MismatchError, match="another source"):
            record_round(folder, "teacher", plans, recorder)
        recorder.adapter_hash = "two"
        with pytest.raises(MismatchError, match="another adapter"):
            record_round(folder, "student", plans, recorder)


def test_an_output_map_that_changes_on_the_way_is_refused(ready: Any) -> None:
    recorder = ready("sd15")
    negated = OutputMap("whole", negated=True)
    recorder.findings = replace(recorder.findings, output_map=negated)
    with pytest.raises(CaptureError, match="output map 'whole' instead of 'whole, negated'"):
        recorder.record("teacher", plans_of(recorder.settings)[0])


def test_a_scheduler_that_cannot_add_noise_is_refused_by_name() -> None:
    class Bare:
        timesteps = torch.tensor([900, 500])

    with pytest.raises(UnfoldableError, match="Bare cannot add noise"):
        add_noise(Bare(), torch.zeros(1, 4), 1, [0])


def test_a_scheduler_of_tokens_is_refused_by_name() -> None:
    scheduler = AmusedScheduler(mask_token_id=5)
    scheduler.set_timesteps(3)
    with pytest.raises(UnfoldableError, match=r"AmusedScheduler cannot add noise \("):
        add_noise(scheduler, torch.zeros(1, 4, 4, dtype=torch.long), 1, [0])


def test_past_the_last_step_the_latents_stay_clean(built: Any) -> None:
    scheduler = built("sd15").scheduler
    scheduler.set_timesteps(2)
    clean = torch.ones(1, 4)
    assert torch.equal(add_noise(scheduler, clean, 2, [0]), clean)


# Lines


def test_held_out_prompts_never_appear_among_training_trajectories(
    tmp_path: Path, recording: Any
) -> None:
    record(tmp_path / "round", recording)
    _, held_out = split_prompts([Prompt(text, "") for text in PROMPTS], 0.3)
    lines = read_lines(tmp_path / "round" / LINES)
    assert [line["split"] for line in lines] == ["training"] * 5 + ["held-out"]
    for line in lines:
        assert (line["prompt"] in {p.text for p in held_out}) == (line["split"] == "held-out")


def test_following_costs_one_real_call_in_a_whole_recording(tmp_path: Path, recording: Any) -> None:
    recorder, _ = recording
    record(tmp_path / "round", recording)
    assert recorder.stub.real_calls == 2  # of batches of two, and of the last one


def test_a_recorder_leaves_the_pipeline_as_it_was(built: Any, ready: Any) -> None:
    pipeline: DiffusionPipeline = built("sd15")
    recorder = ready("sd15")
    before = {k: t.clone() for k, t in pipeline.unet.state_dict().items()}
    for source in ("teacher", "noise"):
        recorder.record(source, plans_of(recorder.settings)[0])
    assert all(torch.equal(t, before[k]) for k, t in pipeline.unet.state_dict().items())
    assert "forward" not in vars(pipeline.unet)
    assert "step" not in vars(pipeline.scheduler)


# Kinds of running


def slice_decoding(pipeline: DiffusionPipeline) -> None:
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()


def wrap_compiled(pipeline: DiffusionPipeline) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def compile_in_place(pipeline: DiffusionPipeline) -> None:
    pipeline.unet.compile(backend="eager")


def offload_sequentially(pipeline: DiffusionPipeline) -> None:
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        cpu_offload(module, torch.device("cpu"))


def offload_by_group(pipeline: DiffusionPipeline) -> None:
    OFFLOADERS["group"](pipeline, torch.device("cpu"))


def choose_attention(pipeline: DiffusionPipeline) -> None:
    pipeline.transformer.set_attention_backend("native")


def store_in_eight_bits(pipeline: DiffusionPipeline) -> None:
    pipeline.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def in_half_precision(pipeline: DiffusionPipeline) -> None:
    pipeline.to(torch.bfloat16)


RUNNING: list[tuple[str, Callable[[DiffusionPipeline], object]]] = [
    ("sd15", slice_decoding),
    ("sd15", wrap_compiled),
    ("sd15", compile_in_place),
    ("sd15", offload_sequentially),
    ("sd15", offload_by_group),
    ("qwen_image", offload_by_group),
    ("qwen_image", choose_attention),
]
OF_ANOTHER_PRECISION = [
    ("sd3", store_in_eight_bits, torch.float32),
    ("sd3", in_half_precision, torch.bfloat16),
    ("sd15", in_half_precision, torch.bfloat16),
]


def recorded_as(
    name: str, prepare: Callable[[DiffusionPipeline], object] | None, settings: Settings
) -> tuple[Findings, list[KeptState], Recorder]:
    """Probe and record a pipeline that runs in some way."""
    pipeline = build(name)
    if prepare is not None:
        prepare(pipeline)
    asked = settings.pipeline
    findings = probe(pipeline, asked.call, 5.0, asked.negative_prompt)
    recorder = recorder_for(pipeline, findings, dial_of(settings, findings), settings)
    ((_, states),) = recorder.record("teacher", [plans_of(settings)[0][0]])
    return findings, states, recorder


@pytest.mark.parametrize(("name", "prepare"), RUNNING)
def test_how_a_pipeline_runs_changes_nothing_that_is_found_or_recorded(
    settings_for: Any, tmp_path: Path, name: str, prepare: Callable[[DiffusionPipeline], object]
) -> None:
    settings = settings_for(name, tmp_path, record={"states_per_trajectory": STEPS})
    plain, expected, _ = recorded_as(name, None, settings)
    findings, states, recorder = recorded_as(name, prepare, settings)
    same = {"denoiser_class": plain.denoiser_class}  # a compiled module has a class of its own
    assert replace(findings, **same) == plain
    for state, truth in zip(states, expected, strict=True):
        torch.testing.assert_close(state.target, truth.target, **close)
        torch.testing.assert_close(state.arguments, truth.arguments, **close)
    assert recorder.stub.real_calls == 1  # one shape of arguments


@pytest.mark.parametrize(("name", "prepare", "dtype"), OF_ANOTHER_PRECISION)
def test_another_precision_is_recorded_as_it_is(
    settings_for: Any,
    tmp_path: Path,
    name: str,
    prepare: Callable[[DiffusionPipeline], object],
    dtype: torch.dtype,
) -> None:
    settings = settings_for(name, tmp_path, record={"states_per_trajectory": STEPS})
    plain, expected, _ = recorded_as(name, None, settings)
    findings, states, _ = recorded_as(name, prepare, settings)
    assert (findings.targets, findings.output_map) == (plain.targets, plain.output_map)
    for state, truth in zip(states, expected, strict=True):
        assert state.target.dtype == dtype
        distance = (state.target.float() - truth.target).norm() / truth.target.norm()
        assert 0 < distance < 0.2
