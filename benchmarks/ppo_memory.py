"""Peak memory of one PPO step with policy, reference, critic and reward model: rlft and TRL's PPOTrainer.

    pip install --no-deps --target trl-1.12 trl==1.12.0
    python -m benchmarks.ppo_memory --trl trl-1.12

TRL took its PPOTrainer out after 1.12, so that version stands in a folder of its own, in front of the installed one.
Work: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers, bfloat16, 8 prompts x 8 completions of 64 tokens, 1 update.
rlft runs its whole loop in one process, generation included: the four roles are adapters of one base, and the engine
has merged copies of its weights. TRL's policy is a LoRA adapter whose base is the reference; its value model and reward
model are models of their own, as its documentation has it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import THREADS, Peer, answer, wait

RANK, TASKS, SAMPLES, NEW_TOKENS = 16, 8, 8, 64


def save_reward_model(folder: str, target: Path) -> None:
    """A reward model as `rlft reward-model` writes one, untrained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)


def environment() -> Any:
    """The tasks of `benchmarks.step`, the last ones held out."""
    from benchmarks import step
    from rlft.environment.contract import Environment

    tasks = step.environment().train
    return Environment(train=tasks[:-TASKS], heldout=tasks[-TASKS:])


def serve_rlft(folder: str) -> None:
    """A run of one step in this process."""
    from rlft.config import RunConfig
    from rlft.train.rl import launch

    with tempfile.TemporaryDirectory() as scratch:
        save_reward_model(folder, Path(scratch) / "reward-model")
        config = RunConfig.model_validate(
            {
                "name": "bench",
                "output_dir": scratch,
                "steps": 1,
                "tasks_per_step": TASKS,
                "samples_per_task": SAMPLES,
                "backend": "inline",
                "model": {"source": folder},
                "adapter": {"rank": RANK},
                "environment": {"path": "benchmarks.ppo_memory:environment"},
                "rewards": [{"path": f"adapter:{scratch}/reward-model"}],
                "sampling": {"max_new_tokens": NEW_TOKENS},
                "rollout": {"threads": THREADS},
                "learner": {"threads": THREADS, "lr": 1e-5},
                "algorithm": "ppo",
                "evaluation": {"tasks": 1},
            }
        )
        wait()
        launch.train(config)
        row = json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
        answer(seconds=row["time/step"], tokens=row["rollout/tokens"], parts={})


def serve_trl(folder: str) -> None:
    """One step of TRL's PPOTrainer."""
    import time

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from benchmarks.step import question
    from rlft.common.private_names import private

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = [
        question(topic, 5) for topic in ("rivers", "bread", "winter", "trains", "gardens", "music", "glass", "bees")
    ]
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in prompts
        for _ in range(SAMPLES)
    ]
    models = {
        "model": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        "value_model": AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16),
        "reward_model": AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16),
    }
    with tempfile.TemporaryDirectory() as scratch:
        trainer = private("trl.experimental.ppo.PPOTrainer")(
            args=private("trl.experimental.ppo.PPOConfig")(
                output_dir=scratch,
                total_episodes=TASKS * SAMPLES,
                per_device_train_batch_size=16,
                gradient_accumulation_steps=TASKS * SAMPLES // 16,
                local_rollout_forward_batch_size=16,
                num_mini_batches=1,
                num_ppo_epochs=1,
                response_length=NEW_TOKENS,
                num_sample_generations=0,
                temperature=1.0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            ref_model=None,
            train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
            eval_dataset=Dataset.from_list([{"input_ids": row} for row in ids[:2]]),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
            ),
            **models,
        )
        wait()
        start = time.perf_counter()
        trainer.train()
        answer(seconds=time.perf_counter() - start, tokens=TASKS * SAMPLES * NEW_TOKENS, parts={})


def main() -> None:
    """Run both, one after the other, and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trl", type=Path, help="folder with a TRL that has PPOTrainer")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        system, folder = options.serve
        serve_rlft(folder) if system == "rlft" else serve_trl(folder)
        return

    from rlft.model import sources

    folder = str(sources.resolve("smollm2-135m-instruct"))
    rlft = Peer("benchmarks.ppo_memory", "rlft", "rlft", folder)
    ours = rlft.step()
    rlft.stop()
    line = {"rlft_gb": round(ours["gb"], 2), "rlft_s": round(ours["seconds"], 1)}
    if options.trl:
        os.environ["PYTHONPATH"] = str(options.trl.absolute())
        trl = Peer("benchmarks.ppo_memory", "TRL", "trl", folder)
        theirs = trl.step()
        trl.stop()
        line |= {"trl_gb": round(theirs["gb"], 2), "trl_s": round(theirs["seconds"], 1)}
        line |= {"memory_ratio": round(ours["gb"] / theirs["gb"], 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
