"""What `rlft env check` says of rewards: those of the environment, those that score its episodes, and doing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from rlft.curves.text import shortened
from rlft.environment.contract import Environment
from rlft.reward.behaviour import differ, is_blind
from rlft.reward.good_replies import messages_key
from rlft.reward.scoring import Scorer
from rlft.reward.startup import look, told
from rlft.types import Failed, Group, Message, RewardSpec, Score, Task, Trajectory

_FEW = 8
"""Different episodes that have to score alike before a reward is called constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    """What it is."""
    is_fine: bool
    """Whether the environment may be used."""
    detail: str
    """What was seen."""


def of_environment(environment: Environment, groups: Sequence[Group]) -> list[Finding]:
    """What the environment gave for the episodes; nothing to say of a single-turn one."""
    if environment.episode is None:
        return []
    given = [t.environment_reward for t in trajectories(groups)]
    return [Finding(name="environment's reward", is_fine=True, detail=_range(given))]


def of_rewards(
    environment: Environment,
    groups: Sequence[Group],
    scored: Sequence[Trajectory],
    scorer: Scorer,
    specs: Sequence[RewardSpec],
) -> list[Finding]:
    """What the rewards gave for the episodes, and whether anything is wrong with it.

    Args:
        scored: see `scored_until_one_fails`.
    """
    outcomes = [t.outcome for t in scored]
    failed = [(t, t.outcome) for t in scored if isinstance(t.outcome, Failed)]
    observed = [(name, failure) for t in scored for name, failure in t.failed_parts.items()]
    detail = _range([outcome.value if isinstance(outcome, Score) else None for outcome in outcomes])
    wrong = ""
    if failed:
        culprit, failure = failed[0]
        wrong = (
            f"{len(failed)} of {len(outcomes)} could not be scored: {failure.message}\n"
            f"task {culprit.task.id!r}, reply {shortened(culprit.text, 200)!r}"
        )
    elif observed:
        (name, failure), count = observed[0], sum(name == observed[0][0] for name, _ in observed)
        wrong = f"observed reward {name} failed on {count} of {len(outcomes)}: {failure.message}"
    elif scored and not any(isinstance(outcome, Score) for outcome in outcomes):
        reason = getattr(outcomes[0], "reason", "")
        wrong = f"{detail}: they abstained from all of them, the first because {reason or 'they returned None'}"
    else:
        wrong = _alone(groups, scored, scorer) or _constant(environment, scored, specs)
    return [Finding(name="rewards", is_fine=not wrong, detail=wrong or detail)]


def before_a_run(
    specs: Sequence[RewardSpec], environment: Environment, scorer: Scorer, deadline_s: float
) -> list[Finding]:
    """For what a run with these rewards would not start; see `rlft.reward.startup.look`."""
    errors = [each for each in look(specs, scorer, environment, deadline_s) if each.severity == "error"]
    return [Finding(name="rewards before a run", is_fine=False, detail=told(each)) for each in errors]


def doing_nothing(
    environment: Environment,
    tasks: Sequence[Task],
    groups: Sequence[Group],
    play: Callable[[Task, Callable[[str, int, int], str]], Group],
    scorer: Scorer | None,
) -> list[Finding]:
    """Whether a policy that only gives empty replies earns what it should not.

    Args:
        groups: other episodes of these tasks.
        play: plays one episode of a task with what a function says.
        scorer: rewards, whose weighted sum is looked at; else it is what the environment gives.
    """
    name = "doing nothing"
    empty = [play(task, lambda prompt, index, seed: "") for task in tasks]
    failed = [t.outcome for t in trajectories(empty) if isinstance(t.outcome, Failed)]
    if failed:
        return [Finding(name=name, is_fine=False, detail=f"empty replies: {failed[0].message}\n{failed[0].reproduce}")]
    totals = [_totals([group], scorer) for group in empty]
    got = [value for values in totals for value in values]
    if not got:
        return [Finding(name=name, is_fine=True, detail=f"none given for empty replies in {len(tasks)} tasks")]
    detail = f"{min(got):g} to {max(got):g} for empty replies in {len(got)} of {len(tasks)} tasks"
    shown = {messages_key(m[: -_replies(m)]): m for m in environment.demonstrations if 0 < _replies(m) < len(m)}
    pairs = [
        (own[0], _totals([play(task, _says(demonstration))], scorer))
        for task, own in zip(tasks, totals, strict=True)
        if own and (demonstration := shown.get(messages_key(task.messages)))
    ]
    compared = [(own, values[0]) for own, values in pairs if values]
    if compared:
        nothing, good = (sum(values) / len(compared) for values in zip(*compared, strict=True))
        detail += f"; where a demonstration gets {good:g} in the mean, empty replies get {nothing:g}"
        if nothing >= good:
            detail += ": a policy learns to say nothing"
            return [Finding(name=name, is_fine=False, detail=detail)]
    highest = max(_totals(groups, scorer), default=max(got))
    if len(got) == len(tasks) and min(got) > 0 and min(got) >= highest:
        detail += f", and no other episode got more than {highest:g}: a policy learns to say nothing"
        return [Finding(name=name, is_fine=False, detail=detail)]
    return [Finding(name=name, is_fine=True, detail=detail)]


