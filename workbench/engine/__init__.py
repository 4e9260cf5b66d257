"""One optimiser step, fast and safe."""
