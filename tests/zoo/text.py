"""Tiny tokenizers, their vocabularies made here, and the text encoders that read them."""

import re
import string

from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16
T5_WIDTH = 32

# Words that get a token of their own. The last lines are Qwen-Image's template: the pipeline
# drops its first 34 tokens, which must be the template and neither less nor more.
CORPUS = """
a an the of in on at with and blue red green small big old cat dog bird house tree boat
photo painting drawing blurry low quality picture under over near
Describe the image by detailing the color, shape, size, texture, quantity, text, spatial
relationships of the objects and background:
system user assistant Prompt Start
"""
WORDS = re.findall(r"\w+", CORPUS)
BYTES = sorted(ByteLevel.alphabet())  # the letters that stand for bytes; "Ġ" is the space
PRINTABLE = string.ascii_letters + string.digits + string.punctuation

Vocabulary = dict[str, int]


def _byte_pairs(
    specials: list[str], alphabet: list[str], words: list[list[str]]
) -> tuple[Vocabulary, list[tuple[str, str]]]:
    """Merge until every word is one token; what is in the alphabet stays a token too.

    The `tokenizers` trainers would do, but break ties in another order in every run.
    """
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    merges = []
    while unfinished := [word for word in words if len(word) > 1]:
        words = unfinished
        pair = (words[0][0], words[0][1])
        merges.append(pair)
        vocabulary.setdefault("".join(pair), len(vocabulary))
        words = [_joined(word, pair) for word in words]
    return vocabulary, merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Replace each occurrence of the pair by one token, from the left."""
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def clip_tokenizer() -> CLIPTokenizer:
    vocabulary, merges = _byte_pairs(
        ["<|startoftext|>", "<|endoftext|>"],
        [*BYTES, *(f"{byte}</w>" for byte in BYTES)],
        [[*word[:-1], f"{word[-1]}</w>"] for word in map(str.lower, WORDS)],
    )
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip() -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = clip_tokenizer()
    return tokenizer, CLIPTextModel(_clip_config(tokenizer))


def clip_projected() -> tuple[CLIPTokenizer, CLIPTextModelWithProjection]:
    tokenizer = clip_tokenizer()
    return tokenizer, CLIPTextModelWithProjection(_clip_config(tokenizer))


def t5_tokenizer() -> T5Tokenizer:
    pieces = dict.fromkeys([f"▁{word}" for word in WORDS], -1.0)
    letters = dict.fromkeys(["▁", *PRINTABLE], -10.0)
    vocabulary = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, **pieces, **letters}
    return T5Tokenizer(vocab=list(vocabulary.items()), extra_ids=0, model_max_length=512)


def _t5_sizes(tokenizer: T5Tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": T5_WIDTH,
        "d_kv": 8,
        "d_ff": 2 * T5_WIDTH,
        "num_layers": 2,
        "num_heads": 2,
    }


def t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    tokenizer = t5_tokenizer()
    return tokenizer, T5EncoderModel(T5Config(**_t5_sizes(tokenizer)))


def umt5() -> tuple[T5Tokenizer, UMT5EncoderModel]:
    tokenizer = t5_tokenizer()
    return tokenizer, UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer)))


def gemma() -> tuple[GemmaTokenizer, Gemma2Model]:
    vocabulary, merges = _byte_pairs(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))],
        ["▁", *PRINTABLE],
        [list(f"▁{word}") for word in WORDS],
    )
    tokenizer = GemmaTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=512, add_bos_token=True
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return tokenizer, Gemma2Model(config)


def qwen() -> tuple[Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration]:
    vocabulary, merges = _byte_pairs(
        ["<|endoftext|>"],
        BYTES,
        [*map(list, WORDS), *(list(f"Ġ{word}") for word in WORDS)],
    )
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=2048,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return tokenizer, Qwen2_5_VLForConditionalGeneration(config)
