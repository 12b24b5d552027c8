"""Whether an environment keeps what it promises, before a run depends on it: `rlft env check`.

Episodes are played twice by a policy that says made-up things: numbers, words of the prompt, replies of the
demonstrations. No model is needed; a tokenizer can be given, else every byte is a token.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlft.cli.env_rewards import (
    Finding,
    before_a_run,
    doing_nothing,
    of_environment,
    of_rewards,
    scored_until_one_fails,
    trajectories,
)
from rlft.config import EnvironmentConfig
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.environment.fresh_process import as_json, fingerprints, load_elsewhere
from rlft.environment.prompt_lengths import first_messages
from rlft.environment.tools import unread_form
from rlft.model import templates
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine, byte_tokenizer
from rlft.rollout.generate import run_chunk
from rlft.types import Failed, Group, RewardSpec, SamplingParams, Task, Trajectory

STEP_S = 20.0
"""Seconds after which a step hangs here, where nobody wants to wait for as long as a run may."""


def check_environment(
    config: EnvironmentConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scorer: Scorer | None = None,
    specs: Sequence[RewardSpec] = (),
    deadline_s: float = 10.0,
    actions: Sequence[str] = (),
    tasks: int = 8,
    samples: int = 4,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[Finding]:
    """Run all checks of an environment that need no model.

    Args:
        scorer: rewards that score the episodes too.
        specs: these rewards, which are looked at as before a run, too.
        deadline_s: `scoring.deadline_s`.
        actions: what the policy says, beside what is made up.
        tasks: how many, evenly spread, and `samples` episodes of each.

    Raises:
        ValueError: the environment cannot be loaded, or the contract's own check refuses it.
    """
    environment = loading.load(config)
    if config.mix:  # each by itself, and what is asked of them together
        chosen_by = {"tokenizer": tokenizer, "scorer": scorer, "actions": actions, "tasks": tasks, "samples": samples}
        looked = before_a_run(specs, environment, scorer, deadline_s) if scorer else []
        return [_tasks(environment), *looked] + [
            replace(found, name=f"{each.name}: {found.name}")
            for each in config.mix
            for found in check_environment(
                EnvironmentConfig(path=each.path, args=each.args),
                max_new_tokens=max_new_tokens,
                seed=seed,
                **chosen_by,  # type: ignore[arg-type]
            )
        ]
    plain = _plain_data(environment)
    findings = [_tasks(environment), _reproducible(environment, config, elsewhere=plain.is_fine), plain]
    every = max(1, len(environment.train) // tasks)
    chosen = tuple(environment.train[::every][:tasks])
    say = _babble([*actions, *_said(environment)])
    tokenizer = tokenizer or byte_tokenizer()
    if environment.episode is not None:
        findings += _starts(environment, chosen, seed)
        if not all(finding.is_fine for finding in findings):
            return findings  # episodes would only stumble over the same
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=_room(environment, max_new_tokens))
    chunk = Chunk(
        tasks=chosen, samples_per_task=samples, params=params, run_seed=seed, stream="check", step=0, version=0
    )
    try:
        groups = _played(environment, chunk, tokenizer, say)
        if any(_hangs(trajectory) for trajectory in trajectories(groups)):
            return [*findings, _failures(groups)]
        again = _played(environment, chunk, tokenizer, say)
    except ValueError as error:
        return [*findings, Finding(name="episodes", is_fine=False, detail=str(error))]
    findings += [_failures(groups), _deterministic(groups, again), _budgets(environment, groups)]
    findings += [_tokens(tokenizer, environment, groups), *of_environment(environment, groups)]
    if scorer:
        scored = scored_until_one_fails(groups, scorer)
        of_scored = of_rewards(environment, groups, scored, scorer, specs)
        findings += of_scored
        if all(finding.is_fine for finding in of_scored):
            findings += before_a_run(specs, environment, scorer, deadline_s)
    if environment.episode is not None and all(finding.is_fine for finding in findings):

        def play(task: Task, say: Callable[[str, int, int], str]) -> Group:
            return _played(environment, replace(chunk, tasks=(task,), samples_per_task=1), tokenizer, say)[0]

        findings += doing_nothing(environment, chosen, groups, play, scorer)
    return findings


def _played(
    environment: Environment,
    chunk: Chunk,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str, int, int], str],
) -> list[Group]:
    """The episodes of a chunk, task by task until one hangs: others may hang, too, and nobody would see an end."""
    limit_s = environment.step_deadline_s
    environment = replace(environment, step_deadline_s=STEP_S if limit_s is None else min(limit_s, STEP_S))
    engine = ScriptedEngine(tokenizer, say, context=10**6)
    groups: list[Group] = []
    for task in chunk.tasks:
        groups += run_chunk(engine, tokenizer, replace(chunk, tasks=(task,)), environment)
        if any(map(_hangs, groups[-1].trajectories)):
            break
    return groups


def _hangs(trajectory: Trajectory) -> bool:
    return isinstance(trajectory.outcome, Failed) and trajectory.outcome.kind == "timeout"


def _tasks(environment: Environment) -> Finding:
    counts = f"{len(environment.train)} training, {len(environment.heldout)} held out, no prompt in both"
    return Finding(
        name="tasks",
        is_fine=bool(environment.heldout),
        detail=f"{counts}, {len(environment.demonstrations)} demonstrations"
        if environment.heldout
        else "no held-out tasks: the policy is measured on them",
    )


def _reproducible(environment: Environment, config: EnvironmentConfig, *, elsewhere: bool) -> Finding:
    """Args: elsewhere: whether the tasks are plain data, so that another process can tell what it got."""
    name, readers = "same arguments, same tasks", "rollout workers load it too, and a resumed run does"
    again = loading.load(config)
    for split in ("train", "heldout", "demonstrations"):
        if list(getattr(again, split)) != list(getattr(environment, split)):
            return Finding(name=name, is_fine=False, detail=f"{split} differs when it is loaded again: {readers}")
    if not elsewhere:
        return Finding(name=name, is_fine=True, detail="loaded twice")
    try:
        found = load_elsewhere(config)
    except ValueError as error:
        return Finding(name=name, is_fine=False, detail=f"{error}\n{readers}")
    for split, ours in fingerprints(environment).items():
        if found[split] != ours:
            pairs = enumerate(zip(ours, found[split], strict=False))
            row = next((row for row, (one, other) in pairs if one != other), min(len(ours), len(found[split])))
            detail = (
                f"{split} differs from row {row} on in another process: {readers}. Sets of strings have another order "
                "there (PYTHONHASHSEED), and so do files of a folder on another machine: sort them"
            )
            return Finding(name=name, is_fine=False, detail=detail)
    return Finding(name=name, is_fine=True, detail="loaded twice, and in another process")


def _plain_data(environment: Environment) -> Finding:
    for task in (*environment.train, *environment.heldout):
        try:
            as_json([task.answer, dict(task.columns)])
        except (TypeError, ValueError) as error:
            detail = f"task {task.id!r}: answer or columns are no plain data ({error}); rewards get them in a process"
            return Finding(name="plain data", is_fine=False, detail=detail)
    return Finding(name="plain data", is_fine=True, detail="answers and columns")


def _starts(environment: Environment, tasks: Sequence[Task], seed: int) -> list[Finding]:
    differing, seeded = [], 0
    for task in tasks:
        first, second, other = (first_messages(environment, task, seed=s) for s in (seed, seed, seed + 1))
        differing += [task.id] if first != second else []
        seeded += first != other
    detail = f"{len(tasks)} tasks; another seed changed {seeded} of them"
    if differing:
        detail = f"start(task, seed) of {differing[0]!r} returned other messages for the same seed"
    return [Finding(name="a group starts alike", is_fine=not differing, detail=detail)]


def _failures(groups: Sequence[Group]) -> Finding:
    failed = [t.outcome for t in trajectories(groups) if isinstance(t.outcome, Failed)]
    if failed:
        detail = f"{len(failed)} of {len(trajectories(groups))} failed; {failed[0].message}\n{failed[0].reproduce}"
        return Finding(name="episodes", is_fine=False, detail=detail)
    reasons = Counter(t.stop_reason for t in trajectories(groups))
    turns = sorted(len(t.turns) for t in trajectories(groups))
    ended = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return Finding(name="episodes", is_fine=True, detail=f"ended: {ended}; {turns[0]} to {turns[-1]} turns")


def _deterministic(groups: Sequence[Group], again: Sequence[Group]) -> Finding:
    for one, other in zip(trajectories(groups), trajectories(again), strict=True):
        if [(t.observation, t.reward) for t in one.turns] != [(t.observation, t.reward) for t in other.turns]:
            detail = f"task {one.task.id!r}: the same seed and the same actions gave other answers or rewards"
            return Finding(name="deterministic", is_fine=False, detail=detail)
    return Finding(name="deterministic", is_fine=True, detail="same seed and actions, same answers")


def _budgets(environment: Environment, groups: Sequence[Group]) -> Finding:
    turns = max(len(t.turns) for t in trajectories(groups))
    tokens = max(len(t.token_ids) for t in trajectories(groups))
    limit = environment.max_tokens
    is_fine = environment.episode is None or (turns <= environment.max_turns and (limit is None or tokens <= limit))
    detail = f"{turns} turns of {environment.max_turns}, {tokens} tokens of {'any number' if limit is None else limit}"
    return Finding(
        name="budgets", is_fine=is_fine, detail=detail if environment.episode else f"one turn, {tokens} tokens"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, environment: Environment, groups: Sequence[Group]) -> Finding:
    for trajectory in trajectories(groups):
        ids, mask = trajectory.token_ids, trajectory.action_mask
        sampled = [token for turn in trajectory.turns for token in turn.completion.token_ids]
        if len(ids) != len(mask) or [t for t, is_action in zip(ids, mask, strict=False) if is_action] != sampled:
            detail = f"task {trajectory.task.id!r}: the mask does not cover the sampled tokens"
            return Finding(name="tokens and masks", is_fine=False, detail=detail)
    lengths = [len(t.prompt_ids) for t in trajectories(groups)]
    tools = ""
    if environment.tools:
        where = "by the chat template" if templates.takes_tools(tokenizer) else "in the system message"
        tools = f"; {len(environment.tools)} tools, described {where}"
        if form := unread_form(tokenizer):
            tools += f", which has them called as in {form[:200]!r}; rlft.environment.tools does not read that"
    return Finding(
        name="tokens and masks", is_fine=True, detail=f"prompts of {min(lengths)} to {max(lengths)} tokens{tools}"
    )


def _room(environment: Environment, max_new_tokens: int) -> int:
    return max_new_tokens if environment.max_tokens is None else min(max_new_tokens, environment.max_tokens)


def _said(environment: Environment) -> list[str]:
    """Replies of the demonstrations, each once."""
    replies = [m["content"] for shown in environment.demonstrations[:50] for m in shown if m["role"] == "assistant"]
    return list(dict.fromkeys(replies))


def _babble(said: Sequence[str]) -> Callable[[str, int, int], str]:
    def say(prompt: str, index: int, seed: int) -> str:
        random_ = random.Random(seed)
        choices: list[Callable[[], Any]] = [
            lambda: random_.randint(0, 20),
            lambda: " ".join(random_.choices(prompt.split(), k=5)),
            lambda: f"<answer>{random_.randint(0, 99)}</answer>",
            lambda: '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>',
        ]
        if said:
            choices += [lambda: random_.choice(said)] * len(choices)
        return str(random_.choice(choices)())

    return say
