"""The method of the paper as pure functions of tensors."""
