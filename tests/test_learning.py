"""The whole path learns: engine, episode, batch, learner and back into the engine, in seconds on a random model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config import RunConfig
from rlft.learner.batch import collate, minibatches
from rlft.learner.rl import Learner
from rlft.model.adapter import save_tensors
from rlft.model.chat import load_tokenizer
from rlft.model.starting_point import ReferenceSource
from rlft.objectives.presets import PRESETS
from rlft.rollout.chunk import make_chunks
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.generate import run_chunk
from rlft.train.rl.metrics import describe
from rlft.train.task_order import tasks_of_step
from rlft.types import Adapter, Group, Metrics, SamplingParams, Score, Trajectory
from tests.fakes import letters, tiny_config


@pytest.fixture(scope="module")
def learnable_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output matrix of its own that allows logits up to about 13; its tied one stops at 0.7."""
    folder = tmp_path_factory.mktemp("learnable") / "model"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    head = 0.4 * torch.randn(model.lm_head.weight.shape, generator=generator)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    return folder


def share_of_target(trajectory: Trajectory) -> float:
    """Share of the tokens whose number is 1 modulo 4: a quarter of the vocabulary, so every group has signal.

    The end token, 0, does not count: an algorithm that wants short answers may learn to stop.
    """
    tokens = [token for token in trajectory.token_ids if token]
    return sum(token % 4 == 1 for token in tokens) / max(1, len(tokens))


def score(group: Group) -> Group:
    scored = tuple(replace(t, outcome=Score(value=share_of_target(t))) for t in group.trajectories)
    return replace(group, trajectories=scored)


def train(config: RunConfig, folder: Path, reference: ReferenceSource | None = None) -> tuple[list[Metrics], Adapter]:
    """The loop of `train_rl` without its run directory and its processes.

    Returns:
        (the metrics of every step, the adapter after the last one)
    """
    tasks = letters(num_train=config.tasks_per_step).train
    tokenizer = load_tokenizer(folder)
    engine = TransformersEngine(folder, tokenizer, model=config.model, adapter=config.adapter, threads=1)
    learner = Learner(config, folder, reference=reference)

    def sample(step: int, stream: str, samples_per_task: int, temperature: float) -> list[Group]:
        [chunk] = make_chunks(
            tasks_of_step(tasks, step=step, count=config.tasks_per_step, seed=config.seed),
            tasks_per_chunk=config.tasks_per_step,
            samples_per_task=samples_per_task,
            params=SamplingParams(temperature=temperature, top_p=1.0, max_new_tokens=config.sampling.max_new_tokens),
            run_seed=config.seed,
            stream=stream,
            step=step,
            version=step - 1,
        )
        return [score(group) for group in run_chunk(engine, tokenizer, chunk)]

    history = []
    for step in range(1, config.steps + 1):
        engine.load_adapter(learner.adapter(step - 1))
        groups = sample(step, "train", config.samples_per_task, 1.0)
        metrics = describe(groups)
        if config.algorithm.needs_greedy:
            greedy = [group.scores[0] for group in sample(step, "greedy", 1, 0.0)]
            groups = [replace(group, baseline_score=score) for group, score in zip(groups, greedy, strict=True)]
        for minibatch in minibatches(learner.annotate(collate(groups)), config.updates_per_step):
            if learner.has_gradient(minibatch):
                metrics |= learner.update(minibatch).metrics
        history.append(metrics)
    return history, learner.adapter(config.steps)


def config_of(folder: Path, algorithm: str, *, steps: int, updates: int = 1, **changes: Any) -> RunConfig:
    lr, samples = changes.pop("lr", 0.01), changes.pop("samples", 16)
    choices = {name: changes.pop(name) for name in ("loss", "label_smoothing", "credit") if name in changes}
    return tiny_config(
        folder,
        algorithm={"preset": algorithm, **choices},
        seed=1,
        steps=steps,
        tasks_per_step=4,
        samples_per_task=samples,
        updates_per_step=updates,
        sampling={"max_new_tokens": 4},
        learner={"threads": 1, "lr": lr, "critic_lr": 0.02, "schedule": "linear"},
        **changes,
    )


