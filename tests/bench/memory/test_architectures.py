"""Published architectures: their true sizes, and inputs that they take."""

from pathlib import Path

import pytest
import torch

from guidefold.bench.memory.architectures import Part, load_architecture, make_inputs, names
from guidefold.ground.errors import ConfigError
from guidefold.listen.output_map import output_tensor

PUBLISHED = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684, "sd3": 2_028_328_000}


def count(part: Part) -> int:
    return sum(p.numel() for p in part.build(torch.float32).parameters())


def test_the_denoisers_are_named_by_their_published_sizes() -> None:
    assert {name: load_architecture(name).denoiser.parameters for name in names()} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_part_has_as_many_parameters_as_the_published_one(name: str) -> None:
    found = load_architecture(name)
    for part in (found.denoiser, found.autoencoder, *found.encoders.values()):
        assert count(part) == part.parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_denoiser_takes_its_inputs_and_answers_in_the_latents_shape(name: str) -> None:
    found = load_architecture(name)
    sizes = found.sizes(2, found.size)
    inputs = make_inputs(found.denoiser.inputs, sizes, torch.float32, "meta")
    latents = next(iter(inputs.values()))
    out = output_tensor(found.denoiser.build(torch.float32)(**inputs))
    assert out.shape == latents.shape
    assert latents.shape[2] == found.size // 8 == found.denoiser.config["sample_size"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_autoencoder_gives_latents_of_the_denoisers_shape(name: str) -> None:
    found = load_architecture(name)
    sizes = found.sizes(1, 256)
    pictures = make_inputs(found.autoencoder.inputs, sizes, torch.float32, "meta")
    encoded = found.autoencoder.build(torch.float32).encode(**pictures)  # type: ignore[operator]
    wanted = make_inputs(found.denoiser.inputs, sizes, torch.float32, "meta")
    assert encoded.latent_dist.mean.shape == next(iter(wanted.values())).shape


@pytest.mark.parametrize("size", [0, -64, 8, 500])
def test_a_size_that_gives_no_latents_is_refused_by_name(size: int) -> None:
    with pytest.raises(ConfigError, match=f"--size {size}: not a multiple of 64"):
        load_architecture("sd15").sizes(1, size)


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="Use sd15, sd21, sd3, sdxl"):
        load_architecture("sd16")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "describes no architecture"),
        ("title = 3", "describes no architecture"),
        ("title =", "not a TOML file"),
    ],
)
def test_a_file_that_describes_no_architecture_is_refused_by_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        load_architecture(str(path))
