"""One learner update of rlft and of TRL on the same tokens, in alternating updates of one run.

    python -m benchmarks.learner [--updates 3] [--only grpo long dpo tools]
    python -m benchmarks.learner --ablation [TECHNIQUE ...]

Work: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, no KL term, AdamW.
    grpo   8 prompts of 45 tokens x 8 completions of up to 64: the tokens of a usual RL step here
    long   2 prompts of 512 tokens x 8 completions of up to 64
    dpo    16 pairs, prompts of 45, completions of up to 64, reference log-probs given
    tools  16 prompts of 440 tokens, the first 400 of which are the same, x 8 completions of up to 64; only where it is
           named, as an update of TRL's takes minutes
TRL's trainers run their own training step (GRPOTrainer, DPOTrainer) on tokens that are handed to them, so that nothing
but the update is timed. TRL is tried in several settings (type, rows per microbatch); the fastest is the peer. Each
system lives in a process of its own that is stopped while the other works; memory is the process's peak. The last line
is JSON. `--ablation` runs rlft alone, with one technique taken away at a time, on the shape `grpo`, or on `tools` where
it is a prefix of all prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers import THREADS, TRL_ON_CPU, Peer, answer, types_here, update_floor, wait

RANK, NEW_TOKENS = 16, 64
SHAPES = {"grpo": (8, 8, 45), "long": (2, 8, 512), "dpo": (16, 2, 45), "tools": (16, 8, 40)}
"""Groups, completions of each, prompt tokens."""
PREFIX = {"tools": 400}
"""Tokens that all prompts of a shape begin with, besides."""
TRL_SETTINGS = {
    "grpo": [("bfloat16", 16), ("bfloat16", 8), ("float32", 16)],
    "long": [("bfloat16", 8), ("bfloat16", 4)],
    "dpo": [("bfloat16", 16), ("float32", 16), ("bfloat16", 4)],
    "tools": [("bfloat16", 8), ("bfloat16", 4)],
}
"""Types and rows (dpo: pairs) per microbatch that TRL is tried in; float32 where the processor has no other."""


def tokens_of(shape: str) -> tuple[list[list[int]], list[list[list[int]]]]:
    """(prompts, completions of each): token ids from the model's vocabulary, with lengths of 5 to 64."""
    groups, samples, prompt_length = SHAPES[shape]
    random_ = random.Random(shape)

    def ids(length: int) -> list[int]:
        return [random_.randrange(100, 40_000) for _ in range(length)]

    prefix = ids(PREFIX.get(shape, 0))
    prompts = [prefix + ids(prompt_length) for _ in range(groups)]
    return prompts, [[ids(random_.randint(5, NEW_TOKENS)) for _ in range(samples)] for _ in range(groups)]


def serve_rlft(folder: str, shape: str, without: str) -> None:
    """Updates of rlft's learner, one for every line on standard input."""
    import torch

    from rlft.model.memory import keep_freed_memory

    keep_freed_memory()
    update = _rlft_dpo(folder) if shape == "dpo" else _rlft_policy(folder, shape, without)
    torch.set_num_threads(THREADS)
    _, completions = tokens_of(shape)
    count = sum(len(ids) for group in completions for ids in group)
    while True:
        wait()
        start = time.perf_counter()
        update()
        answer(seconds=time.perf_counter() - start, tokens=count, parts={})


def _rlft_policy(folder: str, shape: str, without: str) -> Callable[[], object]:
    from rlft.config import RunConfig
    from rlft.learner.batch import collate
    from rlft.learner.rl import Learner

    if without:
        take_away(without)
    prompts, completions = tokens_of(shape)
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "steps": 1000,
            "samples_per_task": SHAPES[shape][1],
            "backend": "inline",
            "model": {"source": folder, "dtype": "float32" if without == "bfloat16" else "auto"},
            "adapter": {"rank": RANK},
            "environment": {"path": "benchmarks.step:environment"},
            "rewards": [{"path": "benchmarks.step:vowels"}],
            "sampling": {"max_new_tokens": NEW_TOKENS},
            "learner": {"threads": THREADS, "lr": 1e-5},
            "algorithm": {"preset": "grpo", "kl": "none", "kl_coef": 0.0},
        }
    )
    learner = Learner(config, folder)
    groups = [_group(index, *pair) for index, pair in enumerate(zip(prompts, completions, strict=True))]
    batch = learner.annotate(collate(groups))
    return lambda: learner.update(batch)


