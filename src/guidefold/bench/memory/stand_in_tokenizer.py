"""A tokenizer in the place of one whose vocabulary is not here; its tokens are words.

Memory depends on how many tokens there are. Most pipelines fill them up to a fixed number.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

CONFIG = "tokenizer_config.json"
PAD, UNKNOWN = "<pad>", "<word>"
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def stand_in(folder: Path) -> PreTrainedTokenizerFast:
    """Make one with the settings of the tokenizer that it stands for.

    Args:
        folder: The folder of its settings.
    """
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    words = Tokenizer(WordLevel({PAD: 0, UNKNOWN: 1}, unk_token=UNKNOWN))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=UNKNOWN,
        eos_token=UNKNOWN,
        unk_token=UNKNOWN,
        chat_template=TEMPLATE,
        model_max_length=settings["model_max_length"],
    )
