"""LightningModules: thin shells that call networks, the pure functions and `log`."""
