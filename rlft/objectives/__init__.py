"""Pure functions of tensors: advantages, policy objectives, and the named algorithms made of them."""
