"""The bundled teacher, the world that it draws, and the judge that reads its pictures."""

from guidefold.demo.captions import (
    CATEGORIES,
    COLOURS,
    RELATIONS,
    all_facts,
    unseen_captions,
    words,
)
from guidefold.demo.few_steps import with_fewer_steps
from guidefold.demo.judge import category, judge_of, judge_pictures
from guidefold.demo.shapes import SHAPES
from guidefold.demo.world import (
    PICTURE_SIZE,
    draw_labels,
    draw_pictures,
    draw_seen_facts,
    fact_table,
    seen_ids,
    spoil,
)

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "PICTURE_SIZE",
    "RELATIONS",
    "SHAPES",
    "all_facts",
    "category",
    "draw_labels",
    "draw_pictures",
    "draw_seen_facts",
    "fact_table",
    "judge_of",
    "judge_pictures",
    "seen_ids",
    "spoil",
    "unseen_captions",
    "with_fewer_steps",
    "words",
]
