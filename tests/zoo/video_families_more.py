"""More video pipelines on a transformer: EasyAnimate, Sana, Kandinsky 5, Motif and Helios."""

from itertools import pairwise
from typing import Any

from diffusers import (
    AutoencoderKLMagvit,
    ClassifierFreeGuidance,
    DPMSolverMultistepScheduler,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    Kandinsky5I2VPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from . import autoencoders, text
from .entry import NEGATIVE, SHORT, UNBINNED, entry
from .hunyuan_family import hunyuan_vae
from .image import HEADS, LATENT, ROPE, WIDTH, flow
from .video_families import CAT, SQUARE


def easyanimate() -> EasyAnimatePipeline:
    tokenizer, newer = text.qwen()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content[0].text }}{% endfor %}"
    config = Qwen2VLConfig(
        text_config=newer.config.text_config.to_dict() | {"model_type": "qwen2_vl_text"},
        vision_config={
            "depth": 1,
            "embed_dim": WIDTH,
            "hidden_size": WIDTH,
            "num_heads": 2,
        },
    )
    return EasyAnimatePipeline(
        tokenizer=tokenizer,
        text_encoder=Qwen2VLForConditionalGeneration(config),
        vae=AutoencoderKLMagvit(
            latent_channels=LATENT,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENT,
            out_channels=LATENT,
            patch_size=2,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
        ),
        scheduler=flow(),
    )


def _sana_parts() -> dict[str, Any]:
    tokenizer, text_encoder = text.gemma()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": autoencoders.wan(),
        "transformer": SanaVideoTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=WIDTH,
            caption_channels=text.WIDTH,
            sample_size=8,
            rope_max_seq_len=32,
        ),
    }


def sana_video() -> SanaVideoPipeline:
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    return SanaVideoPipeline(**_sana_parts(), scheduler=scheduler)


def sana_i2v() -> SanaImageToVideoPipeline:
    return SanaImageToVideoPipeline(**_sana_parts(), scheduler=flow(shift=8.0))


def _kandinsky5(
    pipeline: type[Kandinsky5T2VPipeline | Kandinsky5I2VPipeline],
) -> Kandinsky5T2VPipeline | Kandinsky5I2VPipeline:
    tokenizer, text_encoder = text.qwen()
    tokenizer_2, text_encoder_2 = text.clip()
    built = pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        tokenizer_2=tokenizer_2,
        text_encoder_2=text_encoder_2,
        vae=hunyuan_vae(),
        transformer=Kandinsky5Transformer3DModel(
            in_visual_dim=LATENT,
            in_text_dim=text.WIDTH,
            in_text_dim2=text.WIDTH,
            time_dim=16,
            out_visual_dim=LATENT,
            model_dim=WIDTH,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=ROPE,
            visual_cond=True,
        ),
        scheduler=flow(shift=5.0),
    )
    _fill(built)
    return built


def _fill(pipeline: Any) -> None:
    """Make the template before a prompt as many tokens as the pipeline drops."""
    template = pipeline.prompt_template.partition("{}")[0]
    tokens = pipeline.prompt_template_encode_start_idx
    cuts = [len(template) * k // tokens for k in range(tokens + 1)]
    pipeline.tokenizer.add_tokens([template[a:b] for a, b in pairwise(cuts)])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)


def kandinsky5() -> Kandinsky5T2VPipeline | Kandinsky5I2VPipeline:
    return _kandinsky5(Kandinsky5T2VPipeline)


def kandinsky5_i2v() -> Kandinsky5T2VPipeline | Kandinsky5I2VPipeline:
    return _kandinsky5(Kandinsky5I2VPipeline)


def motif_video() -> MotifVideoPipeline:
    tokenizer, text_encoder = text.t5()
    return MotifVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.wan(),
        transformer=MotifVideoTransformer3DModel(
            **HEADS,
            in_channels=2 * LATENT + 1,
            out_channels=LATENT,
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=text.T5_WIDTH,
            rope_axes_dim=ROPE,
        ),
        scheduler=flow(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=8.0),
    )


def helios() -> HeliosPipeline:
    tokenizer, text_encoder = text.umt5()
    return HeliosPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=autoencoders.wan(),
        transformer=HeliosTransformer3DModel(
            **HEADS,
            in_channels=LATENT,
            out_channels=LATENT,
            text_dim=text.T5_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_dim=(4, 2, 2),
        ),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True),
    )


EASY = SQUARE | NEGATIVE | {"num_frames": 9}
SANA = SHORT | UNBINNED | SQUARE | {"frames": 9, "complex_human_instruction": []}
KANDINSKY = SHORT | NEGATIVE | SQUARE | {"num_frames": 21}  # the last two even out the first

ENTRIES = {
    "easyanimate": entry(easyanimate, "flow", EASY),
    "sana_video": entry(sana_video, "flow", SANA),
    "sana_i2v": entry(sana_i2v, "flow", SANA, inputs=CAT, output="last along dimension 2"),
    "kandinsky5": entry(kandinsky5, "flow", KANDINSKY),
    "kandinsky5_i2v": entry(
        kandinsky5_i2v, "flow", KANDINSKY, inputs=CAT, output="last along dimension 1"
    ),
    "motif_video": entry(
        motif_video,
        "flow",
        SHORT | NEGATIVE | SQUARE | {"num_frames": 5},
        guidance="guider.guidance_scale",
    ),
    "helios": entry(
        helios,
        "flow",
        SHORT | SQUARE | {"num_frames": 5, "num_latent_frames_per_chunk": 2},
        sources=("teacher", "student"),  # its scheduler adds no noise
    ),
}
