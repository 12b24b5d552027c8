"""One GRPO step of rlft and of TRL's GRPOTrainer on the same work, in alternating steps of one run.

    python -m benchmarks.step [--steps 3]

Work: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, 8 prompts x 8 completions, at most 64 new tokens, T = 1,
no KL term, one optimizer update. A step is everything from the prompts to the updated adapter: generation, reward,
advantages, update, and for rlft also publishing the adapter, writing the rollouts and logging. Each system lives in a
process of its own that waits while the other works. TRL runs first once in float32 and, where the processor multiplies
it, once in bfloat16, and the faster one is the peer. Lengths are natural, so the tokens of both are reported. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks.peers import (
    LAYERS,
    THREADS,
    TRL_ON_CPU,
    VOCABULARY,
    Peer,
    answer,
    gemm_rate,
    types_here,
    update_floor,
    wait,
)

TASKS, SAMPLES, NEW_TOKENS, RANK = 8, 8, 64, 16
TOPICS = ("rivers", "bread", "winter", "trains", "gardens", "music", "glass", "bees")


def question(topic: str, number: int) -> str:
    """A prompt that this model answers with 20 to 64 tokens."""
    return f"Tell me {number} interesting facts about {topic} in a few short sentences."


def share_of_vowels(text: str) -> float:
    """A reward that differs within every group, so that no group is without signal."""
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))


def vowels(completion: str) -> float:
    """`share_of_vowels` as an rlft reward."""
    return share_of_vowels(completion)


def environment() -> Any:
    """The tasks as an rlft environment."""
    from rlft.environment.contract import Environment
    from rlft.types import Task

    tasks = [
        Task(id=f"{topic}-{n}", messages=({"role": "user", "content": question(topic, n)},))
        for n in range(3, 9)
        for topic in TOPICS
    ]
    return Environment(train=tasks, heldout=[])


def serve_rlft(model_folder: str, steps: int) -> None:
    """Run rlft's own loop, one step for every line on standard input."""
    import tempfile
    from pathlib import Path

    from rlft.config import RunConfig
    from rlft.curves.live_panel import View
    from rlft.learner.rl import Learner
    from rlft.model.chat import load_tokenizer
    from rlft.model.memory import keep_freed_memory
    from rlft.reward.scoring import Scorer
    from rlft.rollout.pool import make_pool
    from rlft.rollout.weight_proof import CanaryMaker
    from rlft.run.directory import Run
    from rlft.train.rl.loop import train_rl
    from rlft.train.rl.task_choice import TaskChoice
    from rlft.train.standing import Standing
    from rlft.types import RewardSpec

    keep_freed_memory()
    reward = f"{Path(__file__)}:vowels"
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(
            {
                "name": "bench",
                "output_dir": folder,
                "steps": steps,
                "tasks_per_step": TASKS,
                "samples_per_task": SAMPLES,
                "backend": "inline",
                "model": {"source": model_folder},
                "adapter": {"rank": RANK},
                "environment": {"path": "benchmarks.step:environment"},
                "rewards": [{"path": reward}],
                "sampling": {"max_new_tokens": NEW_TOKENS},
                "rollout": {"threads": THREADS},
                "learner": {"threads": THREADS, "lr": 1e-5},
                "algorithm": {"preset": "grpo", "kl": "none", "kl_coef": 0.0},
            }
        )
        learner = Learner(config, model_folder)
        pool = make_pool(config, model_folder)
        with (
            Run(config) as run,
            Scorer([RewardSpec(path=reward, weight=1.0)], workers=1, deadline_s=10, log_dir=None) as scorer,
        ):
            view = View("bench", steps=steps)

            def after_step(step: int, adapter: object) -> None:
                row = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
                answer(seconds=row["time/step"], tokens=row["rollout/tokens"], parts=row)
                if step < steps:
                    wait()

            wait()
            tasks = environment().train
            canary = CanaryMaker(load_tokenizer(model_folder), tasks[0], dtype="bfloat16")
            train_rl(
                run,
                learner,
                pool,
                scorer,
                TaskChoice(config, tasks),
                start=0,
                canary=canary,
                view=view,
                standing=Standing(0),
                after_step=after_step,
            )


