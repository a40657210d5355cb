"""A run for the hub: licence, model card, ComfyUI workflow, the packed folder, its upload."""
