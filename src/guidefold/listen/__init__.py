"""Listen to a pipeline at its scheduler's step and its denoiser's calls: the seam of diffusers."""
