import json
import time

import pytest
import torch

from teacher import stage as stage_module
from teacher.checkpoints import read_state, write_state
from teacher.measure_teacher import draw_captions, main, open_teacher
from teacher.stage import Stage, train
from teacher.train_teacher import TINY_RECIPE, publish, train_teacher

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")


class _CutOffError(Exception):
    pass


def _train(work, start=None):
    return train_teacher(
        TINY_RECIPE,
        work=work,
        deadline=time.monotonic() + 300,
        device=torch.device("cpu"),
        start=start,
    )


def _assert_same_states(first, second):
    folders = sorted(path.name for path in first.iterdir())
    assert folders == sorted(path.name for path in second.iterdir())
    for name in folders:
        one, its_facts = read_state(first / name)
        other, other_facts = read_state(second / name)
        assert its_facts == other_facts
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), (name, key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run that was never cut off: its work folder and its published teacher."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out") / "teacher"
    publish(_train(work), out)
    return work, out


def test_every_stage_takes_its_steps(whole):
    work, _ = whole
    names = {"autoencoder", "backgrounds", "decoder", "text", "denoiser", "stock"}
    assert {path.name for path in work.iterdir()} == names
    for name in names - {"stock"}:
        assert read_state(work / name)[1]["step"] == 2


def test_optimizer_moments_are_kept(whole):
    tensors, _ = read_state(whole[0] / "denoiser")
    for kind in ("parameter", "averaged", "exp_avg", "exp_avg_sq", "step"):
        assert any(name.startswith(f"{kind}.denoiser.") for name in tensors)


def test_the_decoder_stage_leaves_the_encoder_alone(whole):
    tensors, _ = read_state(whole[0] / "decoder")
    assert not any("encoder" in name.split(".")[1] for name in tensors)


@pytest.mark.parametrize("cut_stage", ["autoencoder", "decoder", "text", "denoiser"])
def test_a_run_cut_off_and_resumed_equals_one_that_ran_through(
    whole, tmp_path, monkeypatch, cut_stage
):
    advance = stage_module._Run.advance

    def cut(run):
        if run.stage.name == cut_stage and run.step == 1:
            raise _CutOffError
        return advance(run)

    monkeypatch.setattr(stage_module, "_SECONDS_BETWEEN_STATES", -1.0)
    monkeypatch.setattr(stage_module._Run, "advance", cut)
    with pytest.raises(_CutOffError):
        _train(tmp_path)
    monkeypatch.undo()
    assert read_state(tmp_path / cut_stage)[1]["step"] == 1
    assert _train(tmp_path) is not None
    _assert_same_states(whole[0], tmp_path)


def test_training_goes_on_from_a_published_teacher(whole, tmp_path):
    before, after = open_teacher(whole[1]), _train(tmp_path, start=open_teacher(whole[1]))
    states = [
        {
            name: part.state_dict()
            for name, part in p.components.items()
            if hasattr(part, "state_dict")
        }
        for p in (before, after)
    ]
    for name, tensors in states[0].items():
        same = all(torch.equal(value, states[1][name][key]) for key, value in tensors.items())
        assert same == (name == "vae"), name
    worst = max(
        float((value - states[1]["unet"][key]).abs().max())
        for key, value in states[0]["unet"].items()
    )
    assert worst < 0.01  # two steps away from where it began, not from scratch


def test_a_run_out_of_time_says_so_and_saves(tmp_path):
    pipeline = train_teacher(
        TINY_RECIPE, work=tmp_path, deadline=time.monotonic() - 1, device=torch.device("cpu")
    )
    assert pipeline is None
    assert read_state(tmp_path / "autoencoder")[1]["step"] == 0


def test_a_state_of_another_recipe_is_refused(tmp_path):
    module = torch.nn.Linear(2, 1)

    def stage(recipe):
        loss = lambda step: module(torch.ones(2)).sum()  # noqa: E731
        return Stage("line", tmp_path, {"line": module}, loss, 1, 1e-3, 0.9, recipe)

    assert train(stage({"seed": 1}), time.monotonic() + 60)
    with pytest.raises(ValueError, match="another recipe"):
        train(stage({"seed": 2}), time.monotonic() + 60)


def test_a_non_finite_gradient_is_never_applied(tmp_path):
    module = torch.nn.Linear(2, 1)
    before = module.weight.detach().clone()

    def loss(step):
        return module(torch.full((2,), float("inf"))).sum()

    with pytest.raises(FloatingPointError, match="line: gradient of step 0"):
        train(
            Stage("line", tmp_path, {"line": module}, loss, 1, 1e-3, 0.9, {}), time.monotonic() + 9
        )
    assert torch.equal(module.weight, before)
    assert read_state(tmp_path / "line") is None


def test_the_rate_rises_and_falls_to_zero(tmp_path):
    stage = Stage("line", tmp_path, {}, lambda step: torch.zeros(()), 1000, 1.0, 0.9, {})
    rates = [stage.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[100] == rates[300] == 1.0
    assert rates[650] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01


def test_an_interrupted_write_leaves_the_old_state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    write_state(folder, {"a": torch.zeros(2)}, {"step": 1})
    # cut off between the two renames: the old state stands under its other name
    folder.rename(tmp_path / "state.old")
    tensors, facts = read_state(folder)
    assert facts == {"step": 1}
    assert torch.equal(tensors["a"], torch.zeros(2))


def test_the_published_folder_holds_safetensors_and_json_only(whole):
    files = [path for path in whole[1].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".txt"}
    assert all(path.stat().st_mode & 0o044 for path in files)


def test_a_teacher_that_went_on_does_not_say_where_it_came_from(whole, tmp_path):
    out = tmp_path / "teacher"
    publish(_train(tmp_path / "work", start=open_teacher(whole[1])), out)
    assert not any(str(whole[1]) in path.read_text() for path in out.rglob("*.json"))
    open_teacher(out)


def test_publishing_again_keeps_the_model_card(whole):
    work, out = whole
    (out / "README.md").write_text("a card")
    publish(_train(work), out)
    assert (out / "README.md").read_text() == "a card"
    (out / "README.md").unlink()


def test_the_published_teacher_draws_the_same_from_the_same_seed(whole):
    teacher = open_teacher(whole[1])
    captions = ["a red circle", "two blue stars"]
    first, second = (
        draw_captions(teacher, captions, guidance_scale=3.0, steps=2, seed=4) for _ in range(2)
    )
    assert [one.tobytes() for one in first] == [two.tobytes() for two in second]
    assert first[0].size == (64, 64)


def test_measuring_writes_its_numbers_and_sheets(whole, tmp_path, capsys):
    arguments = [str(whole[1]), "--prompts", "6", "--steps", "2", "--scales", "1", "3"]
    arguments += ["--device", "cpu", "--json", str(tmp_path / "t.json")]
    assert main([*arguments, "--sheets", str(tmp_path / "sheets")]) == 0
    numbers = json.loads((tmp_path / "t.json").read_text())
    assert list(numbers["aligned"]) == ["1", "3"]
    assert numbers["prompts"] == 6
    assert "| g | all | single object |" in capsys.readouterr().out
    assert (tmp_path / "sheets" / "g-3.png").is_file()
