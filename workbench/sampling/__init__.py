"""Pictures sampled from a denoiser."""
