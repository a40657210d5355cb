"""Write the demo's prompts: `python -m teacher.write_prompts FILE`.

Half of the world's captions are of two objects and their relation, and few of one object or of
several alike. Training on captions by lot leaves guidance unfolded in the rare categories, so all
give equally many here, until a small one is used up. The prompts that are held out are captions
that the teacher's own training never saw; the others may be any.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from guidefold.demo import CATEGORIES, all_facts, unseen_captions
from guidefold.pipeline import Prompt, split_prompts

UNSEEN = 1500
HELD_OUT_SHARE = 0.35  # as in the preset
FROM_EACH = 164
"""Training captions of each category, if it has as many."""


def demo_prompts() -> list[str]:
    """The captions, those that the preset holds out first."""
    _, held_out = _split(unseen_captions(UNSEEN))
    chosen: list[str] = []
    for category in CATEGORIES:
        captions = [facts.caption for facts in all_facts() if facts.category == category]
        training, _ = _split(captions)
        random.Random(f"training captions {category}").shuffle(training)
        chosen += training[:FROM_EACH]
    return held_out + chosen


def _split(captions: list[str]) -> tuple[list[str], list[str]]:
    """The captions that are trained on, and those that are held out."""
    prompts = [Prompt(caption, f"caption {k}") for k, caption in enumerate(captions, 1)]
    training, held_out = split_prompts(prompts, HELD_OUT_SHARE)
    return [prompt.text for prompt in training], [prompt.text for prompt in held_out]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    given.file.write_text("\n".join(demo_prompts()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
