"""rlft: reinforcement-learning fine-tuning of language models.

Start with `rlft.types`; the loop is `rlft.train.rl.loop`. Importing this package loads nothing heavy.
"""

__version__ = "0.1.0"
