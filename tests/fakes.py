"""Small real things for fast tests: a two-layer Llama with a byte tokenizer in a folder, tasks, and rewards."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlft.environment.contract import Environment
from rlft.types import Task

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the four marks of the chat template; the end mark has id 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, context: int = 256) -> Path:
    """A random Llama of 2 layers (50k parameters) and its tokenizer, loadable like any model."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def letters(num_train: int = 8, num_heldout: int = 8) -> Environment:
    """Tasks for the tiny model: reply with the letter `a`."""

    def task(split: str, index: int) -> Task:
        return Task(
            id=f"{split}-{index}",
            messages=({"role": "user", "content": f"{split}{index}"},),
            answer="a",
            columns={"difficulty": index},
        )

    return Environment(
        train=[task("train", i) for i in range(num_train)],
        heldout=[task("heldout", i) for i in range(num_heldout)],
        demonstrations=[
            ({"role": "user", "content": f"demo{i}"}, {"role": "assistant", "content": "a" * (1 + i % 3)})
            for i in range(16)
        ],
    )


def share_of_a(completion: str, answer: str) -> float:
    """Share of the reply's characters that are the wanted letter; dense, so that every group has signal."""
    return completion.count(answer) / max(1, len(completion))


def first_letter(completion: str, answer: str) -> float:
    """1 when the reply begins with the wanted letter."""
    return float(completion.startswith(answer))
