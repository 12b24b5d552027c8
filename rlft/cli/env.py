"""`rlft env`: play an environment, check it, measure how difficult its tasks are."""

from __future__ import annotations

import asyncio
import inspect
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.config import EnvironmentConfig, ScoringConfig
    from rlft.environment.contract import Environment
    from rlft.reward.scoring import Scorer
    from rlft.types import Message, RewardSpec, Task, Trajectory

app = typer.Typer(help="Play, check and measure environments.", no_args_is_help=True)

HANGS_S = 5.0
"""Seconds after which a reward hangs, where no config says how long it may take."""

Target = Annotated[
    str,
    typer.Argument(
        help="A config (YAML), package.module:function, file.py:function, or the name of a shipped one.",
        show_default=False,
        metavar="ENVIRONMENT",
    ),
]
Arguments = Annotated[
    list[str] | None, typer.Option("--args", help="Argument of its function: key=value.", metavar="KEY=VALUE")
]
Reward = Annotated[list[str] | None, typer.Option(help="Reward that scores it too: package.module:function.")]
Seed = Annotated[int, typer.Option(help="Seed of the episode.")]


@app.command()
def play(
    target: Target,
    args: Arguments = None,
    task: Annotated[str, typer.Option(help="Id of the task; the first one when left out.")] = "",
    seed: Seed = 0,
    reward: Reward = None,
) -> None:
    """Be the policy: read the messages, write the replies, see the rewards.

    A line is a reply; a line that ends with a backslash goes on. The end of the input leaves.
    """
    from rlft.environment import loading

    config, rewards, _ = _resolve(target, args, reward)
    environment = loading.load(config)
    _play(Console(), environment, _find(environment, task), seed, rewards)


