"""Tiny tokenizers and text encoders of the image families that read text in a way of their own."""

from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from . import text

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SIZES: dict[str, Any] = {
    "hidden_size": text.WIDTH,
    "intermediate_size": 2 * text.WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HEAD = {"head_dim": 8}


def _specials(tokenizer: Any) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def glm() -> tuple[CLIPTokenizer, GlmModel]:
    """GLM's own tokenizer is not a class; CLIP's also puts tokens around an empty text."""
    tokenizer = text.clip_tokenizer()
    return tokenizer, GlmModel(GlmConfig(**SIZES, **HEAD, **_specials(tokenizer)))


def bert() -> tuple[BertTokenizer, BertModel]:
    words = dict.fromkeys(map(str.lower, text.WORDS))
    letters = [*text.PRINTABLE, *(f"##{letter}" for letter in text.PRINTABLE)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys([*specials, *words, *letters]))}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=77)
    sizes = {**SIZES, "num_key_value_heads": None}
    config = BertConfig(**sizes, **_specials(tokenizer), max_position_embeddings=77)
    return tokenizer, BertModel(config)


def chat_tokenizer() -> Qwen2Tokenizer:
    """With the template and the tokens that stand for pictures."""
    vocabulary, merges = text._byte_pairs(
        ["<|endoftext|>"],
        text.BYTES,
        [*map(list, text.WORDS), *(list(f"Ġ{word}") for word in text.WORDS)],
    )
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=2048,
        additional_special_tokens=SPECIALS,
        chat_template=CHAT,
    )


def qwen3() -> tuple[Qwen2Tokenizer, Qwen3Model]:
    tokenizer = chat_tokenizer()
    return tokenizer, Qwen3Model(Qwen3Config(**SIZES, **HEAD, **_specials(tokenizer)))


def qwen3_vl_whole(layers: int = 2) -> tuple[Qwen2Tokenizer, Qwen3VLForConditionalGeneration]:
    tokenizer = chat_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    identify = tokenizer.convert_tokens_to_ids
    sizes = {"rope_parameters": rope, "num_hidden_layers": layers}
    config = Qwen3VLConfig(
        text_config=SIZES | HEAD | _specials(tokenizer) | sizes,
        vision_config={
            "depth": 1,
            "hidden_size": text.WIDTH,
            "intermediate_size": 2 * text.WIDTH,
            "num_heads": 2,
            "out_hidden_size": text.WIDTH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=identify("<|image_pad|>"),
        vision_start_token_id=identify("<|vision_start|>"),
        vision_end_token_id=identify("<|vision_end|>"),
    )
    return tokenizer, Qwen3VLForConditionalGeneration(config)


def qwen3_vl() -> tuple[Qwen2Tokenizer, Qwen3VLModel]:
    tokenizer, whole = qwen3_vl_whole()
    return tokenizer, whole.model


def smol() -> tuple[Qwen2Tokenizer, SmolLM3ForCausalLM]:
    """Bria writes an empty text as token 128000, so the vocabulary must be as large as that."""
    tokenizer = chat_tokenizer()
    sizes = {**SIZES, **_specials(tokenizer), "vocab_size": 128_001, "hidden_size": 8}
    return tokenizer, SmolLM3ForCausalLM(SmolLM3Config(**sizes))


def llama() -> tuple[CLIPTokenizer, LlamaForCausalLM]:
    """Llama's own tokenizer is not a class; CLIP's also puts tokens around an empty text."""
    tokenizer = text.clip_tokenizer()
    return tokenizer, LlamaForCausalLM(LlamaConfig(**SIZES, **_specials(tokenizer)))


def mistral3() -> tuple[CLIPTokenizer, Mistral3Model]:
    tokenizer = text.clip_tokenizer()
    config = Mistral3Config(
        text_config=SIZES | HEAD | _specials(tokenizer) | {"model_type": "ministral3"},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": text.WIDTH,
            "intermediate_size": 2 * text.WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    return tokenizer, Mistral3Model(config)


def qwen2_5_vl() -> tuple[Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration]:
    """As :func:`text.qwen`, with a tokenizer that knows pictures."""
    tokenizer = chat_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    identify = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=SIZES | _specials(tokenizer) | {"rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": text.WIDTH,
            "intermediate_size": 2 * text.WIDTH,
            "num_heads": 2,
            "out_hidden_size": text.WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=identify("<|image_pad|>"),
        vision_start_token_id=identify("<|vision_start|>"),
        vision_end_token_id=identify("<|vision_end|>"),
    )
    return tokenizer, Qwen2_5_VLForConditionalGeneration(config)
