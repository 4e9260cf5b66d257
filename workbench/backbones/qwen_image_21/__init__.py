"""The family of Qwen-Image-2.1; nothing outside this folder depends on its details."""
