"""One set of weights, two voices: what attaching, switching and strength may and may not do."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from toys import TAKEN, Toy, left_out
from zoo import WARNINGS, ZOO, build

from guidefold.ground.errors import CorruptFileError, InputError, MismatchError, UnfoldableError
from guidefold.listen.call import call_inputs
from guidefold.listen.capture import drive, run
from guidefold.listen.output_map import output_tensor
from guidefold.lora.adapter import Adapter, attach, unwrap
from guidefold.lora.loaded import adapter_off, unload_adapter

pytestmark = pytest.mark.filterwarnings(*WARNINGS)

MIXED = torch.tensor([0.0, 0.5, 1.3])


def waken(adapter: Adapter, seed: int = 0) -> Adapter:
    """Random ``lora_B``: while it is zero, nothing that concerns the student can be seen."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters().items():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise))
    return adapter


def weights_of(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """The teacher's tensors by their original names."""
    tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
    return {n.replace(".base_layer", ""): t for n, t in tensors.items() if ".lora_" not in n}


@pytest.fixture
def unet(built: Callable[[str], DiffusionPipeline]) -> UNet2DConditionModel:
    return copy.deepcopy(built("sd15").unet)


@pytest.fixture
def inputs(unet: UNet2DConditionModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Arguments for three samples at three timesteps."""
    noise = torch.Generator().manual_seed(5)
    width = unet.config.cross_attention_dim
    return (
        torch.randn(3, 4, 8, 8, generator=noise),
        torch.tensor([900, 400, 20]),
        torch.randn(3, 7, width, generator=noise),
    )


@pytest.fixture
def adapter(unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]) -> Adapter:
    return waken(attach(unet, "all", 2, 0, lambda: unet(*inputs)))


def answer(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(*inputs).sample


def taught(adapter: Adapter, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with adapter.teacher_mode():
        return answer(adapter.denoiser, inputs)


# Law 1: teacher and student share storage.


@pytest.mark.parametrize("name", ZOO)
def test_attaching_and_training_leave_the_teacher_as_it_was_to_the_bit(name: str) -> None:
    pipeline = build(name)
    (denoiser_name,) = ZOO[name].denoisers
    denoiser = getattr(pipeline, denoiser_name)
    inputs = guided_inputs(pipeline, name)
    steps = drive(pipeline, inputs, [1], {denoiser_name: denoiser}, keep_arguments=True)
    args, kwargs = steps[0].calls[-1].arguments
    weights = weights_of(denoiser)
    before = {n: t.detach().clone() for n, t in weights.items()}
    places = {n: t.data_ptr() for n, t in weights.items()}

    adapter = attach(denoiser, "all", 2, 0, lambda: denoiser(*args, **kwargs))
    assert torch.equal(last_state(pipeline, inputs), steps[-1].next_state)
    train(adapter, lambda: output_tensor(denoiser(*args, **kwargs)))
    with adapter.teacher_mode():
        assert torch.equal(last_state(pipeline, inputs), steps[-1].next_state)
    assert not torch.equal(last_state(pipeline, inputs), steps[-1].next_state)

    after = weights_of(denoiser)
    assert after.keys() == before.keys()
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]), key
        assert tensor.data_ptr() == places[key], key


def guided_inputs(pipeline: DiffusionPipeline, name: str) -> dict[str, Any]:
    return {
        **call_inputs(pipeline, ["a cat"], ZOO[name].call),
        ZOO[name].guidance_argument: 4.0,
        "num_inference_steps": 2,
    }


def last_state(pipeline: DiffusionPipeline, inputs: Mapping[str, Any]) -> torch.Tensor:
    result = run(pipeline, inputs, [1], output_type="latent")
    return result[0]


def train(adapter: Adapter, predict: Callable[[], torch.Tensor], steps: int = 2) -> None:
    parameters = list(adapter.named_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        with adapter.student_mode(torch.tensor([0.8])):
            (predict() - 1).square().mean().backward()
        optimizer.step()


def test_only_the_adapter_learns_and_it_is_in_float32(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    unet.bfloat16()
    half = tuple(t.bfloat16() if t.is_floating_point() else t for t in inputs)
    adapter = attach(unet, "all", 2, 0, lambda: unet(*half))
    learning = {n for n, p in unet.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in unet.named_parameters() if ".lora_" in n}
    assert {p.dtype for p in adapter.named_parameters().values()} == {torch.float32}
    assert answer(unet, half).dtype == torch.bfloat16


def test_a_seed_decides_the_adapter_and_the_random_state_stays(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    tensors = []
    for seed in (3, 3, 4):
        fresh = copy.deepcopy(unet)
        before = torch.random.get_rng_state()
        tensors.append(attach(fresh, "linear", 2, seed, lambda f=fresh: f(*inputs)).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    one, two, other = tensors
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_gradients_reach_lora_b_at_the_first_step_and_lora_a_at_the_second(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    adapter = attach(unet, "all", 2, 0, lambda: unet(*inputs))
    moved = []
    for _ in range(2):
        before = {n: t.clone() for n, t in adapter.state_dict().items()}
        train(adapter, lambda: answer(unet, inputs), steps=1)
        after = adapter.state_dict()
        gradients = {n: p.grad for n, p in adapter.named_parameters().items()}
        moved.append({n.split(".")[-2] for n, g in gradients.items() if g.any()})
        assert all(not torch.equal(before[n], after[n]) for n, g in gradients.items() if g.any())
    assert moved == [{"lora_B"}, {"lora_A", "lora_B"}]


# Law 2: teacher mode is the only switch.


def test_teacher_mode_is_the_teacher_and_student_mode_is_not(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    teacher = taught(adapter, inputs)
    with adapter.student_mode(1.0, train=False):
        assert not torch.allclose(answer(adapter.denoiser, inputs), teacher, atol=1e-3)


def test_an_inner_teacher_mode_does_not_switch_the_student_on(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    teacher = taught(adapter, inputs)
    with adapter.teacher_mode():
        with adapter.teacher_mode():
            pass
        assert torch.equal(answer(adapter.denoiser, inputs), teacher)
    assert not torch.equal(answer(adapter.denoiser, inputs), teacher)


def test_teacher_mode_has_no_gradients_and_gives_them_back(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    with adapter.teacher_mode():
        assert not torch.is_grad_enabled()
        assert not answer(adapter.denoiser, inputs).requires_grad
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in adapter.named_parameters().values())


def test_modes_end_with_the_exception_that_leaves_them(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    student = answer(adapter.denoiser, inputs)
    with pytest.raises(ZeroDivisionError), adapter.teacher_mode(), adapter.teacher_mode():
        raise ZeroDivisionError
    assert torch.equal(answer(adapter.denoiser, inputs), student)
    with pytest.raises(ZeroDivisionError), adapter.student_mode(0.0):
        raise ZeroDivisionError
    assert torch.equal(answer(adapter.denoiser, inputs), student)
    assert torch.is_grad_enabled()
    with adapter.teacher_mode():
        pass


@pytest.mark.parametrize(
    ("outer", "inner"), [("student", "teacher"), ("teacher", "student"), ("student", "student")]
)
def test_one_mode_cannot_be_entered_within_another(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...], outer: str, inner: str
) -> None:
    modes = {"teacher": adapter.teacher_mode, "student": lambda: adapter.student_mode(1.0)}
    with modes[outer]():
        before = answer(adapter.denoiser, inputs)
        with pytest.raises(AssertionError), modes[inner]():
            pass
        assert torch.equal(answer(adapter.denoiser, inputs), before)


@pytest.mark.parametrize("mode", ["teacher", "student"])
def test_a_fused_adapter_is_refused(adapter: Adapter, mode: str) -> None:
    next(iter(adapter.layers.values())).merge()
    modes = {"teacher": adapter.teacher_mode, "student": lambda: adapter.student_mode(1.0)}
    with pytest.raises(InputError, match="fused into the weights"), modes[mode]():
        pass


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_are_looked_through(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    teacher, unet = taught(adapter, inputs), adapter.denoiser
    with one_process(tmp_path):
        parallel = nn.parallel.DistributedDataParallel(unet)
        compiled = torch.compile(parallel, backend="eager")
        assert hasattr(compiled, "_orig_mod")
        wrapped = Adapter(compiled, adapter.rank, adapter.layers, {})
        assert unwrap(compiled) is unwrap(parallel) is unwrap(unet) is unet
        assert wrapped.named_parameters().keys() == adapter.named_parameters().keys()
        assert wrapped.state_dict().keys() == adapter.state_dict().keys()
        with wrapped.teacher_mode():
            assert torch.equal(answer(parallel, inputs), teacher)
        with adapter.student_mode(MIXED):
            answer(parallel, inputs).square().mean().backward()
        assert all(p.grad is not None for p in wrapped.named_parameters().values())
        wrapped.detach()
    assert torch.equal(answer(unet, inputs), teacher)


def gradients(
    adapter: Adapter,
    inputs: tuple[torch.Tensor, ...],
    strength: torch.Tensor | float,
    *,
    leave_early: bool = False,
) -> dict[str, torch.Tensor]:
    parameters = adapter.named_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    with ExitStack() as stack:
        stack.enter_context(adapter.student_mode(strength))
        loss = answer(adapter.denoiser, inputs).square().mean()
        if leave_early:
            stack.close()
        loss.backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


def worst_relative(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    return max(float((found[n] - t).norm() / t.norm()) for n, t in truth.items() if t.any())


def test_checkpointed_gradients_are_the_plain_ones_under_mixed_strengths(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    plain = gradients(adapter, inputs, MIXED)
    adapter.denoiser.enable_gradient_checkpointing()
    assert worst_relative(gradients(adapter, inputs, MIXED), plain) < 1e-4


def test_leaving_student_mode_before_a_checkpointed_backward_gives_other_gradients(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    """The control: why one context covers forward and backward."""
    plain = gradients(adapter, inputs, 0.5)
    assert worst_relative(gradients(adapter, inputs, 0.5, leave_early=True), plain) == 0
    adapter.denoiser.enable_gradient_checkpointing()
    assert worst_relative(gradients(adapter, inputs, 0.5), plain) < 1e-4
    assert worst_relative(gradients(adapter, inputs, 0.5, leave_early=True), plain) > 0.1


# Strength.


def test_strength_scales_each_layer_s_update() -> None:
    """Against the closed form ``W x + s B A x``."""
    layer = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    adapter = waken(attach(layer, "linear", 2, 0, lambda: layer(x)))
    a, b = adapter.state_dict()["0.lora_A.weight"], adapter.state_dict()["0.lora_B.weight"]
    base = weights_of(layer)
    update = x @ a.T @ b.T
    expected = x @ base["0.weight"].T + base["0.bias"] + MIXED[:, None] * update
    with adapter.student_mode(MIXED):
        torch.testing.assert_close(layer(x), expected)


def test_a_mixed_batch_equals_its_samples_one_by_one(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    with adapter.student_mode(MIXED, train=False):
        mixed = answer(adapter.denoiser, inputs)
    for k, strength in enumerate(MIXED.tolist()):
        with adapter.student_mode(strength, train=False):
            alone = answer(adapter.denoiser, tuple(t[k : k + 1] for t in inputs))
        torch.testing.assert_close(mixed[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed, taught(adapter, inputs), atol=1e-3)


def test_strength_zero_is_the_teacher_to_the_bit(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    teacher = taught(adapter, inputs)
    for strength in (0.0, torch.zeros(3)):
        with adapter.student_mode(strength, train=False):
            assert torch.equal(answer(adapter.denoiser, inputs), teacher)


def test_strength_one_is_what_stands_outside_of_modes(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    with adapter.student_mode(torch.ones(3), train=False):
        student = answer(adapter.denoiser, inputs)
    assert torch.equal(answer(adapter.denoiser, inputs), student)


def test_rows_that_no_sample_owns_are_refused(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    with (
        adapter.student_mode(torch.ones(2)),
        pytest.raises(UnfoldableError, match="3 rows for 2 samples"),
    ):
        answer(adapter.denoiser, inputs)


# Which layers.


def attach_toy(preset: str) -> Adapter:
    toy = Toy()
    return attach(toy, preset, 2, 0, lambda: toy(torch.ones(1, 4)))


@pytest.mark.parametrize("preset", TAKEN)
def test_a_preset_wraps_exactly_its_layers_and_names_those_left_out(preset: str) -> None:
    """``proj`` ends ``odd.proj`` too, which must stay as it is."""
    adapter = attach_toy(preset)
    assert adapter.layers.keys() == TAKEN[preset]
    assert adapter.left_out == left_out(preset)


def test_a_preset_without_layers_is_refused() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UnfoldableError, match="no layer of Sequential matches 'attention'"):
        attach(layer, "attention", 2, 0, lambda: layer(torch.ones(1, 2)))


def test_animatediff_s_layers_called_with_more_are_left_out_by_name() -> None:
    pipeline = build("animatediff")
    listened = {"unet": pipeline.unet}
    inputs = guided_inputs(pipeline, "animatediff")
    steps = drive(pipeline, inputs, [0], listened, keep_arguments=True)
    args, kwargs = steps[0].calls[0].arguments
    adapter = attach(pipeline.unet, "all", 2, 0, lambda: pipeline.unet(*args, **kwargs))
    assert all(reason for reason in adapter.left_out.values())
    assert adapter.layers.keys().isdisjoint(adapter.left_out)


# What goes into files and comes back.


def test_parameters_have_the_names_that_the_file_gives_them(adapter: Adapter) -> None:
    tensors = adapter.state_dict()
    assert adapter.named_parameters().keys() == tensors.keys()
    for layer in adapter.layers:
        assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"} <= tensors.keys()
    for name, parameter in adapter.named_parameters().items():
        assert parameter.data_ptr() == tensors[name].data_ptr()


def test_the_state_is_what_peft_itself_finds(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    adapter = waken(attach(unet, "all", 2, 0, lambda: unet(*inputs), steps_rank=3))
    theirs = {
        name.replace(".weight", f".{lora}.weight") if lora == "steps" else name: tensor
        for lora in adapter.loras
        for name, tensor in get_peft_model_state_dict(unet, adapter_name=lora).items()
    }
    ours = adapter.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_state_comes_back(adapter: Adapter, inputs: tuple[torch.Tensor, ...]) -> None:
    tensors = {n: t.clone() for n, t in adapter.state_dict().items()}
    student = answer(adapter.denoiser, inputs)
    waken(adapter, seed=1)
    assert not torch.equal(answer(adapter.denoiser, inputs), student)
    adapter.load_state_dict(tensors)
    assert torch.equal(answer(adapter.denoiser, inputs), student)


def spoilt(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "conv_in.lora_A.weight"
    spoiling: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "missing": lambda: {n: t for n, t in tensors.items() if n != name},
        "extra": lambda: {**tensors, "conv_out.lora_C.weight": torch.ones(1)},
        "shape": lambda: {**tensors, name: tensors[name][:1]},
        "nan": lambda: {**tensors, name: tensors[name] * float("nan")},
        "infinity": lambda: {**tensors, name: tensors[name] + float("inf")},
    }
    return spoiling[how]()


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("missing", MismatchError, r"lacks tensor 'conv_in\.lora_A\.weight'"),
        ("extra", MismatchError, r"unknown tensor 'conv_out\.lora_C\.weight'"),
        ("shape", MismatchError, r"shape \(1, 4, 3, 3\) in the file and \(2, 4, 3, 3\)"),
        ("nan", CorruptFileError, r"'conv_in\.lora_A\.weight' .* not finite"),
        ("infinity", CorruptFileError, r"'conv_in\.lora_A\.weight' .* not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(
    adapter: Adapter, how: str, kind: type[Exception], said: str
) -> None:
    before = {n: t.clone() for n, t in adapter.state_dict().items()}
    other = {n: t + 1 for n, t in before.items()}
    with pytest.raises(kind, match=said):
        adapter.load_state_dict(spoilt(other, how))
    assert all(torch.equal(before[n], t) for n, t in adapter.state_dict().items())


def test_detaching_gives_back_the_very_same_modules(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    before, teacher = dict(unet.named_modules()), answer(unet, inputs)
    attached = set(vars(unet))
    waken(attach(unet, "all", 2, 0, lambda: unet(*inputs))).detach()
    after = dict(unet.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is module for name, module in before.items())
    assert torch.equal(answer(unet, inputs), teacher)
    assert not any(module._forward_hooks for module in unet.modules())
    assert set(vars(unet)) - attached <= {"_hf_peft_config_loaded"}


def test_an_adapter_can_be_attached_again_after_detaching(
    unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]
) -> None:
    names = []
    for _ in range(2):
        adapter = attach(unet, "all", 2, 0, lambda: unet(*inputs))
        names.append(list(adapter.state_dict()))
        adapter.detach()
    assert names[0] == names[1]


def test_a_loaded_adapter_is_off_for_a_while_and_taken_off_for_good(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...]
) -> None:
    unet, teacher = adapter.denoiser, taught(adapter, inputs)
    student = answer(unet, inputs)
    with pytest.raises(ZeroDivisionError), adapter_off(unet):
        assert torch.equal(answer(unet, inputs), teacher)
        raise ZeroDivisionError
    assert torch.equal(answer(unet, inputs), student)
    unload_adapter(unet)
    assert torch.equal(answer(unet, inputs), teacher)


def test_unloading_keeps_every_module_every_bit_and_every_hook(
    adapter: Adapter, inputs: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    save_file(
        {f"unet.{name}": tensor for name, tensor in adapter.state_dict().items()},
        tmp_path / "lora.safetensors",
    )
    unet = adapter.denoiser
    adapter.detach()
    seen: list[nn.Module] = []
    unet.conv_in.register_forward_hook(lambda module, _i, _o: seen.append(module))
    modules, hook = dict(unet.named_modules()), dict(unet.conv_in._forward_hooks)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    plain = answer(unet, inputs)
    for _ in range(2):  # it can be loaded again by diffusers, which asks whether one is there
        unet.load_lora_adapter(tmp_path, weight_name="lora.safetensors", prefix="unet")
        assert not torch.equal(answer(unet, inputs), plain)
        unload_adapter(unet)
        assert all(modules[name] is module for name, module in unet.named_modules())
        assert dict(unet.conv_in._forward_hooks) == hook
        assert all(torch.equal(weights[n], t) for n, t in unet.state_dict().items())
        assert weights.keys() == unet.state_dict().keys()
        assert not unet._hf_peft_config_loaded
        assert not hasattr(unet, "peft_config")
    seen.clear()
    assert torch.equal(answer(unet, inputs), plain)
    assert seen == [modules["conv_in"]]
