"""What a model is asked to draw."""