@app.command()
def check(
    target: Target,
    args: Arguments = None,
    reward: Reward = None,
    model: Annotated[str, typer.Option(help="Model whose tokenizer is used; bytes when left out.")] = "",
    action: Annotated[list[str] | None, typer.Option(help="A reply that the made-up policy gives too.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks that are looked at.")] = 8,
    samples: Annotated[int, typer.Option(min=1, help="Episodes of each.")] = 4,
    seed: Seed = 0,
) -> None:
    """Whether an environment keeps what it promises; exit code 1 if not. Needs no model."""
    from rlft.cli.env_check import check_environment
    from rlft.config import ScoringConfig
    from rlft.model import chat, sources

    config, rewards, scoring = _resolve(target, args, reward)
    with _killable(rewards, scoring) as scorer:
        findings = check_environment(
            config,
            tokenizer=chat.load_tokenizer(sources.resolve(model)) if model else None,
            scorer=scorer,
            specs=rewards,
            deadline_s=(scoring or ScoringConfig.model_validate({})).deadline_s,
            actions=action or (),
            tasks=tasks,
            samples=samples,
            seed=seed,
        )
    table = Table(title=Text(visible(config.path)), title_justify="left")
    for heading in ("", "what", "seen"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.is_fine else Text("wrong", style="red")
        table.add_row(mark, Text(finding.name), Text(visible(finding.detail)))
    Console().print(table)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


@app.command()
def measure(
    config: Annotated[Path, typer.Argument(help="Config file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that replace the config's.", show_default=False, metavar="KEY=VALUE"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions of each training task.")] = 4,
    tasks: Annotated[int, typer.Option(help="The first tasks only; 0 measures all.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON lines of id and difficulty.")] = Path("difficulty.jsonl"),
) -> None:
    """How often the base model (or `adapter.start`) fails each training task, for `environment.order: easy_first`."""
    from rlft.cli.run_config import load

    loaded = load(config, overrides, is_trained=False)
    from rlft.cli import env_measure as launch_env  # takes seconds, which a misspelt key should not cost

    counts = launch_env.measure(loaded, samples=samples, tasks=tasks, out=out)
    console = Console()
    for name, value in counts.items():
        console.print(
            Text(
                f"{name.replace('_', ' ')}: {value:.3f}"
                if isinstance(value, float)
                else f"{name.replace('_', ' ')}: {value}"
            )
        )
    console.print(
        Text(f"Written: {out}\nIn the config: environment: {{args: {{difficulty_file: {out}}}, order: easy_first}}")
    )


def _resolve(
    target: str, args: list[str] | None, rewards: list[str] | None
) -> tuple[EnvironmentConfig, list[RewardSpec], ScoringConfig | None]:
    """The environment and the rewards that are meant, and how a config scores; None where no config is given."""
    from rlft.config import EnvironmentConfig
    from rlft.config_file import load
    from rlft.types import RewardSpec

    yaml, given = YAML(typ="safe"), {}
    for item in args or []:
        key, found, value = item.partition("=")
        if not found:
            raise ValueError(f"--args {item!r}: write key=value")
        given[key] = yaml.load(value)
    named = [RewardSpec(path=path) for path in rewards or []]
    if target.endswith((".yaml", ".yml")):
        config = load(Path(target), [])
        environment = config.environment
        named = [*(r for r in config.rewards if not r.folder), *named]
        if given and environment.mix:
            raise ValueError("--args: the config mixes several environments; change args in its `environment.mix`")
        merged = {**environment.args, **given}
        return environment.model_copy(update={"args": merged}), named, config.scoring
    path = target if ":" in target or "/" in target or "." in target else f"environments.{target}:load"
    return EnvironmentConfig.model_validate({"path": path, "args": given}), named, None


def _find(environment: Environment, task_id: str) -> Task:
    from rlft.common.by_path import did_you_mean

    tasks = {task.id: task for task in (*environment.train, *environment.heldout)}
    if not task_id:
        return environment.train[0]
    if task_id not in tasks:
        raise ValueError(f"no task {task_id!r} among {len(tasks)}.{did_you_mean(task_id, tasks)}")
    return tasks[task_id]


def _killable(rewards: list[RewardSpec], scoring: ScoringConfig | None) -> Any:
    """Scores in a process, which ends a reward that hangs, and stops at the first sample that cannot be scored."""
    from rlft.reward.scoring import Scorer

    if not rewards:
        return nullcontext()
    return Scorer(
        rewards,
        workers=1,
        deadline_s=scoring.deadline_s if scoring else HANGS_S,
        log_dir=None,
        environment=scoring.environment if scoring else (),
        max_failed=0.0,
    )


def _debuggable(rewards: list[RewardSpec]) -> Any:
    """Scores in this process, where breakpoints work and Ctrl-C ends what hangs."""
    from rlft.reward.scoring import Scorer

    return Scorer(rewards, workers=0, deadline_s=HANGS_S, log_dir=None)


def _play(console: Console, environment: Environment, task: Task, seed: int, rewards: list[RewardSpec]) -> None:
    from rlft.environment.contract import Step
    from rlft.types import Message, Turn

    environment = environment.of(task)
    episode = environment.episode() if environment.episode else None
    messages: list[Message] = list(episode.start(task, seed) if episode else task.messages)
    console.print(Text(visible(f"task {task.id}, seed {seed}"), style="bold"))
    for tool in environment.tools:
        described = tool["function"]
        arguments = ", ".join(described["parameters"].get("properties", {}))
        console.print(Text(visible(f"tool {described['name']}({arguments}): {described['description']}"), style="dim"))
    show_messages(console, messages)
    given: list[tuple[Message, Step]] = []
    reason = "left"
    with asyncio.Runner() as runner:
        while (reply := _read(console)) is not None:
            messages.append(Message(role="assistant", content=reply))
            step = Step(done=True)
            if episode:
                answer = episode.step(messages[-1])
                step = runner.run(_awaiting(answer)) if inspect.isawaitable(answer) else answer
            given.append((messages[-1], step))
            messages += step.messages
            show_messages(console, step.messages)
            if step.reward is not None:
                console.print(Text(f"reward {step.reward:g}", style="green"))
            if step.done or len(given) >= environment.max_turns:
                reason = "done" if step.done else "turns"
                break
        close = getattr(episode, "close", None)
        if callable(close) and inspect.isawaitable(closing := close()):
            runner.run(_awaiting(closing))
    total = [step.reward for _, step in given if step.reward is not None]
    summed = f", reward of the environment {sum(total):g}" if total else ""
    console.print(Text(f"stopped: {reason} after {len(given)} turns{summed}", style="bold"))
    if given and rewards:
        turns = [Turn(prompt_ids=(), completion=_typed(), observation=s.messages, reward=s.reward) for _, s in given]
        with _debuggable(rewards) as scorer:
            _score(console, scorer, task, seed, turns, messages if episode else [], given[-1][0]["content"])


def _score(
    console: Console, scorer: Scorer, task: Task, seed: int, turns: list[Any], messages: list[Message], text: str
) -> None:
    from rlft.types import Group, Trajectory

    played = Trajectory(task=task, sample_index=0, seed=seed, turns=tuple(turns), text=text, messages=tuple(messages))
    show_outcome(console, scorer.score([Group(task=task, trajectories=(played,))])[0].trajectories[0])


def show_outcome(console: Console, scored: Trajectory) -> None:
    """Print what the rewards say of a trajectory: each part and their sum, or why there is none."""
    from rlft.types import Failed, Score

    outcome = scored.outcome
    if isinstance(outcome, Score):
        for name, value in outcome.parts.items():
            console.print(Text(visible(f"{name}: {value:g}")))
        console.print(Text(f"weighted: {outcome.value:g}", style="bold"))
    elif outcome is not None:
        said = outcome.message if isinstance(outcome, Failed) else f"abstained: {outcome.reason}"
        console.print(Text(visible(said), style="red"))
    for name, failure in scored.failed_parts.items():
        if not isinstance(outcome, Failed):  # else it is said already
            console.print(Text(visible(f"observed reward {name} failed: {failure.message}"), style="red"))


def _typed() -> Any:
    """A completion without tokens: a person wrote it."""
    from rlft.types import Completion

    return Completion(token_ids=(), logprobs=(), finish_reason="stop", adapter_version=0, adapter_hash="")


def show_messages(console: Console, messages: Any) -> None:
    """Print messages, each under its role."""
    for message in messages:
        name = f" {message['name']}" if message.get("name") else ""
        console.print(Text(visible(f"{message['role']}{name}"), style="cyan"))
        console.print(Text(visible(message["content"])), soft_wrap=True)


def _read(console: Console) -> str | None:
    """The next reply; None at the end of the input."""
    lines: list[str] = []
    console.print(Text("assistant", style="cyan"))
    for line in iter(sys.stdin.readline, ""):
        line = line.rstrip("\n")
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)
    return "\n".join(lines) if lines else None


async def _awaiting(awaitable: Any) -> Any:
    return await awaitable
