"""A language model: its folder, tokenizer and chat format, packed forward passes, and adapter tensors."""
