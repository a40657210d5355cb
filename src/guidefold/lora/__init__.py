"""The LoRA: its layers, its weights, and the dial from its strength to the guidance scale."""
