"""Every setting of every config changes something: a table of setting, other value, and what is then different."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlft import config_file
from rlft.cli import main
from rlft.config import RunConfig
from rlft.model.starting_point import save_adapter
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.train.head.config import HeadConfig
from rlft.train.preference.config import PreferenceConfig
from rlft.train.reward_model.config import RewardModelConfig
from rlft.train.supervised.config import SupervisedConfig
from tests import observables as see
from tests.fakes import save_tiny_model, write_config
from tests.fakes_head import write_texts
from tests.fakes_reward import write_pairs

Row = tuple[str, Any, Callable[[Any], Any], dict[str, Any]]
"""(leaf, its other value, what is different then, what else is set on both sides)"""

PPO = {"algorithm": "ppo"}
KL = {"algorithm": {"preset": "grpo", "kl": "k2", "kl_coef": 0.5}}
NO_SCALE = {"algorithm": {"preset": "dr_grpo"}}
ONLINE = {"algorithm": {"preset": "online_dpo"}}
ONLINE_KTO = {"algorithm": {"preset": "online_dpo", "loss": "kto"}}
TWO = {"updates_per_step": 2}
RAY = {"backend": "ray"}
GROUP = {**RAY, "learner.workers": 2}
LINEAR = {"learner.schedule": "linear"}


def trouble(kind: str) -> dict[str, Any]:
    return {**RAY, "environment": {"path": "tests.observables:letters_with", "args": {"trouble": kind}}}


LONG = {"environment": {"path": "tests.observables:letters_with", "args": {"long": 300}, "overlong": "drop"}}
SEES = {
    "rewards": [{"path": "tests.leaf_rewards:sees", "args": {"variable": "PYTEST_CURRENT_TEST"}}],
    "scoring.workers": 1,
}


def one_reward(name: str) -> dict[str, Any]:
    return {"rewards": [{"path": f"tests.leaf_rewards:{name}"}], "scoring.workers": 1}


MIXED = {"environment": {"mix": [{"name": name, "path": "tests.observables:letters_with"} for name in ("one", "two")]}}
SETS = {"evaluations": [{"name": "further", "tasks": 2}]}
ELSEWHERE = {
    "evaluations": [{"name": "further", "tasks": 2, "environment": {"path": "tests.observables:other_letters"}}]
}
STRIPES = {"rewards": [{"path": "tests.leaf_rewards:stripes"}]}
TRACKED = {"trackers": [{"name": "wandb"}]}
TRACKERS: list[Row] = [
    ("trackers.name", "mlflow", see.tracked, TRACKED),
    ("trackers.project", "team/other", see.tracked, TRACKED),
    ("trackers.to", "offline", see.tracked, TRACKED),
]
RL: list[Row] = [
    *TRACKERS,
    ("name", "other", see.place, {}),
    ("output_dir", "{folder}/elsewhere", see.place, {}),
    ("seed", 1, see.requested, {}),
    ("model.source", "{folder}/other", see.learnt, {}),
    ("model.dtype", "bfloat16", see.learnt, {}),
    ("model.special_tokens_in_text", "refuse", see.spelling, {}),
    ("adapter.kind", "rslora", see.learnt, {}),
    ("adapter.start", "{folder}/adapter", see.learnt, {}),
    ("adapter.rank", 2, see.learnt, {}),
    ("adapter.alpha", 9.0, see.learnt, {}),
    ("adapter.target_modules", ["q_proj"], see.learnt, {}),
    ("steps", 3, see.learnt, LINEAR),
    ("tasks_per_step", 3, see.requested, {}),
    ("samples_per_task", 3, see.requested, {}),
    ("updates_per_step", 2, see.learnt, {}),
    ("max_staleness", 1, see.requested, {"algorithm": {"preset": "grpo", "correction": "token_truncate"}}),
    ("backend", "ray", see.reserved, {}),
    ("ray_address", "somewhere", see.reserved, RAY),
    ("environment.path", "environments.sums:load", see.tasks, {}),
    ("environment.args", {"num_train": 3}, see.tasks, {}),
    ("environment.overlong", "error", see.tasks, LONG),
    ("environment.order", "listed", see.requested, {}),
    ("environment.mix.name", "other", see.tasks, MIXED),
    ("environment.mix.path", "environments.sums:load", see.tasks, MIXED),
    ("environment.mix.args", {"num_train": 3}, see.tasks, MIXED),
    ("environment.mix.weight", 3.0, see.requested, {**MIXED, "tasks_per_step": 4}),
    ("rewards.path", "tests.leaf_rewards:first", see.scored, STRIPES),
    ("rewards.name", "stars", see.scored, STRIPES),
    ("rewards.weight", 0.5, see.scored, STRIPES),
    ("rewards.role", "shadow", see.scored, {"rewards": [*STRIPES["rewards"], {"path": "tests.leaf_rewards:first"}]}),
    ("rewards.args", {"scale": 3.0}, see.scored, STRIPES),
    ("rewards.only", ["one"], see.scored, {**MIXED, **STRIPES}),
    ("scoring.workers", 1, see.scored, {"rewards": [{"path": "tests.leaf_rewards:in_driver", "args": "{driver}"}]}),
    ("scoring.deadline_s", 0.1, see.scored, one_reward("slow")),
    ("scoring.max_failed", 0.3, see.stops_on_failures, {}),
    ("scoring.max_concurrent", 2, see.scored_together, one_reward("crowd")),
    ("scoring.memory_mb", 250, see.scored, one_reward("large")),
    ("scoring.judge_calls", 7, see.scored, one_reward("budget")),
    ("scoring.judge_tokens", 7, see.scored, one_reward("budget")),
    ("scoring.check", "warn", see.starts, one_reward("same")),
    ("scoring.environment", ["PYTEST_CURRENT_TEST"], see.scored, SEES),
    ("sampling.temperature", 0.7, see.requested, {}),
    ("sampling.top_p", 0.9, see.requested, {}),
    ("sampling.top_k", 9, see.requested, {}),
    ("sampling.min_p", 0.1, see.requested, {}),
    ("sampling.stop", ["b"], see.requested, {}),
    ("sampling.max_new_tokens", 7, see.requested, {}),
    ("rollout.engine", "openai", see.engine, {}),
    ("rollout.engine_args", {"wrong": 1}, see.engine, {}),
    ("rollout.workers", 3, see.reserved, RAY),
    ("rollout.threads", 3, see.reserved, RAY),
    ("rollout.gpus_per_worker", 0.5, see.reserved, RAY),
    ("rollout.tasks_per_chunk", 1, see.requested, {}),
    ("rollout.max_restarts", 0, see.supervised, trouble("die")),
    ("rollout.deadline_s", 0.2, see.supervised, {**trouble("sleep"), "rollout.max_restarts": 0}),
    ("rollout.hedge_after", 2.0, see.supervised, {**trouble("sleep"), "rollout.workers": 2}),
    (
        "rollout.update_in_flight",
        True,
        see.supervised,
        {
            **trouble("publish"),
            "max_staleness": 1,
            "algorithm": {"preset": "grpo", "correction": "token_mask"},
        },
    ),
    ("rollout.max_mismatch", 0.2, see.stops_on_mismatch, {}),
    ("reference", "{folder}/adapter", see.learnt, KL),
    ("algorithm.preset", "rloo", see.learnt, {}),
    ("algorithm.baseline", "leave_one_out", see.learnt, NO_SCALE),
    ("algorithm.scale", "none", see.learnt, {}),
    ("algorithm.ratio", "sequence", see.learnt, TWO),
    ("algorithm.surrogate", "clipped_weight", see.learnt, {**TWO, "learner.lr": 0.1}),
    ("algorithm.clip_low", 0.001, see.learnt, {**TWO, "learner.lr": 0.1}),
    ("algorithm.clip_high", 0.001, see.learnt, {**TWO, "learner.lr": 0.1}),
    ("algorithm.aggregate", "token_mean", see.learnt, {}),
    ("algorithm.reward_coef", 0.5, see.learnt, {}),
    ("algorithm.advantage_clip", 0.1, see.learnt, {}),
    ("algorithm.kl", "k3", see.learnt, KL),
    ("algorithm.kl_coef", 0.9, see.learnt, KL),
    ("algorithm.kl_in", "reward", see.learnt, KL),
    ("algorithm.kl_target", 0.5, see.learnt, KL),
    ("algorithm.entropy_coef", 0.1, see.learnt, {}),
    ("algorithm.gamma", 0.5, see.learnt, {"algorithm": {"preset": "ppo"}}),
    ("algorithm.gae_lambda", 0.3, see.learnt, {"algorithm": {"preset": "ppo"}}),
    ("algorithm.value_clip", 1e-6, see.learnt, {"algorithm": {"preset": "ppo", "value_clip": 0}, **TWO}),
    ("algorithm.correction", "token_mask", see.learnt, {"algorithm": {"preset": "grpo"}, **TWO}),
    (
        "algorithm.correction_range",
        [0.0, 0.01],
        see.learnt,
        {"algorithm": {"preset": "grpo", "correction": "token_truncate"}},
    ),
    ("algorithm.overlong", "mask", see.learnt, {}),
    ("algorithm.credit", "turn", see.learnt_of_turns, {}),
    ("algorithm.max_refills", 2, see.requested, {}),
    ("algorithm.preset", "online_dpo", see.learnt, {}),
    ("algorithm.loss", "ipo", see.learnt, ONLINE),
    ("algorithm.beta", 0.5, see.learnt, ONLINE),
    ("algorithm.label_smoothing", 0.2, see.learnt, ONLINE),
    ("algorithm.margin", 0.5, see.learnt, {"algorithm": {"preset": "online_dpo", "loss": "simpo"}}),
    ("algorithm.desirable_weight", 2.0, see.learnt, ONLINE_KTO),
    ("algorithm.undesirable_weight", 2.0, see.learnt, ONLINE_KTO),
    ("algorithm.overlong", "penalize", see.learnt, ONLINE),
    ("algorithm.max_refills", 2, see.requested, ONLINE),
    ("learner.lr", 0.5, see.learnt, {}),
    ("learner.critic_lr", 0.5, see.learnt, PPO),
    ("learner.schedule", "cosine", see.learnt, {}),
    ("learner.warmup_steps", 2, see.learnt, {}),
    ("learner.weight_decay", 0.5, see.learnt, {}),
    ("learner.max_grad_norm", 1e-3, see.learnt, {}),
    ("learner.activations", "recompute", see.passes, {}),
    ("learner.tokens_per_microbatch", 8, see.passes, {}),
    ("learner.workers", 2, see.reserved, RAY),
    ("learner.gpus_per_worker", 1.0, see.reserved, GROUP),
    ("learner.threads", 3, see.reserved, GROUP),
    ("sft.examples", 3, see.warm_start, {}),
    ("sft.epochs", 2.0, see.warm_start, {}),
    ("sft.batch_size", 3, see.warm_start, {}),
    ("sft.lr", 0.5, see.warm_start, {}),
    ("evaluation.tasks", 1, see.evaluated, {}),
    ("evaluation.samples_per_task", 2, see.evaluated, {}),
    ("evaluation.temperature", 0.5, see.evaluated, {}),
    ("evaluation.top_p", 0.5, see.evaluated, {}),
    ("evaluation.every", 1, see.files, {}),
    ("evaluation.metric", "share_of_a/part", see.judged_by, {}),
    ("evaluation.min_effect", 0.5, see.decided, {}),
    ("evaluations.name", "other", see.files, SETS),
    ("evaluations.tasks", 1, see.evaluated_sets, SETS),
    ("evaluations.samples_per_task", 2, see.evaluated_sets, SETS),
    ("evaluations.temperature", 0.5, see.evaluated_sets, SETS),
    ("evaluations.top_p", 0.5, see.evaluated_sets, SETS),
    ("evaluations.every", 1, see.files, SETS),
    ("evaluations.metric", "share_of_a/part", see.judged_by, SETS),
    ("evaluations.environment.path", "tests.observables:letters_with", see.evaluated_sets, ELSEWHERE),
    ("evaluations.environment.args", {"first": 7}, see.evaluated_sets, ELSEWHERE),
    ("guards.max_kl", 9.0, see.diverged, {}),
    ("guards.min_entropy", 0.0, see.diverged, {}),
    ("guards.steps_without_signal", 2, see.diverged, {}),
    ("guards.stop", [], see.diverged, {}),
    ("guards.alarms", {"truncation": "stop"}, see.stops_on_truncation, {"steps": 30}),
    ("checkpoint.every", 1, see.files, {}),
    ("checkpoint.adapters", "last 1", see.files, {"checkpoint.every": 1}),
]
SIMPO = {"preference": {"loss": "simpo", "beta": 2.0}}
KTO = {"preference": {"loss": "kto"}}
FOLDER = {"data.source": "{folder}/pairs"}
PREFERENCE: list[Row] = [
    *TRACKERS,
    ("name", "other", see.place, {}),
    ("output_dir", "{folder}/elsewhere", see.place, {}),
    ("seed", 1, see.compared, {}),
    ("model.source", "{folder}/other", see.compared, {}),
    ("model.dtype", "bfloat16", see.compared, {}),
    ("model.special_tokens_in_text", "refuse", see.spelling, {}),
    ("adapter.kind", "rslora", see.compared, {}),
    ("adapter.start", "{folder}/adapter", see.compared, {}),
    ("adapter.rank", 2, see.compared, {}),
    ("adapter.alpha", 9.0, see.compared, {}),
    ("adapter.target_modules", ["q_proj"], see.compared, {}),
    ("data.source", "{folder}/few.jsonl", see.rows, {}),
    ("data.subset", "clean", see.rows, FOLDER),
    ("data.split", "test", see.rows, FOLDER),
    ("data.heldout", 0.3, see.rows, {}),
    ("data.max_length", 60, see.rows, {}),
    ("data.overlong", "drop", see.rows, {"data.max_length": 11}),
    ("preference.loss", "ipo", see.compared, {}),
    ("preference.beta", 0.5, see.compared, {}),
    ("preference.label_smoothing", 0.2, see.compared, {}),
    ("preference.margin", 0.5, see.compared, SIMPO),
    ("preference.desirable_weight", 2.0, see.compared, KTO),
    ("preference.undesirable_weight", 2.0, see.compared, KTO),
    ("reference", "{folder}/adapter", see.compared, {}),
    ("reference_logprobs", "live", see.preference_files, {}),
    ("epochs", 2, see.compared, {}),
    ("batch_size", 3, see.compared, {}),
    ("learner.lr", 0.5, see.compared, {}),
    ("learner.schedule", "cosine", see.compared, {}),
    ("learner.warmup_steps", 2, see.compared, {}),
    ("learner.weight_decay", 0.5, see.compared, {}),
    ("learner.max_grad_norm", 1e-3, see.compared, {}),
    ("learner.activations", "recompute", see.compared_passes, {}),
    ("learner.tokens_per_microbatch", 8, see.compared_passes, {}),
    ("learner.workers", 2, see.reserved, {"learner.gpus_per_worker": 1.0}),
    ("learner.gpus_per_worker", 1.0, see.reserved, {"learner.workers": 2}),
    ("learner.threads", 3, see.reserved, {"learner.workers": 2}),
    ("ray_address", "somewhere", see.reserved, {"learner.workers": 2}),
    ("checkpoint.every", 1, see.preference_files, {}),
    ("checkpoint.adapters", "last 1", see.preference_files, {"checkpoint.every": 1}),
]
REWARD_MODEL: list[Row] = [
    *TRACKERS,
    ("name", "other", see.place, {}),
    ("output_dir", "{folder}/elsewhere", see.place, {}),
    ("seed", 1, see.rewarding, {}),
    ("model.source", "{folder}/other", see.rewarding, {}),
    ("model.dtype", "bfloat16", see.rewarding, {}),
    ("model.special_tokens_in_text", "refuse", see.spelling, {}),
    ("adapter.kind", "head", see.rewarding, {}),
    ("adapter.rank", 2, see.rewarding, {}),
    ("adapter.alpha", 9.0, see.rewarding, {}),
    ("adapter.target_modules", ["q_proj"], see.rewarding, {}),
    ("data.source", "{folder}/few.jsonl", see.rows, {}),
    ("data.subset", "clean", see.rows, FOLDER),
    ("data.split", "test", see.rows, FOLDER),
    ("data.heldout", 0.3, see.rows, {}),
    ("data.max_length", 60, see.rows, {}),
    ("data.overlong", "drop", see.rows, {"data.max_length": 11}),
    ("epochs", 2.0, see.rewarding, {}),
    ("batch_size", 3, see.rewarding, {}),
    ("lr", 0.5, see.rewarding, {}),
    ("threads", 3, see.threads_set, {}),
]
TEXTS = {"data.source": "{folder}/texts"}
LORA = {"adapter.kind": "lora", "epochs": 1}
HEAD: list[Row] = [
    *TRACKERS,
    ("name", "other", see.place, {}),
    ("output_dir", "{folder}/elsewhere", see.place, {}),
    ("seed", 1, see.heading, {}),
    ("model.source", "{folder}/other", see.heading, {}),
    ("model.dtype", "bfloat16", see.heading, {}),
    ("model.special_tokens_in_text", "refuse", see.spelling, {}),
    ("adapter.kind", "full", see.heading, {"epochs": 1}),
    ("adapter.rank", 2, see.heading, LORA),
    ("adapter.alpha", 9.0, see.heading, LORA),
    ("adapter.target_modules", ["q_proj"], see.heading, LORA),
    ("data.source", "{folder}/fewer.jsonl", see.labelled, {}),
    ("data.subset", "clean", see.labelled, TEXTS),
    ("data.split", "test", see.labelled, TEXTS),
    ("data.text", "other", see.labelled, {}),
    ("data.label", "other", see.labelled, {}),
    ("data.limit", 50, see.labelled, {}),
    ("data.heldout", 0.3, see.labelled, {}),
    ("data.validation", 0.3, see.labelled, {}),
    ("data.max_length", 4, see.labelled, {}),
    ("data.overlong", "drop", see.labelled, {"data.max_length": 5}),
    ("task", "regression", see.labelled, {"data.source": "{folder}/numbers.jsonl"}),
    ("labels", ["liked", "disliked"], see.labelled, {}),
    ("class_weights", "balanced", see.heading, {"data.source": "{folder}/uneven.jsonl"}),
    ("trunk_layers", 1, see.heading, {}),
    ("pooling", "max", see.heading, {}),
    ("hidden_sizes", [4], see.heading, {}),
    ("epochs", 1, see.heading, {}),
    ("patience", 1, see.heading, {"lr": 0.5, "epochs": 10}),
    ("batch_size", 3, see.heading, {}),
    ("lr", 0.05, see.heading, {}),
    ("trunk_lr", 0.01, see.heading, LORA),
    ("threads", 3, see.head_threads, {}),
]
MEASURED = {"evaluation.every": 1, "learner.lr": 1e-9, "data.heldout": 20, "epochs": 4}
SUPERVISED: list[Row] = [
    *TRACKERS,
    ("name", "other", see.place, {}),
    ("output_dir", "{folder}/elsewhere", see.place, {}),
    ("seed", 1, see.taught, {}),
    ("model.source", "{folder}/other", see.taught, {}),
    ("model.dtype", "bfloat16", see.taught, {}),
    ("model.special_tokens_in_text", "refuse", see.spelling, {}),
    ("adapter.kind", "rslora", see.taught, {}),
    ("adapter.start", "{folder}/adapter", see.taught, {}),
    ("adapter.rank", 2, see.taught, {}),
    ("adapter.alpha", 9.0, see.taught, {}),
    ("adapter.target_modules", ["q_proj"], see.taught, {}),
    ("data.source", "{folder}/few.jsonl", see.rows, {}),
    ("data.subset", "clean", see.rows, FOLDER),
    ("data.split", "test", see.rows, FOLDER),
    ("data.columns", {"completion": "rejected"}, see.rows, {}),
    ("data.loss_on", "all", see.rows, {}),
    ("data.heldout", 3, see.rows, {}),
    ("data.max_length", 60, see.rows, {}),
    ("data.overlong", "drop", see.rows, {"data.max_length": 11}),
    ("epochs", 2.0, see.taught, {}),
    ("batch_size", 3, see.taught, {}),
    ("learner.lr", 0.5, see.taught, {}),
    ("learner.schedule", "cosine", see.taught, {}),
    ("learner.warmup_steps", 2, see.taught, {}),
    ("learner.weight_decay", 0.5, see.taught, {}),
    ("learner.max_grad_norm", 1e-3, see.taught, {}),
    ("learner.activations", "recompute", see.taught_passes, {}),
    ("learner.tokens_per_microbatch", 8, see.taught_passes, {}),
    ("learner.workers", 2, see.reserved, {"learner.gpus_per_worker": 1.0}),
    ("learner.gpus_per_worker", 1.0, see.reserved, {"learner.workers": 2}),
    ("learner.threads", 3, see.reserved, {"learner.workers": 2}),
    ("ray_address", "somewhere", see.reserved, {"learner.workers": 2}),
    ("evaluation.every", 1, see.supervised_files, {}),
    ("evaluation.patience", 1, see.supervised_files, MEASURED),
    ("evaluation.min_effect", 0.5, see.decided, {}),
    ("evaluation.tasks", "{folder}/run.yaml", see.supervised_files, {}),
    ("checkpoint.every", 1, see.supervised_files, {}),
    ("checkpoint.adapters", "last 1", see.supervised_files, {"checkpoint.every": 1}),
]
KINDS: dict[type[BaseModel], list[Row]] = {
    RunConfig: RL,
    SupervisedConfig: SUPERVISED,
    PreferenceConfig: PREFERENCE,
    RewardModelConfig: REWARD_MODEL,
    HeadConfig: HEAD,
}
ONE_VALUE = [(kind, "kind") for kind in (SupervisedConfig, PreferenceConfig, RewardModelConfig, HeadConfig)]
"""They tell run directories apart: see the test below."""
REFUSED = {
    (RewardModelConfig, "adapter.start"): "somewhere",
    (PreferenceConfig, "learner.critic_lr"): 0.5,
    (SupervisedConfig, "learner.critic_lr"): 0.5,
}
"""Settings that another command has in a section of this name, with a value for it."""


def leaves(kind: type, path: str = "") -> Iterator[str]:
    """Dotted names of all settings of a config, once each; of several sections that can stand in a place those of all,
    of a list of sections its section's."""
    hints = typing.get_type_hints(kind)
    names = kind.model_fields if issubclass(kind, BaseModel) else [f.name for f in dataclasses.fields(kind)]
    for name in names:
        sections = [t for t in (hints[name], *typing.get_args(hints[name])) if _is_section(t)]
        yield from dict.fromkeys(leaf for section in sections for leaf in leaves(section, f"{path}{name}."))
        if not sections:
            yield f"{path}{name}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Another tiny model, an adapter of the first one, and preferences."""
    folder = tmp_path_factory.mktemp("leaves")
    save_tiny_model(folder / "other", seed=5)
    write_pairs(folder / "pairs.jsonl", 24)
    write_pairs(folder / "few.jsonl", 16)
    texts = write_texts(folder / "texts.jsonl", 120).read_text().splitlines(keepends=True)
    write_texts(folder / "texts.jsonl", 80)
    write_texts(folder / "fewer.jsonl", 60)
    write_texts(folder / "numbers.jsonl", 60, task="regression")
    (folder / "uneven.jsonl").write_text("".join(row for at, row in enumerate(texts) if at % 4 < 2 or '"liked"' in row))
    (folder / "texts").mkdir()
    write_texts(folder / "texts" / "rows.jsonl", 60)
    (folder / "pairs").mkdir()
    write_pairs(folder / "pairs" / "rows.jsonl", 24)
    write_config(folder, tiny_model)
    config = make(RunConfig, base(RunConfig, folder, tiny_model))
    tensors = {name: tensor + 0.1 for name, tensor in see.learner(config).adapter(0).tensors.items()}
    save_adapter(folder / "adapter", config, str(tiny_model), tensors)
    return folder


