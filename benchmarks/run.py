"""A whole run of rlft and of TRL's GRPOTrainer: how long each takes until the held-out accuracy reaches a target.

    python -m benchmarks.run [--target 0.5] [--picture run.png]

Work: the sums of configs/quickstart.yaml. Both begin with the same adapter, made by the config's warm start, and have
its model, LoRA, tasks, group size, lengths, learning rate and reward, GRPO's loss without a KL term. TRL has the
settings that were the fastest of those tried in benchmarks/step.py. Each system lives in a process of its own and
trains some steps while the other is stopped; then rlft's evaluation answers the held-out sums with the adapter that
it wrote. Seconds are those of training alone: loading, writing the adapters and measuring them are not counted. A
system that has reached the target stops. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import THREADS, TRL_ON_CPU, Peer, answer, dtype_here, wait

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def config_of(folder: str, *overrides: str) -> Any:
    """The quickstart with the objective that both systems have."""
    from rlft.config_file import load

    same = ("algorithm=grpo", "algorithm.kl=none", "algorithm.kl_coef=0", "environment.order=shuffle")
    # Half of the warm start, which else begins above the accuracy that is waited for, and a rate that knows no end.
    begin = ("sft.examples=64", "learner.lr=2e-4", "learner.schedule=constant")
    place = (f"output_dir={folder}", "backend=inline", f"rollout.threads={THREADS}", f"learner.threads={THREADS}")
    return load(CONFIG, [*same, *begin, *place, *overrides])


def serve_rlft(folder: str, adapter: str, every: int) -> None:
    """rlft's own run, which waits after each `every` steps; its adapters lie in its run directory."""
    from rlft.train.rl import launch, loop

    train_rl = loop.train_rl
    spent = {"seconds": 0.0, "tokens": 0.0}

    def alternating(*arguments: Any, after_step: Any, **settings: Any) -> None:
        run = arguments[0]

        def paused(step: int, version: Any) -> None:
            if step:
                row = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
                spent["seconds"] += row["time/step"]
                spent["tokens"] += row["rollout/tokens"]
            after_step(step, version)
            if step and step % every == 0:
                answer(**spent, parts={"step": step})
                wait()

        wait()
        train_rl(*arguments, after_step=paused, **settings)

    launch.train_rl = alternating  # type: ignore[attr-defined]
    settings = ("name=rlft", "sft=null", f"adapter.start={adapter}", "evaluation.every=0", "evaluation.tasks=1")
    launch.train(config_of(folder, *settings, "steps=1000", f"checkpoint.every={every}", "checkpoint.adapters=all"))


