"""A full copy of the weights as the student, where an adapter would be."""

from typing import Any

import pytest
import torch
from torch import nn

from guidefold.bench.fidelity.copy import CopiedWeights, FullCopy, copy_weights, write_copy
from guidefold.bench.fidelity.trials import train_with
from guidefold.judge.evaluate import evaluate_weights
from guidefold.run.folder import RunFolder
from guidefold.run.settings import Settings
from guidefold.run.tensors import read_tensors
from guidefold.session import open_session


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def train(copy: FullCopy) -> torch.Tensor:
    x = torch.ones(1, 3)
    with copy.student_mode(1.0):
        copy.denoiser(x).sum().backward()
    with torch.no_grad():
        for parameter in copy.named_parameters().values():
            parameter.sub_(0.1 * parameter.grad)
    return x


def test_the_teacher_answers_as_before_while_the_copy_learns() -> None:
    plain, taught = layer(), layer()
    copy = FullCopy(taught)
    x = train(copy)
    with copy.teacher_mode():
        assert torch.equal(taught(x), plain(x))
        assert not taught(x).requires_grad
        with copy.teacher_mode():
            pass
    assert not torch.equal(taught(x), plain(x))
    copy.detach()
    assert torch.equal(taught(x), plain(x))
    assert not any(p.requires_grad for p in taught.parameters())


def test_every_weight_learns() -> None:
    copy = FullCopy(layer())
    train(copy)
    fresh = layer().state_dict()
    assert copy.state_dict().keys() == fresh.keys()
    for name, tensor in copy.state_dict().items():
        assert not torch.equal(tensor, fresh[name])


@pytest.fixture(scope="module")
def copied(settings_for: Any, tmp_path_factory: Any) -> Settings:
    settings = settings_for(
        "sd15",
        tmp_path_factory.mktemp("copied"),
        adapter={"dial": False},
        distill={"learning_rate": 1e-3, "preview_prompts": 0},
        evaluate={"dial_prompts": 0},
    )
    train_with(settings, copy_weights)
    with open_session(settings) as session:
        write_copy(session)
    return settings


def test_what_is_trained_is_what_is_written_and_measured(copied: Settings) -> None:
    trained = read_tensors(RunFolder(copied.run).checkpoints()[-1] / "adapter.safetensors")
    with open_session(copied) as session:
        before = {n: p.clone() for n, p in session.denoiser.named_parameters()}
        weights = CopiedWeights()
        weights.load(session, 1.0)
        assert trained.keys() == before.keys()
        for name, parameter in session.denoiser.named_parameters():
            assert torch.equal(parameter, trained[name])
        assert any(not torch.equal(trained[n], before[n]) for n in before)
        with weights.off(session.denoiser):
            for name, parameter in session.denoiser.named_parameters():
                assert torch.equal(parameter, before[name])
        weights.fuse(session.denoiser)
        for name, parameter in session.denoiser.named_parameters():
            assert torch.equal(parameter, trained[name])


def test_it_is_measured_as_an_adapter_is(copied: Settings) -> None:
    with open_session(copied) as session:
        results = evaluate_weights(session, None, CopiedWeights()).to_json()
    assert results["adapter_bytes"] >= results["denoiser_bytes"], "a full copy is kept"
    assert results["residual_guidance"]["teacher_states"]["mean"] != pytest.approx(1)
    assert 2 * results["student"]["passes_per_image"] == results["teacher"]["passes_per_image"]


def test_a_copy_has_no_dial(copied: Settings) -> None:
    with open_session(copied) as session, pytest.raises(AssertionError, match="one strength"):
        CopiedWeights().load(session, 0.5)
