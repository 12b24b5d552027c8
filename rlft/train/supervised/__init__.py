"""Supervised fine-tuning on a table of texts or conversations: `rlft sft`."""