def scored_until_one_fails(groups: Sequence[Group], scorer: Scorer) -> list[Trajectory]:
    """The trajectories that were scored: the groups until one has a failure, since a reward may hang on all of them."""
    found: list[Trajectory] = []
    for group in groups:
        played = tuple(t for t in group.trajectories if not isinstance(t.outcome, Failed))
        for trajectory in scorer.score([replace(group, trajectories=played)])[0].trajectories:
            if not (isinstance(trajectory.outcome, Failed) and trajectory.outcome.kind == "not_run"):
                found.append(trajectory)
        if any(t.failed_parts for t in found):
            break
    return found


def trajectories(groups: Iterable[Group]) -> list[Trajectory]:
    """The trajectories of all groups."""
    return [trajectory for group in groups for trajectory in group.trajectories]


def _alone(groups: Sequence[Group], scored: Sequence[Trajectory], scorer: Scorer) -> str:
    """What is wrong with the rewards where the first episodes are scored again, each alone; empty if nothing is.

    A group has one sample where all others failed, and in an evaluation. What compares the samples of a group may say
    something else then; a failure it may not be.
    """
    for before in (t for t in scored if t.task is groups[0].task):
        bare = replace(before, outcome=None, failed_parts={}, extras={})
        (now,) = scorer.score([replace(groups[0], trajectories=(bare,))])[0].trajectories
        failures = [*([now.outcome] if isinstance(now.outcome, Failed) else []), *now.failed_parts.values()]
        if failures:
            return (
                f"an episode that is alone in its group could not be scored: {failures[0].message}\n"
                "a group has one sample where the others failed, and in an evaluation: abstain, or give 0 there"
            )
        for label, plan in scorer.plans.items():
            values = [t.outcome.parts.get(label) if isinstance(t.outcome, Score) else None for t in (before, now)]
            if plan.kind != "group" and differ(*values):
                first, again = ("no value" if value is None else f"{value:.6g}" for value in values)
                return (
                    f"reward {label}: the same episode got {first}, and {again} when it was scored again alone: let "
                    "the value depend on the arguments alone"
                )
    return ""


def _constant(environment: Environment, scored: Sequence[Trajectory], specs: Sequence[RewardSpec]) -> str:
    """That all episodes got one value above 0, where good replies are among them, or no source looks at any."""
    values = {t.outcome.value for t in scored if isinstance(t.outcome, Score)}
    different = {messages_key(t.conversation) for t in scored if isinstance(t.outcome, Score)}
    good_known = environment.demonstrations or (specs and all(is_blind(spec) for spec in specs if spec.weight))
    if len(values) != 1 or max(values) <= 0 or len(different) < _FEW or not good_known:
        return ""
    return f"they gave {values.pop():g} for {len(different)} different episodes: nothing can be learnt from that"


def _totals(groups: Sequence[Group], scorer: Scorer | None) -> list[float]:
    """The weighted sums, or without rewards what the environment gave; those without one are left out."""
    if scorer is None:
        return [value for t in trajectories(groups) if (value := t.environment_reward) is not None]
    scored = trajectories(scorer.score(groups))
    return [t.outcome.value for t in scored if isinstance(t.outcome, Score)]


def _replies(messages: Sequence[Message]) -> int:
    """Messages from the first reply on; 0 where there is none."""
    roles = [message["role"] for message in messages]
    return len(roles) - roles.index("assistant") if "assistant" in roles else 0


def _says(demonstration: Sequence[Message]) -> Callable[[str, int, int], str]:
    replies = iter([m["content"] for m in demonstration if m["role"] == "assistant"])
    return lambda prompt, index, seed: next(replies, "")


def _range(values: Sequence[float | None]) -> str:
    seen = [value for value in values if value is not None]
    if not seen:
        return f"none given in {len(values)} episodes"
    return f"{min(seen):g} to {max(seen):g} in {len(seen)} of {len(values)} episodes, for made-up replies"
