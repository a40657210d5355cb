"""Optimizers whose state comes back: torch's own, bitsandbytes', and a small one of its layout."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from guidefold.ground.errors import ConfigError, MismatchError
from guidefold.run.tensors import read_tensors, write_tensors
from guidefold.train import optimizer as optimizers
from guidefold.train.optimizer import (
    check_optimizer,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
)

needs_bitsandbytes = pytest.mark.skipif(
    find_spec(optimizers.LIBRARY) is None, reason="bitsandbytes is not installed"
)


class Bytes(torch.optim.Optimizer):
    """Keeps its state as bitsandbytes does: bytes, scales, shared tables, a plain number."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.table = torch.linspace(-1, 1, 256)

    def init_state(self, _group: object, parameter: nn.Parameter, _g: int, _p: int) -> None:
        state = self.state[parameter]
        state["step"] = 0
        state["state1"] = torch.zeros_like(parameter.detach(), dtype=torch.uint8)
        state["qmap1"], state["absmax1"] = self.table, torch.zeros(1)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                self.init_state(None, parameter, 0, number)
            moment = self.table[state["state1"].long()] * state["absmax1"] + parameter.grad
            state["absmax1"].copy_(moment.abs().max())
            state["state1"].copy_(((moment / state["absmax1"] + 1) * 127.5).round())
            state["step"] += 1
            parameter.sub_(0.01 / state["step"] * moment)


KINDS = ["adamw", "muon", "layout", pytest.param("adamw8bit", marks=needs_bitsandbytes)]


class Work:
    """Two parameters, one large enough for 8 bits, on their way to a target."""

    def __init__(self, kind: str, weight_decay: float = 0.1) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.parameters = {
            "large": nn.Parameter(torch.randn(64, 80, generator=drawn)),
            "small": nn.Parameter(torch.randn(7, generator=drawn)),
        }
        listed = list(self.parameters.values())
        self.optimizer = (
            Bytes(listed) if kind == "layout" else make_optimizer(kind, listed, weight_decay)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01

    def train(self, steps: int, *, but: str = "") -> None:
        """``but`` names a parameter that the steps leave unused, without a gradient."""
        used = [parameter for name, parameter in self.parameters.items() if name != but]
        for _ in range(steps):
            self.optimizer.zero_grad()
            sum((p - 2).square().sum() for p in used).backward()
            self.optimizer.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        return optimizer_tensors(self.parameters, self.optimizer)

    def take(self, other: "Work", path: Path) -> None:
        """Parameters and state, through a file."""
        write_tensors(path, other.tensors())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(other.parameters[name])
        restore_optimizer(self.parameters, self.optimizer, read_tensors(path))


@pytest.mark.parametrize("unused", ["", "small", "large"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(
    kind: str, unused: str, tmp_path: Path
) -> None:
    """Also where a parameter had no gradient yet, such as a denoiser's that was not called."""
    straight, stopped, resumed = Work(kind), Work(kind), Work(kind)
    straight.train(3, but=unused)
    straight.train(4)
    stopped.train(3, but=unused)
    resumed.take(stopped, tmp_path / "state.safetensors")
    resumed.train(4)
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name])
    assert straight.tensors().keys() == resumed.tensors().keys()
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_restored_shows_in_the_next_steps(kind: str) -> None:
    """The control."""
    straight, forgetful = Work(kind), Work(kind)
    straight.train(3)
    with torch.no_grad():
        for name, parameter in forgetful.parameters.items():
            parameter.copy_(straight.parameters[name])
    straight.train(2)
    forgetful.train(2)
    assert not torch.equal(straight.parameters["large"], forgetful.parameters["large"])


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_step_there_is_no_state(kind: str) -> None:
    assert Work(kind).tensors() == {}


def test_a_table_that_all_parameters_share_is_kept_once() -> None:
    work = Work("layout")
    work.train(1)
    assert {name for name in work.tensors() if "/" not in name} == {"qmap1"}
    assert work.tensors()["step/small"].item() == 1


@pytest.mark.parametrize(
    ("kind", "change"),
    # Muon's only tensor: a parameter without it is one that had no gradient yet.
    [
        pytest.param(*getattr(kind, "values", (kind,)), change, marks=getattr(kind, "marks", ()))
        for kind in KINDS
        for change in ("missing", "unknown", "shape", "dtype")
        if (kind, change) != ("muon", "missing")
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_none_of_it_is_taken(
    kind: str, change: str
) -> None:
    work, fresh = Work(kind), Work(kind)
    work.train(1)
    tensors = work.tensors()
    name = next(key for key in tensors if key.endswith("/large"))
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        name = "first/large"
        tensors[name] = torch.ones(1)
    elif change == "shape":
        tensors[name] = tensors[name].new_zeros(3)
    else:
        tensors[name] = tensors[name].double()
    said = {"missing": "is missing", "unknown": "is unknown"}.get(change, "in the file")
    with pytest.raises(MismatchError, match=f"optimizer: '{name}' .*{said}|'{name}' {said}"):
        restore_optimizer(fresh.parameters, fresh.optimizer, tensors)
    assert fresh.tensors() == {}


def test_the_state_of_another_optimizer_is_refused() -> None:
    whole, few = Work("adamw"), Work("layout")
    whole.train(1)
    with pytest.raises(MismatchError, match=r"distill\.optimizer"):
        restore_optimizer(few.parameters, few.optimizer, whole.tensors())


def test_muon_updates_a_convolution_as_the_matrix_that_it_is() -> None:
    drawn = torch.Generator().manual_seed(0)
    weights, gradients = torch.randn(2, 3, 6, 4, 3, 3, generator=drawn)
    convolution, matrix = (
        nn.Parameter(weights[0].clone()),
        nn.Parameter(weights[0].flatten(1).clone()),
    )
    ours = make_optimizer("muon", [convolution], 0.0)
    torchs = torch.optim.Muon([matrix], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        convolution.grad, matrix.grad = gradient.clone(), gradient.flatten(1)
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    assert convolution.shape == weights[0].shape
    assert not torch.equal(convolution, weights[0])
    assert torch.equal(convolution.flatten(1), matrix)


def test_without_torchs_muon_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"distill\.optimizer: torch .* has no Muon") as caught:
        check_optimizer("muon")
    assert "distill.optimizer=adamw" in caught.value.remedy


@needs_bitsandbytes
def test_eight_bit_moments_take_bytes_and_step_nearly_as_whole_ones() -> None:
    whole, few = Work("adamw"), Work("adamw8bit")
    start = whole.parameters["large"].detach().clone()
    whole.train(20)
    few.train(20)
    assert few.tensors()["state1/large"].dtype == torch.uint8
    assert few.tensors()["state1/small"].dtype == torch.float32
    far = (few.parameters["large"] - whole.parameters["large"]).detach().norm()
    assert float(far / (whole.parameters["large"].detach() - start).norm()) < 0.03
    torch.testing.assert_close(few.parameters["small"], whole.parameters["small"])


def test_an_optimizer_that_is_not_installed_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    check_optimizer("adamw")
    with pytest.raises(ConfigError, match=r"distill\.optimizer: 'adamw8bit' needs") as caught:
        make_optimizer("adamw8bit", [nn.Parameter(torch.zeros(1))], 0.0)
    assert "guidefold[lean]" in caught.value.remedy
    assert caught.value.exit_code == 2
