"""The whole path learns: engine, episode, batch, learner and back into the engine, in seconds on a random model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.batch import collate, minibatches
from rlft.chat import load_tokenizer
from rlft.config import RunConfig
from rlft.learner import Learner
from rlft.metrics import describe
from rlft.rollout.episode import make_chunks, run_chunk
from rlft.rollout.transformers_engine import TransformersEngine
from rlft.tasks import tasks_of_step
from rlft.types import Group, Metrics, SamplingParams, Score, Trajectory
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
    """Share of the tokens whose number is 1 modulo 4: a quarter of the vocabulary, so every group has signal."""
    return sum(token % 4 == 1 for token in trajectory.token_ids) / len(trajectory.token_ids)


def score(group: Group) -> Group:
    scored = tuple(replace(t, outcome=Score(value=share_of_target(t))) for t in group.trajectories)
    return replace(group, trajectories=scored)


def train(config: RunConfig, folder: Path) -> list[Metrics]:
    """The loop of `train_rl` without its run directory and its processes; the metrics of every step."""
    tasks = letters(num_train=config.tasks_per_step).train
    tokenizer = load_tokenizer(folder)
    engine = TransformersEngine(folder, tokenizer, model=config.model, adapter=config.adapter, threads=1)
    learner = Learner(config, folder)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=config.sampling.max_new_tokens)
    history = []
    for step in range(1, config.steps + 1):
        adapter = learner.adapter(step - 1)
        engine.load_adapter(adapter)
        [chunk] = make_chunks(
            tasks_of_step(tasks, step=step, count=config.tasks_per_step, seed=config.seed),
            tasks_per_chunk=config.tasks_per_step,
            samples_per_task=config.samples_per_task,
            params=params,
            run_seed=config.seed,
            stream="train",
            step=step,
            version=adapter.version,
        )
        groups = [score(group) for group in run_chunk(engine, tokenizer, chunk)]
        metrics = describe(groups)
        for minibatch in minibatches(learner.annotate(collate(groups)), config.updates_per_step):
            metrics |= learner.update(minibatch)
        history.append(metrics)
    return history


@pytest.mark.parametrize(
    ("algorithm", "steps", "updates"),
    [("grpo", 25, 1), ("grpo", 20, 2), ("ppo", 50, 1), ("ppo", 35, 2)],
)
def test_a_random_model_learns_what_is_rewarded(
    learnable_model: Path, algorithm: str, steps: int, updates: int
) -> None:
    config = tiny_config(
        learnable_model,
        algorithm={"preset": algorithm},
        seed=1,
        steps=steps,
        tasks_per_step=4,
        samples_per_task=16,
        updates_per_step=updates,
        sampling={"max_new_tokens": 4},
        learner={"threads": 1, "lr": 0.01, "critic_lr": 0.02, "schedule": "linear"},
    )
    history = train(config, learnable_model)
    assert history[0]["reward/mean"] < 0.4  # about a quarter
    assert sum(metrics["reward/mean"] for metrics in history[-3:]) / 3 > 0.9
    for metrics in history:
        assert metrics["policy/skipped"] == 0
        assert metrics["policy/mismatch"] < 1e-4  # engine and learner hold the same weights
