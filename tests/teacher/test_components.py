import pytest
import torch

from guidefold.demo.captions import all_facts, words
from teacher.components import (
    BUNDLED,
    LATENT_SIZE,
    TINY,
    TOKENS,
    make_autoencoder,
    make_denoiser,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
)
from teacher.denoiser_stage import loss_weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_every_word_is_one_token(tokenizer):
    for word in words():
        assert len(tokenizer(word).input_ids) == 3


def test_every_caption_fits_and_comes_back(tokenizer):
    captions = [facts.caption for facts in all_facts()[::29]]
    for tokens, caption in zip(tokenizer(captions).input_ids, captions, strict=True):
        assert len(tokens) == len(caption.split()) + 2 <= TOKENS
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == caption


def test_different_words_are_different_tokens(tokenizer):
    assert len({tokenizer(word).input_ids[1] for word in words()}) == len(words())


def test_parts_fit_together():
    autoencoder, denoiser = make_autoencoder(TINY), make_denoiser(TINY)
    latents = autoencoder.encode(torch.zeros(2, 3, 64, 64)).latent_dist.mean
    assert latents.shape == (2, 4, LATENT_SIZE, LATENT_SIZE)
    said = make_text_encoder(TINY)(torch.zeros(2, TOKENS, dtype=torch.long)).last_hidden_state
    assert denoiser(latents, torch.tensor([1, 999]), said).sample.shape == latents.shape
    assert autoencoder.decode(latents).sample.shape == (2, 3, 64, 64)


def test_the_bundled_denoiser_is_small():
    parameters = sum(one.numel() for one in make_denoiser(BUNDLED).parameters())
    assert 3e6 < parameters < 6e6


def test_pure_noise_has_full_weight_in_the_loss():
    alphas = make_scheduler().alphas_cumprod
    weights = loss_weights(alphas)
    assert alphas[-1] == pytest.approx(0, abs=1e-6)
    assert weights[-1] == 1
    assert (weights > 0).all()
    assert (weights.diff() >= 0).all()
