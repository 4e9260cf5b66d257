"""Qwen-Image and Qwen-Image-Edit: text and image in two streams that both depend on t."""
