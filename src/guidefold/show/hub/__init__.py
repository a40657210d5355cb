"""Publish a run on the hub: licence, model card, ComfyUI workflow, packed folder, upload."""
