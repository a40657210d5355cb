"""Guidefold's node for ComfyUI: put this folder into ``custom_nodes`` and start ComfyUI again."""

from .guidefold_lora import GuidefoldLora

NODE_CLASS_MAPPINGS = {"GuidefoldLora": GuidefoldLora}
NODE_DISPLAY_NAME_MAPPINGS = {"GuidefoldLora": "Guidefold LoRA"}