def serve_trl(folder: str, adapter: str, every: int) -> None:
    """TRL's run, which waits after each `every` steps and leaves its adapter in the folder."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rewards.exact_answer import exact_answer
    from rlft.environment import loading
    from rlft.model import sources

    torch.set_num_threads(THREADS)
    config = config_of(folder)
    source = str(sources.resolve(config.model.source))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype_here())
    policy = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tasks = loading.load(config.environment).train
    rows = [{"prompt": list(task.messages), "answer": task.answer} for task in tasks]
    samples, completions_per_step = config.samples_per_task, config.tasks_per_step * config.samples_per_task

    def reward(
        completions: list[Any], answer: list[str], completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float | None]:
        Alternate.tokens += sum(map(len, completion_ids))
        pairs = zip(completions, answer, strict=True)
        return [exact_answer(messages[-1]["content"], right) for messages, right in pairs]

    class Alternate(TrainerCallback):  # type: ignore[misc]
        seconds = started = tokens = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0:
                wait()
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds += time.perf_counter() - self.started
            if state.global_step % every == 0:
                policy.save_pretrained(f"{folder}/trl/{state.global_step}")
                answer(seconds=self.seconds, tokens=Alternate.tokens, parts={"step": state.global_step})

    trainer = GRPOTrainer(
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(source, padding_side="left"),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=f"{folder}/trl",
            max_steps=1000,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=completions_per_step // 16,
            num_generations=samples,
            max_completion_length=config.sampling.max_new_tokens,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            learning_rate=config.learner.lr,
            lr_scheduler_type=config.learner.schedule,
            max_grad_norm=config.learner.max_grad_norm,
            **TRL_ON_CPU,
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Alternate()],
    )
    trainer.train()


@dataclass
class Curve:
    """How a system's held-out accuracy rose."""

    name: str
    peer: Peer
    points: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, seconds of training, accuracy)"""
    tokens: float = 0.0
    """Of all completions so far."""
    gb: float = 0.0

    def reached(self, target: float) -> float | None:
        """Seconds of training until the accuracy was measured at the target or above; None while it is not."""
        return next((seconds for _, seconds, accuracy in self.points if accuracy >= target), None)


def main() -> None:
    """Make the adapter, let both train in turns, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=5, help="steps between measurements")
    parser.add_argument("--limit", type=float, default=3600, help="most seconds of training of a system")
    parser.add_argument("--picture", default="", help="file for the picture of both curves")
    parser.add_argument("--serve", nargs=4, metavar=("SYSTEM", "FOLDER", "ADAPTER", "EVERY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        system, folder, adapter, every = options.serve
        (serve_rlft if system == "rlft" else serve_trl)(folder, adapter, int(every))
        return
    from rlft.train.rl import launch
    from rlft.train.rl.measure import measure

    with tempfile.TemporaryDirectory() as folder:
        adapter = str(launch.sft(config_of(folder, "name=start")))
        config = config_of(folder, "name=measure")
        begun = measure(config, Path(adapter)).accuracy.mean
        print(f"behind the warm start: {begun:.3f}", flush=True)
        curves = [
            Curve(name, Peer("benchmarks.run", name, name, folder, adapter, str(options.every)), [(0, 0.0, begun)])
            for name in ("rlft", "trl")
        ]
        try:
            while going := [c for c in curves if c.reached(options.target) is None and c.points[-1][1] < options.limit]:
                for curve in going:
                    got = curve.peer.step()
                    step, curve.tokens, curve.gb = int(got["parts"]["step"]), got["tokens"], got["gb"]
                    at = {"rlft": f"{folder}/rlft/adapters/v{step:06d}", "trl": f"{folder}/trl/{step}"}[curve.name]
                    accuracy = measure(config, Path(at)).accuracy.mean
                    curve.points.append((step, got["seconds"], accuracy))
                    print(f"{curve.name}: step {step}, {got['seconds']:.0f} s, accuracy {accuracy:.3f}", flush=True)
        finally:
            for curve in curves:
                curve.peer.stop()
    if options.picture:
        _draw(curves, options.target, Path(options.picture))
    print(json.dumps(_summary(curves, options.target)))


def _summary(curves: list[Curve], target: float) -> dict[str, Any]:
    found: dict[str, Any] = {"target": target, "gb": {curve.name: round(curve.gb, 2) for curve in curves}}
    found["seconds"] = {curve.name: curve.reached(target) for curve in curves}
    found["tokens"] = {curve.name: int(curve.tokens) for curve in curves}
    found["points"] = {curve.name: [[n, round(s, 1), round(a, 3)] for n, s, a in curve.points] for curve in curves}
    ours, theirs = (curve.reached(target) for curve in curves)
    if ours is not None:
        found["ratio"] = round((curves[1].points[-1][1] if theirs is None else theirs) / ours, 2)
        found["ratio_is"] = "at least" if theirs is None else "measured"
    return found


def _draw(curves: list[Curve], target: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for curve in curves:
        axes.plot([s for _, s, _ in curve.points], [a for _, _, a in curve.points], marker="o", label=curve.name)
    axes.axhline(target, color="grey", linestyle="--")
    axes.set(xlabel="seconds of training", ylabel="held-out accuracy", ylim=(0, 1))
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
