"""Distances between sets of pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guidefold.demo.judge import see_features
from guidefold.demo.world import PICTURE_SIZE
from guidefold.ground.errors import InputError
from guidefold.judge.features import VisionModel, compare, frechet_distance, recall
from guidefold.pipeline.vision_model import CLIP

RNG = np.random.default_rng(0)


def cloud(count: int, size: int, shift: float = 0.0) -> Any:
    mix = np.random.default_rng(size).normal(size=(size, size))
    return RNG.normal(size=(count, size)) @ mix + shift


class TestFrechetDistance:
    def test_in_one_dimension_is_the_gap_of_means_and_of_deviations(self) -> None:
        one, two = cloud(40, 1), 3 * cloud(50, 1, shift=2.0)
        means, spreads = one.mean() - two.mean(), one.std(ddof=1) - two.std(ddof=1)
        assert frechet_distance(one, two) == pytest.approx(means**2 + spreads**2)

    def test_of_a_set_and_itself_is_zero(self) -> None:
        one = cloud(60, 5)
        assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)

    def test_of_a_set_and_itself_moved_is_the_square_of_the_way(self) -> None:
        one = cloud(60, 5)
        assert frechet_distance(one, one + 0.5) == pytest.approx(5 * 0.25)

    def test_does_not_depend_on_the_order_or_on_a_turn_of_the_axes(self) -> None:
        one, two = cloud(60, 4), cloud(70, 4, shift=1.0) ** 2
        turn = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
        there = frechet_distance(one, two)
        assert frechet_distance(two, one) == pytest.approx(there)
        assert frechet_distance(one @ turn, two @ turn) == pytest.approx(there)

    def test_agrees_with_the_root_of_the_product_taken_as_a_matrix(self) -> None:
        """The textbook's way: the principal root of C1 C2, by its own eigenvectors."""
        one, two = cloud(60, 4), cloud(70, 4, shift=1.0) ** 2
        first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
        values, vectors = np.linalg.eig(first @ second)
        root = vectors @ np.diag(np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)
        gap = one.mean(0) - two.mean(0)
        whole = gap @ gap + np.trace(first + second - 2 * root.real)
        assert frechet_distance(one, two) == pytest.approx(whole)

    def test_more_features_than_pictures_are_no_obstacle(self) -> None:
        assert math.isfinite(frechet_distance(cloud(5, 12), cloud(6, 12)))


class TestRecall:
    def test_agrees_with_counting(self) -> None:
        reference, made = cloud(30, 3), cloud(25, 3, shift=3.0)
        near = 0
        for point in reference:
            for centre in made:
                radius = sorted(float(np.linalg.norm(centre - other)) for other in made)[3]
                if float(np.linalg.norm(point - centre)) <= radius:
                    near += 1
                    break
        assert 0 < near < 30
        assert recall(reference, made) == near / 30

    def test_what_is_left_out_is_not_recalled(self) -> None:
        left, right = cloud(40, 2), cloud(40, 2, shift=1000.0)
        assert recall(np.concatenate([left, right]), left) == 0.5
        assert recall(left, np.concatenate([left, right])) == 1.0


@pytest.mark.parametrize(("count", "known"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_too_few_pictures_have_no_distance(count: int, known: int) -> None:
    found = compare(cloud(9, 3), cloud(count, 3))
    assert sum(value is not None for value in found.values()) == known


def picture(colour: str, size: int = PICTURE_SIZE) -> Image.Image:
    sheet = Image.new("RGB", (size, size), "white")
    sheet.paste(Image.new("RGB", (size // 3, size // 3), colour), (size // 3, size // 3))
    return sheet


def test_the_judges_features_tell_things_and_colours_apart() -> None:
    red, again, blue, nothing = see_features(
        [picture("red"), picture("red"), picture("blue"), Image.new("RGB", (64, 64), "white")]
    )
    assert np.array_equal(red, again)
    assert np.abs(red - blue).sum() > 1
    assert np.abs(red - nothing).sum() > 1
    assert np.isfinite([red, blue, nothing]).all()


def test_a_vision_models_features_do_not_depend_on_the_pictures_beside(vision: Path) -> None:
    model = VisionModel(str(vision))
    pictures = [picture(c) for c in ("red", "blue", "green")] * 15
    together = model(pictures)
    assert together.shape == (45, 16)
    assert together.dtype == np.float64
    alone = np.concatenate([model([p]) for p in pictures[:3]])
    np.testing.assert_allclose(together[:3], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_the_clip_score_is_the_mean_cosine_times_a_hundred(clip: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip).eval()
    prompts = ["a red square", "two blue rings", "a ring", "a big green cross", "blue"]
    pictures = [picture(c) for c in ("red", "blue", "green", "white", "black")]
    pixels = AutoImageProcessor.from_pretrained(clip, backend="pil")(pictures, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(clip)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = model(**pixels, **tokens)
    cosines = (whole.image_embeds * whole.text_embeds).sum(1)
    expected = (100 * cosines.clamp(min=0)).tolist()
    assert max(expected) > 0
    assert VisionModel(str(clip), setting=CLIP).scores(pictures, prompts) == pytest.approx(
        expected, rel=1e-4
    )


def test_what_is_no_vision_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dinov2-small"):
        VisionModel(str(tmp_path))