def _group(index: int, prompt: list[int], completions: list[list[int]]) -> Any:
    from rlft.types import Completion, Group, Score, Task, Trajectory, Turn

    task = Task(id=str(index), messages=({"role": "user", "content": ""},))
    trajectories = [
        Trajectory(
            task=task,
            sample_index=sample,
            seed=0,
            turns=(
                Turn(
                    prompt_ids=tuple(prompt),
                    completion=Completion(
                        token_ids=tuple(ids),
                        logprobs=(0.0,) * len(ids),
                        finish_reason="stop",
                        adapter_version=0,
                        adapter_hash="",
                    ),
                ),
            ),
            text="",
            outcome=Score(value=float(sample)),
        )
        for sample, ids in enumerate(completions)
    ]
    return Group(task=task, trajectories=tuple(trajectories))


def _rlft_dpo(folder: str) -> Callable[[], object]:
    from dataclasses import replace

    import torch

    from rlft.config import AdapterConfig, LearnerConfig, ModelConfig
    from rlft.learner.batch import collate
    from rlft.learner.core import Roles
    from rlft.objectives.preference import Preference, preference_loss

    roles = Roles(
        folder,
        ModelConfig(source=folder),
        AdapterConfig(rank=RANK),
        LearnerConfig(threads=THREADS, lr=1e-5),
        seed=0,
        with_reference=True,
    )
    prompts, completions = tokens_of("dpo")
    batch = collate([_group(index, *pair) for index, pair in enumerate(zip(prompts, completions, strict=True))])
    assert roles.reference is not None
    batch = replace(batch, ref_logprobs=roles.logprobs(batch, roles.reference))
    num_pairs = len(prompts)

    def loss(part: Any, logprobs: torch.Tensor, entropy: torch.Tensor) -> Any:
        return preference_loss(
            Preference(),
            logprobs=logprobs,
            ref_logprobs=part.ref_logprobs,
            sequence_index=part.sequence_index,
            labels=part.rewards,
            num_examples=num_pairs,
        )

    def update() -> None:
        roles.optimizer.zero_grad(set_to_none=True)
        roles.backward_policy(batch, loss, whole_groups=True, entropy_gradient=False)
        roles.step({}, factor=1.0, is_finite=True)

    return update


TECHNIQUES = {
    "lean LoRA": "peft's own LoRA layers",
    "shared prompts": "a prompt in front of every completion",
    "shared prefix": "what all prompts begin with in front of every one",
    "actions only": "every token projected to the vocabulary",
    "bfloat16": "the base in float32",
    "kept memory": "freed memory goes back to the system",
    "own attention": "torch's fused attention kernel, group by group",
    "lean layers": "transformers' own norms, MLPs and decoder layers",
    "compiled kernels": "torch's operations",
}


def take_away(technique: str) -> None:
    """Undo one technique in this process."""
    from rlft.learner import batch
    from rlft.learner import core as roles
    from rlft.learner import roles as adapters
    from rlft.model import base as model
    from rlft.model.kernels import tree_attention

    if technique == "lean LoRA":
        adapters.use_lean_lora = adapters.use_lean_decoders = lambda model: None
    elif technique == "shared prompts":
        from dataclasses import replace

        import torch

        whole = batch.pack
        batch.MIN_PREFIX = 1 << 30
        roles.pack = lambda part: whole(replace(part, group_index=torch.arange(part.num_sequences)))
    elif technique == "shared prefix":
        batch.MIN_PREFIX = 1 << 30
    elif technique == "actions only":
        from dataclasses import replace

        import torch

        chosen: list[torch.Tensor] = []
        whole_pack, projected = batch.pack, model.projected_logprobs

        def all_tokens(part: Any) -> Any:
            packed = whole_pack(part)
            everything = torch.arange(packed.token_ids.shape[1])
            chosen.append(packed.predictor_index)
            return replace(packed, predictor_index=everything, target_ids=packed.token_ids[0].roll(-1))

        def of_actions(*arguments: Any, **options: Any) -> Any:
            index = chosen.pop()
            return tuple(values[index] for values in projected(*arguments, **options))

        roles.pack = all_tokens
        model.projected_logprobs = of_actions
    elif technique == "kept memory":
        import ctypes

        ctypes.CDLL(None).mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD as they are by default
        ctypes.CDLL(None).mallopt(-3, 128 * 1024)
    elif technique == "own attention":
        tree_attention.Tree.suits = lambda tree, operand, num_heads: False
    elif technique == "compiled kernels":
        os.environ["RLFT_KERNELS"] = "0"
    elif technique == "lean layers":
        adapters.use_lean_layers = adapters.use_lean_decoders = lambda model: None


