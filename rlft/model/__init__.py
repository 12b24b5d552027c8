"""A model's folder, its tokenizer and chat format, packed forward passes, adapter tensors, export."""