def serve_trl(model_folder: str, steps: int, dtype: str) -> None:
    """Run TRL's GRPOTrainer, one step for every line on standard input."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(THREADS)
    rows = [{"prompt": list(task.messages)} for task in environment().train] * steps

    def reward(
        completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **kwargs: object
    ) -> list[float]:
        Alternate.tokens += sum(map(len, completion_ids))
        return [share_of_vowels(messages[-1]["content"]) for messages in completions]

    class Alternate(TrainerCallback):
        started = 0.0
        tokens = 0.0

        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            wait()
            Alternate.tokens = 0.0
            self.started = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            seconds = time.perf_counter() - self.started
            answer(seconds=seconds, tokens=Alternate.tokens, parts={})

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model_folder,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                # All 64 completions are generated at once; 16 rows a microbatch, since 64 take 16 GB in float32.
                per_device_train_batch_size=16,
                gradient_accumulation_steps=TASKS * SAMPLES // 16,
                num_generations=SAMPLES,
                max_completion_length=NEW_TOKENS,
                temperature=1.0,
                beta=0.0,
                loss_type="grpo",
                learning_rate=1e-5,
                model_init_kwargs={"dtype": dtype},
                **TRL_ON_CPU,
            ),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
            ),
            callbacks=[Alternate()],
        )
        trainer.train()


def floor_seconds(tokens: float, prompt_tokens: float) -> float:
    """Seconds of the arithmetic that a step cannot do without, at the measured rates.

    Decoding: 2 FLOPs per weight and completion token, at the rate of 64 rows. Update: see `peers.update_floor`.
    """
    decode = 2 * (LAYERS + VOCABULARY) * tokens / gemm_rate(TASKS * SAMPLES)
    return decode + update_floor(tokens - TASKS * SAMPLES + prompt_tokens, tokens)


def main() -> None:
    """Run the comparison and print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3, help="alternating steps after the warm-up")
    parser.add_argument(
        "--trl-dtypes", nargs="+", default=types_here(), help="types that TRL is tried in; those that the machine has"
    )
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        system, folder, steps, *dtype = options.serve
        serve_rlft(folder, int(steps)) if system == "rlft" else serve_trl(folder, int(steps), *dtype)
        return

    from rlft.model import chat, sources

    folder = str(sources.resolve("smollm2-135m-instruct"))
    tokenizer = chat.load_tokenizer(folder)
    prompt_tokens = TASKS * statistics.mean(len(chat.render(tokenizer, t.messages)) for t in environment().train)
    total = options.steps + 1
    peers = {
        dtype: Peer("benchmarks.step", f"trl {dtype}", "trl", folder, str(total), dtype) for dtype in options.trl_dtypes
    }
    warm_up = {dtype: peer.step()["seconds"] for dtype, peer in peers.items()}
    best = min(warm_up, key=lambda dtype: warm_up[dtype])
    for dtype, peer in peers.items():
        if dtype != best:
            peer.stop()
    rlft = Peer("benchmarks.step", "rlft", "rlft", folder, str(total))
    rlft.step()
    ours, theirs = [], []
    for _ in range(options.steps):
        ours.append(rlft.step())
        theirs.append(peers[best].step())
    rlft.stop()
    peers[best].stop()

    rlft_s = statistics.median(step["seconds"] for step in ours)
    trl_s = statistics.median(step["seconds"] for step in theirs)
    rlft_tokens = statistics.median(step["tokens"] for step in ours)
    floor_s = floor_seconds(rlft_tokens, prompt_tokens)
    print(
        json.dumps(
            {
                "rlft_s": round(rlft_s, 2),
                "trl_s": round(trl_s, 2),
                "ratio": round(trl_s / rlft_s, 2),
                "rlft_gb": round(max(step["gb"] for step in ours), 2),
                "trl_gb": round(max(step["gb"] for step in theirs), 2),
                "floor_s": round(floor_s, 2),
                "floor_fraction": round(floor_s / rlft_s, 3),
                "trl_dtype": best,
                "trl_warm_up_s": {dtype: round(seconds, 1) for dtype, seconds in warm_up.items()},
                "rlft_tokens": rlft_tokens,
                "trl_tokens": statistics.median(step["tokens"] for step in theirs),
            }
        )
    )


if __name__ == "__main__":
    main()
