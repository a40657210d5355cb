"""Driving and following: a listener disturbs nothing, a follower stands where the driver stood."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.hooks import HookRegistry, ModelHook
from listening import plain_run
from toys import BrokeError, Net, Plain, Steered, breaks
from zoo import ZOO

from guidefold.ground.errors import CaptureError, UnfoldableError
from guidefold.listen.capture import denoisers_of, drive, follow
from guidefold.listen.dry_run import RandomStub
from guidefold.listen.listener import Listener, Step

SDE = "sde-dpmsolver++"
SOLVERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: pipeline, class, its settings, arguments of the call
    "DDIM": ("sd15", "DDIMScheduler", {}, {}),
    "DDIM, eta 1": ("sd15", "DDIMScheduler", {}, {"eta": 1.0}),
    "DDPM": ("sd15", "DDPMScheduler", {}, {}),
    "Euler": ("sd15", "EulerDiscreteScheduler", {}, {}),
    "Euler ancestral": ("sd15", "EulerAncestralDiscreteScheduler", {}, {}),
    "DPM++ 2M": ("sd15", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "DPM++ 2M SDE": ("sd15", "DPMSolverMultistepScheduler", {"algorithm_type": SDE}, {}),
    "DPM++ single": ("sd15", "DPMSolverSinglestepScheduler", {}, {}),
    "DEIS": ("sd15", "DEISMultistepScheduler", {}, {}),
    "UniPC": ("sd15", "UniPCMultistepScheduler", {}, {}),
    "Heun": ("sd15", "HeunDiscreteScheduler", {}, {}),
    "KDPM2": ("sd15", "KDPM2DiscreteScheduler", {}, {}),
    "KDPM2 ancestral": ("sd15", "KDPM2AncestralDiscreteScheduler", {}, {}),
    "PNDM": ("sd15", "PNDMScheduler", {"skip_prk_steps": True}, {}),
    "LCM": ("sd15", "LCMScheduler", {}, {}),
    "flow Euler": ("sd3", "FlowMatchEulerDiscreteScheduler", {}, {}),
    "flow Heun": ("sd3", "FlowMatchHeunDiscreteScheduler", {}, {}),
}
STOCHASTIC = ("DDIM, eta 1", "DDPM", "Euler ancestral", "DPM++ 2M SDE", "KDPM2 ancestral", "LCM")
REPEATING = ("Heun", "PNDM", "KDPM2")
every_solver = pytest.mark.parametrize("solver", SOLVERS)

Made = tuple[DiffusionPipeline, dict[str, Any], dict[str, torch.nn.Module]]


@pytest.fixture
def make(built: Callable[[str], DiffusionPipeline]) -> Callable[[str], Made]:
    """Pipeline, inputs with guidance on, and listened modules, for a solver."""

    def made(solver: str) -> Made:
        name, scheduler, settings, call = SOLVERS[solver]
        base = built(name)
        options = {"requires_safety_checker": False} if name == "sd15" else {}
        stepper = getattr(diffusers, scheduler).from_config(base.scheduler.config, **settings)
        pipeline = type(base)(**base.components | {"scheduler": stepper}, **options)
        pipeline.set_progress_bar_config(disable=True)
        inputs = {"prompt": ["a red cat"], "num_inference_steps": 4, "guidance_scale": 5.0}
        denoiser = ZOO[name].denoisers[0]
        listened = {denoiser: getattr(pipeline, denoiser)}
        return pipeline, inputs | dict(ZOO[name].call) | call, listened

    return made


@pytest.fixture
def sd(make: Callable[[str], Made]) -> Made:
    return make("DDIM")


@every_solver
def test_a_driven_run_equals_an_undriven_one_bit_for_bit(make: Any, solver: str) -> None:
    pipeline, inputs, listened = make(solver)
    torch.manual_seed(1)
    alone = plain_run(pipeline, inputs, seed=3)
    torch.manual_seed(2)  # a solver that lost its generator would draw from here
    driven = drive(pipeline, inputs, [3], listened, keep_arguments=True)
    assert torch.equal(driven[-1].next_state, alone)
    assert torch.equal(plain_run(pipeline, inputs, seed=3), alone)


def test_what_draws_from_torch_s_own_state_is_a_function_of_the_seed(make: Any) -> None:
    """This solver ignores the generator that it is given: diffusers' fault."""
    pipeline, inputs, listened = make("flow Euler")
    pipeline.scheduler.register_to_config(stochastic_sampling=True)
    ends = []
    for seed in (3, 3, 4):
        before = torch.random.get_rng_state()
        ends.append(drive(pipeline, inputs, [seed], listened)[-1].next_state)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(1)  # the next run finds another state
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@every_solver
def test_the_generator_moves_the_stochastic_solvers_and_no_others(make: Any, solver: str) -> None:
    pipeline, inputs, listened = make(solver)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    ends = [
        drive(pipeline, inputs | {"latents": latents}, [seed], listened)[-1].next_state
        for seed in (3, 4)
    ]
    assert torch.equal(*ends) == (solver not in STOCHASTIC)