def mean(history: list[Metrics], name: str) -> float:
    return sum(metrics[name] for metrics in history) / len(history)


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"steps": 25}),
    ("ppo", {"steps": 25, "updates": 2, "samples": 32, "lr": 0.015}),
    ("grpo", {"steps": 25}),
    ("grpo", {"steps": 20, "updates": 2}),
    ("dr_grpo", {"steps": 20}),
    ("dapo", {"steps": 40}),  # every answer is overlong until it learns to stop
    ("rloo", {"steps": 30}),
    ("reinforce_pp", {"steps": 20, "updates": 2}),
    ("reinforce_pp_baseline", {"steps": 20, "updates": 2}),
    ("remax", {"steps": 25}),
    ("gspo", {"steps": 25, "updates": 2}),  # nearly all of the second update is clipped
    ("cispo", {"steps": 15, "updates": 2}),
    ("maxrl", {"steps": 20}),
    ("online_dpo", {"steps": 30}),  # two samples of sixteen are used
    ("online_dpo", {"steps": 30, "loss": "kto"}),
    ("online_dpo", {"steps": 30, "label_smoothing": 0.1}),
]


@pytest.mark.parametrize(("algorithm", "run"), RUNS)
def test_a_random_model_learns_what_is_rewarded(learnable_model: Path, algorithm: str, run: dict[str, Any]) -> None:
    history, _ = train(config_of(learnable_model, algorithm, **run), learnable_model)
    assert history[0]["reward/mean"] < 0.4  # about a quarter
    assert mean(history[-3:], "reward/mean") > 0.9
    # A step whose answers are all perfect says nothing and makes no update.
    updates = [metrics for metrics in history if "policy/skipped" in metrics]
    assert len(updates) > len(history) / 2
    for metrics in updates:
        assert metrics["policy/skipped"] == 0
        assert metrics["policy/mismatch"] < 1e-4  # engine and learner hold the same weights


def test_a_random_model_becomes_its_teacher_without_a_reward(learnable_model: Path, tmp_path: Path) -> None:
    teaching = config_of(learnable_model, "grpo", steps=20)
    _, teacher = train(teaching, learnable_model)
    save_tensors(tmp_path, teaching.adapter, str(learnable_model), teacher.tensors)
    learning = config_of(learnable_model, "opd", steps=25, reference=str(tmp_path))
    history, _ = train(learning, learnable_model, ReferenceSource(folder=str(tmp_path)))
    assert history[0]["policy/kl_ref"] > 1
    assert mean(history[-5:], "policy/kl_ref") < 0.1 * history[0]["policy/kl_ref"]
    assert history[0]["reward/mean"] < 0.4
    assert mean(history[-3:], "reward/mean") > 0.9  # of which only the teacher was told


def test_every_preset_has_to_learn() -> None:
    assert {name for name, _ in RUNS} | {"opd"} == set(PRESETS)


def in_two_turns(trajectory: Trajectory) -> Trajectory:
    """The same tokens as two turns: luck decides what the first is worth, and the second is worth its share of target.

    An environment that answers nothing stands between them.
    """
    [turn] = trajectory.turns
    halves = []
    for part in (slice(0, 2), slice(2, None)):
        completion = replace(
            turn.completion, token_ids=turn.completion.token_ids[part], logprobs=turn.completion.logprobs[part]
        )
        halves.append(replace(turn, completion=completion, prompt_ids=() if halves else turn.prompt_ids))
    luck = 20.0 * (trajectory.seed % 2)
    share = share_of_target(replace(trajectory, turns=tuple(halves[1:])))
    outcome = Score(value=luck + share, parts={"share": share}, turns=(luck, share))
    return replace(trajectory, turns=tuple(halves), outcome=outcome)


@pytest.mark.parametrize("credit", ["turn", "episode"])
def test_luck_in_an_earlier_turn_hides_what_a_later_one_is_worth(
    learnable_model: Path, credit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_turn(group: Group) -> Group:
        return replace(group, trajectories=tuple(in_two_turns(t) for t in group.trajectories))

    monkeypatch.setattr(f"{__name__}.score", by_turn)
    config = config_of(learnable_model, "rloo", steps=30, credit=credit)
    history, _ = train(config, learnable_model)
    assert history[0]["reward/part/share"] < 0.4
    learnt = mean(history[-3:], "reward/part/share")
    assert learnt > 0.8 if credit == "turn" else learnt < 0.6