def base(kind: type[BaseModel], folder: Path, model: Path) -> dict[str, Any]:
    """The tree that both sides of a comparison start from."""
    shared = {
        "name": "leaves",
        "output_dir": str(folder / "runs"),
        "model": {"source": str(model), "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
    }
    data = {"data": {"source": str(folder / "pairs.jsonl"), "heldout": 0.5}}
    if kind is RewardModelConfig:
        return {**shared, **data, "threads": 1, "epochs": 1, "lr": 1e-2}
    if kind is HeadConfig:
        data = {"data": {"source": str(folder / "texts.jsonl"), "heldout": 0.4}}
        return {**shared, **data, "threads": 1, "epochs": 3, "lr": 0.02, "pooling": "last"}
    learner = {"learner": {"threads": 1, "lr": 1e-2}}
    if kind is SupervisedConfig:
        renamed = {"columns": {"completion": "chosen"}}
        return {**shared, "data": {**data["data"], **renamed}, **learner, "batch_size": 4}
    if kind is PreferenceConfig:
        return {**shared, **data, **learner, "batch_size": 4}
    return {
        **shared,
        **learner,
        "steps": 2,
        "tasks_per_step": 2,
        "samples_per_task": 2,
        "backend": "inline",
        "environment": {"path": "tests.fakes:letters"},
        "rewards": [{"path": "tests.fakes:share_of_a"}],
        "scoring": {"workers": 0},
        "sampling": {"max_new_tokens": 8},
        "rollout": {"threads": 1},
        "sft": {"examples": 6, "batch_size": 2},
        "evaluation": {"tasks": 2},
    }


def make(kind: type[BaseModel], tree: dict[str, Any], settings: dict[str, Any] | None = None) -> Any:
    """The config of a tree with some settings, given by dotted names, replaced."""
    tree = copy.deepcopy(tree)
    for name, value in (settings or {}).items():
        *parents, last = name.split(".")
        node: Any = tree
        for parent in parents:
            if isinstance(node.get(parent), str):  # a preset
                node[parent] = {"preset": node[parent]}
            node = node.setdefault(parent, {})
            node = node[0] if isinstance(node, list) else node
        node[last] = value
    return kind.model_validate(tree)


def filled(value: Any, folder: Path) -> Any:
    """The value with the test's folder and process in their places."""
    if value == "{driver}":
        return {"driver": os.getpid()}
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, list):
        return [filled(each, folder) for each in value]
    return {name: filled(each, folder) for name, each in value.items()} if isinstance(value, dict) else value


