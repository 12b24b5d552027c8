"""Small real things for fast tests: a two-layer Llama with a byte tokenizer in a folder, tasks, rewards, and groups."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from rlft.config import RunConfig
from rlft.environment.contract import Environment
from rlft.train.rl.metrics import is_of_the_machine
from rlft.types import Completion, FinishReason, Group, Outcome, Score, Task, Trajectory, Turn

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


def save_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    context: int = 256,
    head_dim: int = 8,
    tied: bool = True,
    family: type[PreTrainedConfig] = LlamaConfig,
    **changes: Any,
) -> Path:
    """A random model of 2 layers, a Llama (50k parameters) if left out, and its tokenizer, loadable like any model."""
    tokenizer = byte_tokenizer()
    config = family(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=context,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=tied,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
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


def tiny_config(source: Path | str, **changes: Any) -> RunConfig:
    """A config of the tiny model in float32 on one thread; `changes` replace top-level keys, mappings are merged in."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "steps": 4,
        "tasks_per_step": 2,
        "samples_per_task": 4,
        "backend": "inline",
        "model": {"source": str(source), "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "environment": {"path": "tests.fakes:letters"},
        "rewards": [{"path": "tests.fakes:share_of_a"}],
        "scoring": {"workers": 0, "check": "off"},  # rewards of tests are made to go wrong
        "sampling": {"max_new_tokens": 8},
        "rollout": {"threads": 1},
        "learner": {"threads": 1},
    }
    for key, value in changes.items():
        both_are_mappings = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = {**tree[key], **value} if both_are_mappings else value
    return RunConfig.model_validate(tree)


def made_up_group(
    outcomes: Sequence[float | Outcome],
    *,
    task_id: str = "task",
    prompt_length: int = 3,
    lengths: Sequence[int] | None = None,
    finish_reason: FinishReason = "stop",
    vocab: int = 260,
    baseline_score: float | None = 0.25,
) -> Group:
    """A group with made-up tokens and log-probs, one trajectory per outcome; a plain number becomes a score.

    The tokens follow from `task_id` alone.
    """
    random_ = random.Random(task_id)
    task = Task(id=task_id, messages=({"role": "user", "content": task_id},))
    prompt = tuple(random_.randrange(4, vocab) for _ in range(prompt_length))
    lengths = [random_.randint(1, 6) for _ in outcomes] if lengths is None else lengths
    trajectories = []
    for index, (outcome, length) in enumerate(zip(outcomes, lengths, strict=True)):
        completion = Completion(
            token_ids=tuple(random_.randrange(4, vocab) for _ in range(length)),
            logprobs=tuple(random_.uniform(-7.0, -4.0) for _ in range(length)),
            finish_reason=finish_reason,
            adapter_version=0,
            adapter_hash="",
        )
        trajectories.append(
            Trajectory(
                task=task,
                sample_index=index,
                seed=index,
                turns=(Turn(prompt_ids=prompt, completion=completion),),
                text="",
                outcome=Score(value=outcome) if isinstance(outcome, int | float) else outcome,
            )
        )
    return Group(task=task, trajectories=tuple(trajectories), baseline_score=baseline_score)


DENSE_REWARD = '''
def odd(completion: str) -> float:
    """Share of the characters that have an odd code: random text differs in it, so every group has signal."""
    return sum(ord(character) % 2 for character in completion) / max(1, len(completion))
'''

CONFIG = """\
name: tiny
output_dir: {folder}/runs
steps: 4
tasks_per_step: 4
samples_per_task: 4
backend: inline
model:
  source: {model}
  dtype: float32
adapter:
  rank: 4
environment:
  path: {here}:letters
rewards:
  - path: {folder}/reward.py:odd
scoring:
  deadline_s: 30
  check: "off"
sampling:
  max_new_tokens: 12
rollout:
  threads: 1
  tasks_per_chunk: 1
learner:
  lr: 1.0e-2
  threads: 1
checkpoint:
  every: 2
"""


def write_config(folder: Path, model: Path, *, reward: str = DENSE_REWARD) -> Path:
    """Write a config of a run that takes a second, and the reward that it names, into `folder`."""
    (folder / "reward.py").write_text(reward, encoding="utf-8")
    file = folder / "run.yaml"
    file.write_text(CONFIG.format(folder=folder, model=model, here=Path(__file__).absolute()), encoding="utf-8")
    return file


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; one that does not parse fails the test."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without times and memory, which no two runs share."""
    rows = read_lines(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not is_of_the_machine(name)} for row in rows]


def read_rollouts(run: Path, step: int) -> list[dict[str, Any]]:
    """The samples of a step."""
    return pq.read_table(run / "rollouts" / f"step-{step:06d}.parquet").to_pylist()


def read_result(run: Path) -> dict[str, Any]:
    """Everything of a finished run that its seed decides, by file: two runs are the same when these are equal."""
    result: dict[str, Any] = {"metrics.jsonl": read_metrics(run)}
    for path in (*run.glob("tasks.jsonl"), *run.glob("evals/sets/*/tasks.jsonl")):  # preference runs have none
        result[str(path.relative_to(run))] = read_lines(path)
    for path in sorted([*run.glob("rollouts/[!.]*"), *run.glob("evals/**/[!.]*.parquet")]):
        result[str(path.relative_to(run))] = pq.read_table(path).to_pylist()
    for path in sorted([*run.glob("evals/**/[!.]*.json"), run / "summary.json"]):
        result[str(path.relative_to(run))] = json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(run.glob("adapters/[!.]*/adapter_model.safetensors")):
        result[str(path.relative_to(run))] = path.read_bytes()
    for path in sorted(run.glob("checkpoints/[!.]*/*")):
        result[str(path.relative_to(run))] = path.read_bytes()
    return result