def serve_trl(folder: str, shape: str, dtype: str, rows: int) -> None:
    """Training steps of a TRL trainer on handed tokens, one for every line on standard input."""
    import tempfile

    import torch

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        common: dict[str, Any] = {
            "output_dir": scratch,
            "max_steps": 1000,
            "learning_rate": 1e-5,
            **TRL_ON_CPU,
            "model_init_kwargs": {"dtype": dtype},
            "per_device_train_batch_size": rows,
        }
        make = _trl_dpo if shape == "dpo" else _trl_grpo
        make(folder, shape, rows, common).train()


def _turns(tokens: int) -> Any:
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            wait()
            self.started = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            answer(seconds=time.perf_counter() - self.started, tokens=tokens, parts={})

    return Turns()


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")


def _trl_grpo(folder: str, shape: str, rows: int, common: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts, completions = tokens_of(shape)
    groups, samples, _ = SHAPES[shape]
    flat = [(prompt, ids) for prompt, group in zip(prompts, completions, strict=True) for ids in group]
    advantages = torch.linspace(-1, 1, samples).repeat(groups)

    def pad(rows_of_ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows_of_ids))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows_of_ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows_of_ids])
        return ids, mask

    class OnlyUpdates(GRPOTrainer):
        """TRL's trainer with its rollouts replaced by the given tokens."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            prompt_ids, prompt_mask = pad([prompt for prompt, _ in flat])
            completion_ids, completion_mask = pad([ids for _, ids in flat])
            return {
                "prompt_ids": prompt_ids,
                "prompt_mask": prompt_mask,
                "completion_ids": completion_ids,
                "completion_mask": completion_mask,
                "advantages": advantages,
                "num_items_in_batch": completion_mask.sum(),
            }

    return OnlyUpdates(
        model=folder,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=GRPOConfig(
            **common,
            gradient_accumulation_steps=groups * samples // rows,
            num_generations=samples,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 1000),
        peft_config=_lora(),
        callbacks=[_turns(sum(len(ids) for _, ids in flat))],
    )


def _trl_dpo(folder: str, shape: str, rows: int, common: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    prompts, completions = tokens_of(shape)
    pairs = [
        {
            "prompt_ids": prompt,
            "chosen_ids": group[1],
            "rejected_ids": group[0],
            "ref_chosen_logps": -5.0 * len(group[1]),
            "ref_rejected_logps": -5.0 * len(group[0]),
        }
        for prompt, group in zip(prompts, completions, strict=True)
    ]

    class OnGivenTokens(DPOTrainer):
        """TRL's trainer on token ids and reference log-probs as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return OnGivenTokens(
        model=folder,
        args=DPOConfig(
            **common, gradient_accumulation_steps=len(pairs) // rows, beta=0.1, precompute_ref_log_probs=True
        ),
        train_dataset=Dataset.from_list(pairs * 50),
        peft_config=_lora(),
        callbacks=[_turns(sum(len(ids) for group in completions for ids in group))],
    )


