"""All that knows the family of Qwen-Image-2.1."""
