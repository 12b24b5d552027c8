"""Running an environment's tasks through the real driver, with an engine that says what the test wants."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.config import AdapterConfig, EnvironmentConfig, ModelConfig
from rlft.environment.contract import Environment
from rlft.environment.loading import load
from rlft.learner.roles import Role, add_policy, read_role
from rlft.model import base as models
from rlft.model.adapter import POLICY, make_adapter
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.generate import run_chunk
from rlft.types import Group, SamplingParams, Trajectory
from tests.fakes import byte_tokenizer, save_tiny_model

TOKENIZER = byte_tokenizer()


def load_environment(path: str, **args: Any) -> Environment:
    """What a config with this path and these args loads."""
    return load(EnvironmentConfig(path=path, args=args))


def run_tasks(
    environment: Environment,
    say: Callable[[str, int], str],
    *,
    tasks: int = 2,
    samples: int = 2,
    max_new_tokens: int = 64,
    engine: Any = None,
) -> list[Trajectory]:
    """Trajectories of the first tasks. The driver's accounts are checked, and that no random numbers leak.

    Args:
        say: gets the whole prompt and the sample's position in its request, from the second turn on 0.
        engine: another one than the scripted.
    """
    chunk = Chunk(
        tasks=tuple(environment.train[:tasks]),
        samples_per_task=samples,
        params=SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens),
        run_seed=5,
        stream="train",
        step=1,
        version=0,
    )
    scripted = ScriptedEngine(TOKENIZER, lambda prompt, index, _: say(prompt, index), context=1 << 20)
    before = random.getstate(), np.random.get_state()[1].tolist()
    groups = run_chunk(engine or scripted, TOKENIZER, chunk, environment)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    for trajectory in trajectories_of(groups):
        _check_accounts(trajectory)
    return trajectories_of(groups)


def tiny_engine(folder: Path) -> TransformersEngine:
    """The random Llama, with room for a long conversation."""
    save_tiny_model(folder, context=4096)
    lora = AdapterConfig(rank=2, alpha=4)
    model = ModelConfig(source=str(folder), dtype="float32")
    engine = TransformersEngine(folder, TOKENIZER, model=model, adapter=lora, threads=1)
    base = models.load_base(folder, torch.float32, torch.device("cpu"))
    role = Role(model=add_policy(base, lora, seed=0), adapter=POLICY)
    engine.load_adapter(make_adapter(0, read_role(role)))
    return engine


def trajectories_of(groups: list[Group]) -> list[Trajectory]:
    """All of them, in order."""
    return [trajectory for group in groups for trajectory in group.trajectories]


def told(trajectory: Trajectory) -> list[tuple[Any, ...]]:
    """What the environment said and gave."""
    return [(turn.observation, turn.reward) for turn in trajectory.turns]


def _check_accounts(trajectory: Trajectory) -> None:
    sampled = [t for t, is_action in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if is_action]
    assert sampled == [t for turn in trajectory.turns for t in turn.completion.token_ids]
    assert len(sampled) == trajectory.num_actions > 0
    # Between two actions stands the environment's answer, once.
    for turn, following in zip(trajectory.turns, trajectory.turns[1:], strict=False):
        written = TOKENIZER.decode(list(following.prompt_ids))
        assert all(message["content"] in written for message in turn.observation)
