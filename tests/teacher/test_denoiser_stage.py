import pytest
import torch

from teacher.components import TINY, make_denoiser, make_scheduler
from teacher.denoiser_stage import FOCUS, Naming, loss_weights, timestep_places


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_timesteps_fill_the_batch_and_stay_within_the_range(batch):
    places = timestep_places(batch, torch.Generator().manual_seed(0))
    assert places.shape == (batch,)
    assert (places >= 0).all()
    assert (places <= 1).all()


def test_each_focus_gets_its_share_beside_the_even_rest():
    places = timestep_places(1000, torch.Generator().manual_seed(0))
    rest = 1 - sum(share for _, _, share in FOCUS)
    for low, high, share in FOCUS:
        inside = ((places >= low) & (places < high)).float().mean()
        assert inside == pytest.approx(share + rest * (high - low), abs=0.01)


def test_errors_count_fully_in_noise_and_hardly_where_noise_is_nearly_gone():
    alphas = make_scheduler().alphas_cumprod
    weights = loss_weights(alphas)
    assert weights[-1] == 1
    assert weights[0] < 0.05
    assert (weights.diff() >= 0).all()


def test_naming_is_right_only_where_its_features_say_so():
    denoiser = make_denoiser(TINY)
    naming = Naming(denoiser)
    labels = torch.randint(0, 7, (2, 2, 16, 16))
    with torch.no_grad():
        naming.layer.weight.zero_()
        naming.layer.bias.zero_()
        denoiser(
            torch.randn(2, 4, 16, 16), torch.tensor([3, 5]), torch.randn(2, 4, TINY.text_width)
        )
        chance = naming(labels)
    torch.testing.assert_close(chance, torch.tensor(naming.choices).float().log().sum())


def test_the_lesson_in_naming_reaches_the_denoiser():
    denoiser = make_denoiser(TINY)
    naming = Naming(denoiser)
    denoiser(torch.randn(1, 4, 16, 16), torch.tensor([3]), torch.randn(1, 4, TINY.text_width))
    naming(torch.zeros(1, 2, 16, 16, dtype=torch.long)).backward()
    assert denoiser.conv_in.weight.grad.abs().sum() > 0
    assert denoiser.down_blocks[1].attentions[0].proj_in.weight.grad.abs().sum() > 0
