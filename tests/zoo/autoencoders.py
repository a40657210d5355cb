"""Tiny autoencoders. No zoo test needs good pictures, only the right shapes and scale factors."""

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)

CHANNELS = 4


def kl(levels: int = 2, shift: float | None = None) -> AutoencoderKL:
    """Shrink by `2 ** (levels - 1)` on each side; flow-matching pipelines need a shift."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift,
        force_upcast=False,
    )


def deep_compression() -> AutoencoderDC:
    """Sana's: shrink by 2 on each side, to four channels."""
    return AutoencoderDC(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )


def qwen_image() -> AutoencoderKLQwenImage:
    """Shrink by 2 on each side."""
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )


def wan() -> AutoencoderKLWan:
    """Shrink by 4 on each side and by 4 in time."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )


def ltx() -> AutoencoderKLLTXVideo:
    """Shrink by 8 on each side and by 8 in time."""
    return AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False,) * 4,
        downsample_type=("conv",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=1,
    )


def cogvideox() -> AutoencoderKLCogVideoX:
    """Shrink by 8 on each side and by 4 in time."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=32,
        sample_width=32,
    )
