"""`rlft reward`: write a reward, try it on completions, check it before a policy finds what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.cannot_tell import CANNOT_TELL

app = typer.Typer(help="Write, try, check and change reward functions.", no_args_is_help=True)

RewardArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--args", help="Argument of the reward: key=value, the value as in a config (YAML).", metavar="KEY=VALUE"
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        help="package.module:function, file.py:function, or a config (YAML).",
        show_default=False,
        metavar="REWARD|CONFIG",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Tasks: a file of rows (columns as `rlft data check` takes them), an environment, or a config.",
        show_default=False,
    ),
]
Cases = Annotated[Path | None, typer.Option(help="File of cases; FILE.cases.jsonl beside the reward when left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the reward and of its file.", show_default=False)],
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path(),
) -> None:
    """Write a documented reward and its cases as files to start from; existing files are left alone."""
    from rlft.reward.scaffold import write_reward

    file, cases = write_reward(name, folder)
    console = Console()
    console.print(Text(f"Written:\n  {file}\n  {cases}"), soft_wrap=True)
    console.print(Text(f"Next: rlft reward check {file}:{name}"), soft_wrap=True)


@app.command("try")
def try_(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:function, or file.py:function; left out, the rewards of --config. With --failed: "
            "STEP/TASK/INDEX, as --failed or health list it.",
            show_default=False,
            metavar="[REWARD|SAMPLE]",
        ),
    ] = "",
    completion: Annotated[list[str] | None, typer.Option(help="A reply to score; may be given several times.")] = None,
    completions: Annotated[
        Path | None,
        typer.Option(
            help="File of replies: .txt with one a line, .jsonl with `completion` and, if they differ, "
            "`prompt`, `answer`, `columns`."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The user's message.")] = "",
    answer: Annotated[
        str | None, typer.Option(help="The task's answer: text, or JSON if it begins with [ or {.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Another column of the task, key=value. What is JSON is read as in a .jsonl (42, true, [1, 2], "
            '"42" as text); everything else is text.',
            metavar="KEY=VALUE",
        ),
    ] = None,
    args: RewardArguments = None,
    config: Annotated[Path | None, typer.Option(help="Config whose rewards and tasks are used.")] = None,
    task: Annotated[str, typer.Option(help="Id of the config's task; the first when left out.")] = "",
    deadline_s: Annotated[float | None, typer.Option(min=0.001, help="Seconds for a reply.")] = None,
    failed: Annotated[
        Path | None,
        typer.Option(help="Run directory: repeat the call that failed on a SAMPLE of it; without SAMPLE, list these."),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--pdb", help="With --failed: call it in this process, and open pdb where it raises.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Run again when a file changes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score completions and show the outcome: value, parts and weights, time, what was printed, what failed and where.

    Exit code 1 if one of them could not be scored.
    """
    from rlft.cli import reward_try

    console = Console()
    if failed is not None:
        from rlft.cli.reward_failed import run_failed

        if completion or completions or config or args or watch:
            raise ValueError(
                "--failed repeats a stored call with what is stored: it takes only SAMPLE, --pdb, "
                "--deadline-s and --json"
            )
        if not run_failed(console, failed, target, deadline_s=deadline_s, debug=debug, as_json=as_json):
            raise typer.Exit(1)
        return
    if debug:
        raise ValueError("--pdb goes with --failed RUN SAMPLE")
    asked = reward_try.Asked(
        target=target,
        completions=tuple(completion or ()),
        file=completions,
        prompt=prompt,
        answer=answer,
        columns=tuple(column or ()),
        args=tuple(args or ()),
        config=config,
        task=task,
        deadline_s=deadline_s,
    )
    if watch:
        reward_try.watch(console, asked, as_json=as_json)
    elif not reward_try.run(console, asked, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def check(
    target: Target,
    args: RewardArguments = None,
    data: Data = "",
    cases: Cases = None,
    deadline_s: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for a reply; when left out, what takes 3 s hangs.")
    ] = None,
    within_s: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which no further replies are tried.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Whether a reward may be trained on: its contract, its cases, and replies made up to cheat it. Needs no model.

    Exit code 1: there is an error; 2: cannot tell, since there was time for less than half of the ordinary replies.
    """
    from rlft.cli import reward_check
    from rlft.reward.cases import left_out
    from rlft.reward.check import check_rewards

    checked = reward_check.asked(
        target, args=args or (), data=data, cases=cases, deadline_s=deadline_s, within_s=within_s
    )
    report = check_rewards(checked)
    note = "" if cases else left_out(checked.specs)
    reward_check.show(Console(), target, report, as_json=as_json, note=note)
    if report.errors or report.cannot_tell:
        raise typer.Exit(1 if report.errors else CANNOT_TELL)


@app.command()
def attack(
    target: Target,
    args: RewardArguments = None,
    data: Data = "",
    cases: Cases = None,
    oracle: Annotated[
        str,
        typer.Option(
            help="A reward that says what is good; the config's shadow reward when left out.",
            show_default=False,
            metavar="REWARD",
        ),
    ] = "",
    run: Annotated[
        Path | None, typer.Option(help="Run directory whose tasks and stored replies are used.", show_default=False)
    ] = None,
    policy: Annotated[
        bool, typer.Option("--policy", help="Train the bundled model against the reward first: some minutes.")
    ] = False,
    policy_steps: Annotated[int, typer.Option(min=1, help="Steps of each policy.")] = 20,
    policy_seeds: Annotated[int, typer.Option(min=1, help="Policies that are trained.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to search.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Another seed tries other combinations.")] = 0,
    write_cases: Annotated[
        bool, typer.Option("--write-cases", help="Add what is found to the cases, so that it stays found.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for replies that a reward pays for although they are bad, as a policy would that wants to cheat.

    Exit code 1: there are some; 2: cannot tell, since too little could be tried; else 0.
    """
    from rlft.cli import reward_attack

    asked = reward_attack.asked(
        target,
        args=args or (),
        data=data,
        cases=cases,
        oracle=oracle,
        run=run,
        seconds=seconds,
        seed=seed,
        policy=reward_attack.Policy(steps=policy_steps, seeds=policy_seeds) if policy else None,
        write=write_cases,
    )
    report = reward_attack.run(Console(), target, asked, cases=cases, write=write_cases, as_json=as_json)
    if report.exploits or report.cannot_tell:
        raise typer.Exit(1 if report.exploits else CANNOT_TELL)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Run directory, such as runs/quickstart.", show_default=False)],
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="A new reward; may be given several times: its path, {path: ..., weight: ..., args: {...}}, or a "
            "config file whose rewards are taken. Left out, the run's own.",
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Which steps: all, or such as 3,5-8.")] = "all",
    workers: Annotated[int | None, typer.Option(min=0, help="Scoring processes; 0 scores in this process.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run's stored rollouts by another reward: what it would have changed in every step."""
    from rlft.cli.reward_replay import run_replay

    run_replay(run, reward or [], steps, workers=workers, as_json=as_json)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Run directory, such as runs/quickstart.", show_default=False)],
    sample: Annotated[str, typer.Argument(help="STEP/TASK/INDEX, as replay or health show it.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show why a stored sample moved the policy as it did: parts, group, advantage, place in the loss."""
    from rlft.cli.reward_replay import run_explain

    run_explain(run, sample, as_json=as_json)