@cache
def seen(observable: Callable[[Any], Any], kind: type[BaseModel], settings: str, folder: Path, model: Path) -> Any:
    return observable(make(kind, base(kind, folder, model), json.loads(settings)))


CASES = [pytest.param(kind, *row, id=f"{kind.__name__}-{row[0]}") for kind, table in KINDS.items() for row in table]


@pytest.mark.parametrize(("kind", "leaf", "value", "observable", "beside"), CASES)
def test_a_setting_changes_something(
    kind: type[BaseModel],
    leaf: str,
    value: Any,
    observable: Callable[[Any], Any],
    beside: dict[str, Any],
    folder: Path,
    tiny_model: Path,
) -> None:
    beside = filled(beside, folder)
    before = seen(observable, kind, json.dumps(beside, sort_keys=True), folder, tiny_model)
    config = make(kind, base(kind, folder, tiny_model), {**beside, leaf: filled(value, folder)})
    assert observable(config) != before


STEADY = [
    see.learnt,
    see.passes,
    see.requested,
    see.scored,
    see.compared,
    see.rewarding,
    see.warm_start,
    see.rows,
    see.heading,
]


@pytest.mark.parametrize("observable", STEADY, ids=lambda f: f.__name__)
def test_without_a_change_nothing_changes(observable: Callable[[Any], Any], folder: Path, tiny_model: Path) -> None:
    kind = next(kind for kind, table in KINDS.items() for row in table if row[2] is observable)
    before = seen(observable, kind, "{}", folder, tiny_model)
    assert observable(make(kind, base(kind, folder, tiny_model))) == before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_table_has_every_setting(kind: type[BaseModel]) -> None:
    others = {leaf for each, leaf in ONE_VALUE if each is kind}
    assert {row[0] for row in KINDS[kind]} | others == set(leaves(kind))


