"""Tiny real diffusers pipelines with seeded random weights, for tests.

Each is the class that users run, with every width cut down: a call takes milliseconds, and what
it does around the denoiser (text, batching, guidance, output) is what the full one does.
"""

from diffusers import DiffusionPipeline

from . import (
    audio,
    hunyuan_family,
    image,
    image_chat,
    image_families,
    image_families_more,
    image_hunyuan,
    image_qwen,
    image_variants,
    stable_diffusion,
    stable_diffusion_2_variants,
    stable_diffusion_variants,
    stable_diffusion_xl_variants,
    unets,
    unets_more,
    unets_rest,
    unets_sound,
    video,
    video_families,
    video_families_more,
    video_sound,
    wan_family,
)
from .entry import Entry
from .selection import FACTS, FEW_STEPS, choose, features_of, few_steps_features_of

__all__ = [
    "CHOSEN",
    "CHOSEN_IN_FEW_STEPS",
    "REST",
    "UNFOLDABLE",
    "WARNINGS",
    "WIDE",
    "ZOO",
    "Entry",
    "build",
]

CORE = (stable_diffusion, image, video)
REST = {
    "stable_diffusion": (
        stable_diffusion_variants,
        stable_diffusion_2_variants,
        stable_diffusion_xl_variants,
    ),
    "unets": (unets, unets_more, unets_rest, unets_sound),
    "images": (
        image_variants,
        image_qwen,
        image_chat,
        image_families,
        image_families_more,
        image_hunyuan,
    ),
    "videos": (
        wan_family,
        hunyuan_family,
        video_families,
        video_families_more,
        video_sound,
        audio,
    ),
}
"""Rooms of the wide zoo, by the file of tests that goes through them."""

ZOO: dict[str, Entry] = {name: entry for room in CORE for name, entry in room.ENTRIES.items()}
"""Foldable pipelines of the families that most people use: every test may run over them."""

WIDE: dict[str, Entry] = {
    name: entry for rooms in REST.values() for room in rooms for name, entry in room.ENTRIES.items()
}
"""All others that can be folded: ``test_road_...py`` run over them, the whole road each."""

CHOSEN = choose({name: features_of(entry, FACTS[name]) for name, entry in WIDE.items()})
"""Those of the wide zoo that every push walks; ``pytest --whole-zoo`` walks all."""

CHOSEN_IN_FEW_STEPS = choose(
    {name: few_steps_features_of((ZOO | WIDE)[name], facts) for name, facts in FEW_STEPS.items()}
)
"""Those of all that every push walks with a student of fewer steps."""

UNFOLDABLE: dict[str, Entry] = {
    name: entry
    for room in (*CORE, *(room for rooms in REST.values() for room in rooms))
    for name, entry in getattr(room, "UNFOLDABLE", {}).items()
}
"""Pipelines with a guidance argument whose guidance cannot be folded."""

WARNINGS = (
    # Schedulers call `numpy.array` on a tensor, whose `__array__` is older than numpy 2.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:diffusers.schedulers",
    # The same, met by numpy on the way back.
    "ignore:__array_wrap__ must accept context:DeprecationWarning:numpy",
    # An autoencoder of sound is normalised in the old way.
    "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning:torch.nn.utils.weight_norm",
    # Two pipelines ask for half precision in places, whatever the device.
    "ignore:In CPU autocast:UserWarning:torch.amp.autocast_mode",
    "ignore:In CPU autocast:UserWarning:diffusers",
    # Diffusers warns of its own default.
    "ignore:`callback_steps` is deprecated:FutureWarning:diffusers.pipelines.kandinsky2_2",
    "ignore:`LoraLoaderMixin` is deprecated:FutureWarning:diffusers.loaders.lora_pipeline",
    # Chroma imports its rotary embedding from the old place.
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers.models.embeddings",
)
"""What diffusers itself warns of here, for `pytest.mark.filterwarnings(*WARNINGS)`."""


def build(name: str) -> DiffusionPipeline:
    """Build a pipeline of any of the dictionaries afresh."""
    return (ZOO | WIDE | UNFOLDABLE)[name].build()