def compare(folder: str, shape: str, updates: int) -> dict[str, Any]:
    """Medians of alternating updates of both systems on one shape."""
    types = types_here()
    settings = dict.fromkeys((dtype if dtype in types else "float32", rows) for dtype, rows in TRL_SETTINGS[shape])
    warm_up: dict[str, float] = {}
    best: Peer | None = None
    for dtype, rows in settings:
        name = f"TRL {shape} {dtype} {rows} rows"
        peer = Peer("benchmarks.learner", name, "trl", folder, shape, dtype, str(rows))
        peer.step()  # its first update touches memory for the first time
        warm_up[f"{dtype}, {rows} rows"] = peer.step()["seconds"]
        if best is None or warm_up[f"{dtype}, {rows} rows"] == min(warm_up.values()):
            if best is not None:
                best.stop()
            best = peer
        else:
            peer.stop()
    assert best is not None
    rlft = start_rlft(folder, shape)
    rlft.step()
    ours, theirs = [], []
    for _ in range(updates):
        ours += [rlft.step(), rlft.step()]
        theirs.append(best.step())
    rlft.stop()
    best.stop()
    floor = floor_of(shape)
    ours_s, theirs_s = (statistics.median(step["seconds"] for step in steps) for steps in (ours, theirs))
    return {
        "rlft_s": round(ours_s, 2),
        "trl_s": round(theirs_s, 2),
        "ratio": round(theirs_s / ours_s, 2),
        "rlft_gb": round(max(step["gb"] for step in ours), 2),
        "trl_gb": round(max(step["gb"] for step in theirs), 2),
        "floor_s": round(floor, 2),
        "floor_fraction": round(floor / ours_s, 3),
        "trl_setting": min(warm_up, key=lambda name: warm_up[name]),
        "trl_tried_s": {name: round(seconds, 1) for name, seconds in warm_up.items()},
    }


def start_rlft(folder: str, shape: str, without: str = "", **more: Any) -> Peer:
    """rlft, or rlft without a technique, that updates for every step; `more`: what `Peer` takes by name."""
    name = f"without {without} ({TECHNIQUES[without][0]})" if without else f"rlft {shape}"
    return Peer("benchmarks.learner", name, "rlft", folder, shape, without, **more)


def floor_of(shape: str) -> float:
    """Seconds of the shape's arithmetic, each prompt and their prefix computed once and no completion's last token."""
    prompts, completions = tokens_of(shape)
    actions = sum(len(ids) for group in completions for ids in group)
    read = actions - sum(map(len, completions))
    of_prompts = sum(map(len, prompts)) - (len(prompts) - 1) * PREFIX.get(shape, 0)
    return update_floor(read + of_prompts, actions)


def ablate(folder: str, updates: int, techniques: list[str]) -> None:
    """What each technique brings: medians with it and without it, alternating."""
    print("| without | instead | shape | with it | without it | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for technique in techniques:
        instead, shape = TECHNIQUES[technique], "tools" if technique == "shared prefix" else "grpo"
        whole, other = start_rlft(folder, shape), start_rlft(folder, shape, technique)
        whole.step()
        other.step()
        pairs = [(whole.step(), other.step()) for _ in range(updates)]
        whole.stop()
        other.stop()
        own, without = (statistics.median(step["seconds"] for step in steps) for steps in zip(*pairs, strict=True))
        gb, other_gb = (step["gb"] for step in pairs[-1])
        print(
            f"| {technique} | {instead} | {shape} | {own:.2f} s, {gb:.2f} GB | {without:.2f} s, {other_gb:.2f} GB | "
            f"x {without / own:.2f} |",
            flush=True,
        )


def main() -> None:
    """Run the comparison and print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=3, help="alternating rounds after the warm-up")
    parser.add_argument(
        "--only", nargs="+", choices=list(SHAPES), default=["grpo", "long", "dpo"], help="shapes to run"
    )
    parser.add_argument(
        "--ablation",
        nargs="*",
        choices=list(TECHNIQUES),
        metavar="TECHNIQUE",
        help=f"rlft alone, without one technique: {', '.join(TECHNIQUES)}",
    )
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        system, folder, shape, *rest = options.serve
        serve_rlft(folder, shape, rest[0]) if system == "rlft" else serve_trl(folder, shape, rest[0], int(rest[1]))
        return

    from rlft.model import sources

    folder = str(sources.resolve("smollm2-135m-instruct"))
    if options.ablation is not None:
        ablate(folder, options.updates, options.ablation or list(TECHNIQUES))
        return
    results = {shape: compare(folder, shape, options.updates) for shape in options.only}
    line: dict[str, Any] = {}
    if grpo := results.get("grpo"):
        line |= {
            "ratio": grpo["ratio"],
            "memory_ratio": round(grpo["rlft_gb"] / grpo["trl_gb"], 3),
            "floor_fraction": grpo["floor_fraction"],
        }
    line |= {
        f"{name}_ratio": results[key]["ratio"]
        for name, key in (("long_prompt", "long"), ("dpo", "dpo"))
        if key in results
    }
    print(json.dumps(line | results))


if __name__ == "__main__":
    main()