@pytest.mark.parametrize("kind", [kind for kind, _ in ONE_VALUE], ids=lambda kind: kind.__name__)
def test_the_kind_says_which_command_a_run_directory_is_of(
    kind: type[BaseModel], folder: Path, tiny_model: Path
) -> None:
    config = make(kind, base(kind, folder, tiny_model), {"name": "kind"})
    with Run.create(config, provenance=Provenance(), restart=True) as run:
        assert main._kind(run.path) == config.kind


@pytest.mark.parametrize(("kind", "leaf"), REFUSED, ids=lambda part: getattr(part, "__name__", part))
def test_a_setting_that_only_another_command_has(
    kind: type[BaseModel], leaf: str, folder: Path, tiny_model: Path
) -> None:
    file = folder / "refused.yaml"
    file.write_text(json.dumps(base(kind, folder, tiny_model)))
    override = f"{leaf}={REFUSED[kind, leaf]}"
    with pytest.raises(ValueError, match=rf"^override {override}: this key has no place here: .*; leave it out$"):
        config_file.load(file, [override], kind)


def test_the_docs_say_how_many_settings_there_are() -> None:
    page = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    counts = dict(re.findall(r"^\| `(\w+Config)` \| (\d+) \|", page, re.MULTILINE))
    assert counts == {kind.__name__: str(len(list(leaves(kind)))) for kind in KINDS}
