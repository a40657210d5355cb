"""The demo's prompts: what is held out, and how the categories share the rest."""

from collections import Counter

from guidefold.api import load_settings
from guidefold.demo import category
from guidefold.demo.captions import is_unseen
from guidefold.pipeline import load_prompts, split_prompts
from teacher.write_prompts import FROM_EACH, demo_prompts


def test_the_packages_file_is_what_the_script_writes() -> None:
    assert [prompt.text for prompt in load_prompts("world-balanced")] == demo_prompts()


def test_both_lists_hold_out_the_same_prompts_in_the_same_order() -> None:
    """So that runs on either are measured alike."""
    share = load_settings("demo").prompts.held_out_share
    balanced, first = (
        split_prompts(load_prompts(f"world{x}"), share)[1] for x in ("-balanced", "")
    )
    assert [prompt.text for prompt in balanced] == [prompt.text for prompt in first]


def test_held_out_prompts_are_captions_that_the_teacher_never_saw() -> None:
    settings = load_settings("demo").prompts
    _, held_out = split_prompts(load_prompts(settings.path), settings.held_out_share)
    assert len(held_out) > 512
    assert all(is_unseen(prompt.text) for prompt in held_out)


def test_categories_share_the_training_prompts() -> None:
    settings = load_settings("demo").prompts
    training, _ = split_prompts(load_prompts(settings.path), settings.held_out_share)
    counts = Counter(category(prompt.text) for prompt in training)
    assert max(counts.values()) == FROM_EACH
    assert min(counts.values()) > FROM_EACH / 2
