"""Layers of a language model as rlft computes them: attention over packed rows, LoRA, decoder layers, log-probs."""