@every_solver
def test_a_follower_stands_at_the_driver_s_states_bit_for_bit(make: Any, solver: str) -> None:
    pipeline, inputs, listened = make(solver)
    driven = drive(pipeline, inputs, [3], listened)
    followed = follow(pipeline, inputs | {"guidance_scale": 1.0}, [3], listened, driven)
    for mine, its in zip(followed, driven, strict=True):
        assert mine.timestep == its.timestep
        assert torch.equal(mine.state, its.state)
        assert torch.equal(mine.next_state, its.next_state)
        assert not torch.equal(mine.model_output, its.model_output)


@every_solver
def test_an_unguided_follower_says_the_conditional_half_of_what_the_driver_heard(
    make: Any, solver: str
) -> None:
    pipeline, inputs, listened = make(solver)
    driven = drive(pipeline, inputs, [3], listened, keep_arguments=True)
    followed = follow(pipeline, inputs | {"guidance_scale": 1.0}, [3], listened, driven)
    for mine, its in zip(followed, driven, strict=True):
        (call,) = its.calls
        unconditional, conditional = call.output[0].chunk(2)
        guided = unconditional + 5.0 * (conditional - unconditional)
        torch.testing.assert_close(mine.model_output, conditional, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(its.model_output, guided, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", REPEATING)
def test_solvers_that_ask_twice_about_a_step_are_heard_twice(make: Any, solver: str) -> None:
    pipeline, inputs, listened = make(solver)
    driven = drive(pipeline, inputs, [3], listened)
    assert len(driven) > inputs["num_inference_steps"]
    again = follow(pipeline, inputs, [3], listened, driven)
    for mine, its in zip(again, driven, strict=True):
        assert torch.equal(mine.model_output, its.model_output)


def test_heun_and_pndm_repeat_a_timestep_at_different_states(make: Any) -> None:
    for solver in ("Heun", "PNDM"):
        pipeline, inputs, listened = make(solver)
        driven = drive(pipeline, inputs, [3], listened)
        twice = [(a, b) for a, b in pairwise(driven) if a.timestep == b.timestep]
        assert twice
        assert all(not torch.equal(a.state, b.state) for a, b in twice)


def test_each_state_is_what_the_step_before_gave_and_no_later_step_writes_into_it(sd: Made) -> None:
    pipeline, inputs, listened = sd
    driven = drive(pipeline, inputs, [3], listened)
    for one, two in pairwise(driven):
        assert torch.equal(one.next_state, two.state)
        assert one.next_state.data_ptr() != two.state.data_ptr()


def test_two_prompts_in_a_call_have_the_trajectories_that_each_has_alone(sd: Made) -> None:
    pipeline, inputs, listened = sd
    prompts = ["a red cat", "a big blue house near the tree"]
    both = drive(pipeline, inputs | {"prompt": prompts}, [3, 4], listened)
    for row, (prompt, seed) in enumerate(zip(prompts, (3, 4), strict=True)):
        alone = drive(pipeline, inputs | {"prompt": [prompt]}, [seed], listened)
        torch.testing.assert_close(
            both[-1].next_state[row], alone[-1].next_state[0], rtol=1e-5, atol=1e-5
        )


def test_a_step_counts_its_rows_and_tells_of_its_end(sd: Made) -> None:
    pipeline, inputs, listened = sd
    told: list[int] = []
    driven = drive(pipeline, inputs, [3], listened, on_step=lambda: told.append(1))
    assert [step.rows for step in driven] == [2] * 4
    assert len(told) == 4
    off = drive(pipeline, inputs | {"guidance_scale": 1.0}, [3], listened)
    assert [step.rows for step in off] == [1] * 4


def test_the_denoiser_is_what_was_called_last_before_a_step(sd: Made) -> None:
    pipeline, inputs, listened = sd
    listened = {"text_encoder": pipeline.text_encoder, **listened}
    driven = drive(pipeline, inputs, [3], listened)
    assert [call.denoiser for call in driven[0].calls] == ["text_encoder"] * 2 + ["unet"]
    assert denoisers_of(driven) == ("unet",)


# What the listener leaves behind


@pytest.mark.parametrize("on_step", [None, breaks], ids=["whole run", "run that raises"])
@pytest.mark.parametrize("occupied", [True, False], ids=["forward set by someone", "bare"])
def test_everything_stands_again_as_it_stood(sd: Made, occupied: bool, on_step: Any) -> None:
    pipeline, inputs, listened = sd
    unet, scheduler = pipeline.unet, pipeline.scheduler
    before = plain_run(pipeline, inputs, seed=3)
    if occupied:
        unet.forward = hook = lambda *a, **k: type(unet).forward(unet, *a, **k)
        scheduler.step = step = scheduler.step
    try:
        if on_step is None:
            drive(pipeline, inputs, [3], listened)
        else:
            with pytest.raises(BrokeError):
                drive(pipeline, inputs, [3], listened, on_step=on_step)
        assert vars(unet).get("forward") is (hook if occupied else None)
        assert vars(scheduler).get("step") is (step if occupied else None)
        assert torch.equal(plain_run(pipeline, inputs, seed=3), before)
    finally:
        vars(unet).pop("forward", None)


def test_a_forward_set_by_someone_else_is_called_while_listening(sd: Made) -> None:
    pipeline, inputs, listened = sd
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(pipeline.unet).forward(pipeline.unet, *args, **kwargs)

    pipeline.unet.forward = counted
    try:
        drive(pipeline, inputs, [3], listened)
    finally:
        del pipeline.unet.forward
    assert len(calls) == 4


@every_solver
def test_the_signature_of_step_is_unchanged_while_listening(make: Any, solver: str) -> None:
    pipeline, _, listened = make(solver)
    scheduler = pipeline.scheduler
    before = inspect.signature(scheduler.step)
    with Listener(pipeline, listened):
        during = inspect.signature(scheduler.step)
        assert scheduler.step.__name__ == "step"
    assert during == before
    assert {"eta", "generator"} & set(during.parameters) == {"eta", "generator"} & set(
        before.parameters
    )
    assert inspect.signature(scheduler.step) == before


def hooked(unet: torch.nn.Module) -> torch.nn.Module:
    return add_hook_to_module(unet, AlignDevicesHook("cpu", io_same_device=True))


def offloaded(unet: torch.nn.Module) -> torch.nn.Module:
    return cpu_offload(unet, torch.device("cpu"))


def compiled(unet: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(unet, backend="eager")


def compiled_in_place(unet: torch.nn.Module) -> torch.nn.Module:
    unet.compile(backend="eager")
    return unet


def moved(unet: torch.nn.Module) -> torch.nn.Module:
    unet.forward = partial(type(unet).forward, unet)
    return unet


def remains(pipeline: Steered) -> dict[tuple[str, str], Any]:
    """All that stands on a pipeline and its parts: which objects and hooks, not what they hold."""
    parts = {"pipeline": pipeline, "scheduler": pipeline.scheduler, "guider": pipeline.guider}
    parts |= {f"unet.{name}": module for name, module in pipeline.unet.named_modules()}
    kept = ("forward", "step", "unet", "guider", "scheduler", "_hf_hook", "_compiled_call_impl")
    found: dict[tuple[str, str], Any] = {(name, ""): id(part) for name, part in parts.items()}
    for name, part in parts.items():
        for key, value in vars(part).items():
            hooks = tuple(map(id, value.values())) if "_hooks" in key and value else None
            found[name, key] = id(value) if key in kept else hooks
    return found


@pytest.mark.parametrize("breaking", ["nothing", "the denoiser", "the scheduler"])
@pytest.mark.parametrize("dress", [None, moved, hooked, offloaded, compiled, compiled_in_place])
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_a_run_leaves_everything_as_it_was_whatever_the_denoiser_wears_or_breaks(
    monkeypatch: pytest.MonkeyPatch, breaking: str, dress: Any
) -> None:
    torch.manual_seed(0)
    net = Net()
    pipeline = Steered(dress(net) if dress else net, DDIMScheduler(), ClassifierFreeGuidance(3.0))
    inputs, listened = {"prompt": "a cat", "guider.guidance_scale": 5.0}, {"unet": pipeline.unet}

    def alone() -> torch.Tensor:
        torch.manual_seed(1)
        return pipeline(prompt="a cat", generator=torch.Generator().manual_seed(3))

    truth, before, state = alone(), remains(pipeline), torch.random.get_rng_state()
    if breaking == "nothing":
        first = drive(pipeline, inputs, [3], listened, keep_arguments=True)
        again = drive(pipeline, inputs, [3], listened)
        assert [step.rows for step in first] == [2, 2, 2]
        assert torch.equal(first[-1].next_state, again[-1].next_state)
    else:
        with monkeypatch.context() as patch, pytest.raises(BrokeError):
            if breaking == "the denoiser":
                patch.setattr(net, "broken", True)
            else:
                patch.setattr(DDIMScheduler, "_get_variance", lambda *_: breaks())
            drive(pipeline, inputs, [3], listened)
    assert remains(pipeline) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(alone(), truth)


def test_a_real_pipeline_with_an_offloaded_denoiser_is_heard_and_left_as_it_was(make: Any) -> None:
    pipeline, inputs, _ = make("DDIM")
    truth = plain_run(pipeline, inputs, seed=3)
    unet = offloaded(copy.deepcopy(pipeline.unet))
    pipeline.register_modules(unet=unet)
    forward = unet.forward
    driven = drive(pipeline, inputs, [3], {"unet": unet}, keep_arguments=True)
    assert torch.equal(driven[-1].next_state, truth)
    assert vars(unet)["forward"] is forward
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}
    assert torch.equal(plain_run(pipeline, inputs, seed=3), truth)


class OnceHook(ModelHook):
    """Takes itself off in its first call, as that of group offloading which learns the order."""

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        module._diffusers_hook.remove_hook("once", recurse=False)
        return output


def test_a_hook_that_takes_itself_off_in_a_run_is_off_and_every_call_is_heard(make: Any) -> None:
    pipeline, inputs, _ = make("DDIM")
    truth = plain_run(pipeline, inputs, seed=3)
    unet = copy.deepcopy(pipeline.unet)
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    registry.register_hook(ModelHook(), "stays")
    inner = vars(unet)["forward"]
    registry.register_hook(OnceHook(), "once")
    pipeline.register_modules(unet=unet)
    driven = drive(pipeline, inputs, [3], {"unet": unet}, keep_arguments=True)
    assert all(step.calls for step in driven)
    assert torch.equal(driven[-1].next_state, truth)
    assert vars(unet)["forward"] is inner
    assert list(registry.hooks) == ["stays"]


# Following fails loudly


def changed(steps: list[Step], index: int) -> list[Step]:
    """The steps, with one state moved by the smallest amount."""
    steps = copy.copy(steps)
    state = steps[index].state.clone()
    state.view(-1)[0] = torch.nextafter(state.view(-1)[0], torch.tensor(9.0))
    steps[index] = Step(**{**vars(steps[index]), "state": state})
    return steps


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_follower_that_stands_elsewhere_is_stopped_at_that_step(sd: Made, index: int) -> None:
    pipeline, inputs, listened = sd
    driven = changed(drive(pipeline, inputs, [3], listened), index)
    with pytest.raises(CaptureError, match=f"step {index}: the pipeline does not stand"):
        follow(pipeline, inputs, [3], listened, driven)


def test_another_seed_is_noticed_at_the_first_step(sd: Made) -> None:
    pipeline, inputs, listened = sd
    driven = drive(pipeline, inputs, [3], listened)
    with pytest.raises(CaptureError, match="step 0"):
        follow(pipeline, inputs, [4], listened, driven)


def test_another_number_of_steps_is_refused(sd: Made) -> None:
    pipeline, inputs, listened = sd
    driven = drive(pipeline, inputs, [3], listened)
    with pytest.raises(CaptureError, match="more than the 3 steps"):
        follow(pipeline, inputs, [3], listened, driven[:3])
    with pytest.raises(CaptureError, match="takes 4 steps where it took 5"):
        follow(pipeline, inputs, [3], listened, [*driven, driven[-1]])


# The stub


def following_stubbed(made: Made, prompts: list[str], stub: RandomStub) -> int:
    """Follow with a stub; returns how often the denoiser's own forward ran."""
    pipeline, inputs, listened = made
    (module,) = listened.values()
    inputs = inputs | {"prompt": prompts}
    seeds = list(range(len(prompts)))
    driven = drive(pipeline, inputs, seeds, listened)
    ran: list[int] = []
    module.forward = lambda *a, **k: ran.append(1) or type(module).forward(module, *a, **k)
    try:
        off = inputs | {"guidance_scale": 1.0}
        heard = follow(pipeline, off, seeds, listened, driven, stub=stub, keep_arguments=True)
    finally:
        del module.forward
    assert all(len(step.calls) == 1 for step in heard)
    return len(ran)


@pytest.mark.parametrize("solver", ["DDIM", "Heun", "flow Euler"])
def test_following_for_arguments_asks_the_denoiser_once_per_shape(make: Any, solver: str) -> None:
    stub, made = RandomStub(seed=0), make(solver)
    asked = [following_stubbed(made, prompts, stub) for prompts in (["a cat"], ["a dog"])]
    assert asked == [1, 0]
    assert following_stubbed(made, ["a cat", "a dog"], stub) == 1
    assert following_stubbed(made, ["a red cat", "a dog"], stub) == 0
    assert stub.real_calls == 2


def test_the_stub_answers_in_the_denoiser_s_own_form_with_fresh_noise(sd: Made) -> None:
    pipeline, inputs, listened = sd
    stub = RandomStub(seed=0)
    driven = drive(pipeline, inputs | {"guidance_scale": 1.0}, [3], listened)
    heard = drive(pipeline, inputs | {"guidance_scale": 1.0}, [3], listened, stub=stub)
    assert stub.answers[0].shape == driven[0].model_output.shape
    assert len({float(answer.sum()) for answer in stub.answers}) == 4
    for answer, step in zip(stub.answers, heard, strict=True):
        assert torch.equal(answer, step.model_output)
    stub.clear()
    assert not stub.answers


# Pipelines that cannot be heard


class Copying(Plain):
    def own_scheduler(self):
        return copy.deepcopy(self.scheduler)


class Stepless(Plain):
    def move(self, scheduler, output, timestep, state):
        return state - output


class Overwriting(Plain):
    def move(self, scheduler, output, timestep, state):
        return state.copy_(super().move(scheduler, output, timestep, state))


class Ungenerated(Plain):
    def __call__(self, prompt):
        return super().__call__(prompt)


def heard_of(kind: type[Plain]) -> list[Step]:
    unet = torch.nn.Linear(4, 4)
    return drive(kind(unet, DDIMScheduler()), {"prompt": ["a cat"]}, [0], {"unet": unet})


def test_a_pipeline_that_writes_into_its_latents_does_not_change_what_was_heard() -> None:
    torch.manual_seed(0)
    plain = heard_of(Plain)
    torch.manual_seed(0)
    for mine, its in zip(heard_of(Overwriting), plain, strict=True):
        assert torch.equal(mine.state, its.state)
        assert torch.equal(mine.next_state, its.next_state)


def test_a_pipeline_that_steps_a_copy_of_its_scheduler_is_heard_at_the_copy() -> None:
    torch.manual_seed(0)
    plain = heard_of(Plain)
    torch.manual_seed(0)
    copied = heard_of(Copying)
    assert len(copied) == len(plain)
    for mine, its in zip(copied, plain, strict=True):
        assert torch.equal(mine.state, its.state)
        assert torch.equal(mine.model_output, its.model_output)
        assert torch.equal(mine.next_state, its.next_state)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Stepless, r"Stepless: never steps its scheduler \(DDIMScheduler\)"),
        (Ungenerated, "Ungenerated: its call takes no generator"),
    ],
)
def test_a_pipeline_that_cannot_be_heard_is_refused_by_name(kind: Any, reason: str) -> None:
    with pytest.raises(UnfoldableError, match=reason):
        heard_of(kind)


def test_guidance_that_a_callback_adds_is_heard_too(sd: Made) -> None:
    pipeline, inputs, listened = sd
    assert isinstance(pipeline, StableDiffusionPipeline)

    def half_way(pipe: Any, index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 2.0 if index >= 1 else pipe._guidance_scale
        return kwargs

    driven = drive(
        pipeline, inputs | {"callback_on_step_end": half_way}, [3], listened, keep_arguments=True
    )
    for step, scale in zip(driven, (5.0, 5.0, 2.0, 2.0), strict=True):
        unconditional, conditional = step.calls[0].output[0].chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        torch.testing.assert_close(step.model_output, guided, rtol=1e-5, atol=1e-5)
