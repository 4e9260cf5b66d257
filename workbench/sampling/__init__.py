"""Pictures from a denoiser."""
