"""`rlft plan`: what a run will take and whether it can learn anything, before it is started."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import ConfigFile, Overrides
from rlft.curves.text import duration, interval_text, visible

if TYPE_CHECKING:
    from rlft.config import RunConfig
    from rlft.train.rl.plan.arithmetic import Counts, Lengths
    from rlft.train.rl.plan.forecast import Signal, Stage


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Start nothing: time and memory from a model of costs, no signal.")
    ] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Exit with 0 also where a run is hopeless.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a run takes (samples, tokens, updates, memory, time) and whether its samples give any signal.

    Time, memory and signal come from a probe: the run's first steps in a folder that is thrown away, a minute on a
    small model. Exit code 1: hopeless, as too few groups of samples have different rewards.
    """
    from rlft.cli.run_config import load

    others = f"of others, `rlft data check {config}` says what it can without training"
    loaded = load(config, overrides, instead=f"`rlft plan` plans RL, which has a config of `rlft train`; {others}")
    from rlft.train.rl.plan.sizes import sizes_of  # takes seconds, which a misspelt key should not cost

    if no_probe:
        from rlft.train.rl.plan.costs import estimate

        sizes = sizes_of(loaded)
        estimated = estimate(loaded, sizes)
        told = {"counts": sizes.counts(loaded, sizes.longest).as_dict(), **estimated.as_dict()}
        if as_json:
            print(json.dumps(told, indent=1))
            return
        console = Console()
        _show_counts(console, loaded, sizes.counts(loaded, sizes.longest), sizes.longest, sizes.train)
        _show_stages(console, estimated.stages, f"from a model of costs; {estimated.caution}")
        _show_memory(console, {role: (n, size) for role, n, size in estimated.memory}, None)
        return
    from rlft.train.rl.plan import forecast
    from rlft.train.rl.plan.probe import probe

    status = Console(stderr=True)
    began = time.monotonic()
    with status.status(Text("probe: starting")) as spinner:
        probed = probe(loaded, on_mark=lambda text: spinner.update(Text(visible(f"probe: {text}"))))
    sizes = sizes_of(loaded)
    counts = sizes.counts(loaded, probed.lengths)
    stages, found = forecast.stages(loaded, counts, probed), forecast.signal(loaded, probed)
    hopeless = found.is_hopeless and loaded.algorithm.is_group_relative
    if as_json:
        told = {"counts": counts.as_dict(), **forecast.as_dict(stages, probed, found), "hopeless": hopeless}
        print(json.dumps(told, indent=1))
    else:
        console = Console()
        _show_counts(console, loaded, counts, probed.lengths, sizes.train)
        seconds = time.monotonic() - began
        _show_stages(console, stages, f"from a probe of {len(probed.steps)} steps that took {duration(seconds)}")
        _show_memory(console, probed.peaks, probed.peak)
        _show_signal(console, loaded, found, hopeless, forecast.advice(loaded, found))
    raise typer.Exit(1 if hopeless and not anyway else 0)


def _show_counts(console: Console, config: RunConfig, counts: Counts, lengths: Lengths, train: int) -> None:
    unused = "" if config.algorithm.needs_all_sequences else "; those with advantage 0 cost nothing"
    lines = [
        f"{config.tasks_per_step} tasks x {config.samples_per_task} samples = {counts.completions_per_step:,} "
        "completions",
        f"prompts of {lengths.prompt:.0f} tokens, completions of "
        + (f"{lengths.completion:.0f} on average" if lengths.is_measured else f"up to {lengths.completion:.0f}")
        + f" (sampling.max_new_tokens={config.sampling.max_new_tokens})",
        f"{counts.tokens_per_step:,.0f} packed tokens -> {config.updates_per_step} x {counts.microbatches_per_update} "
        f"microbatches of up to {counts.microbatch_tokens:,}"
        f" -> {config.updates_per_step} optimizer update{'s' if config.updates_per_step > 1 else ''}; "
        f"each sample is used in one{unused}",
    ]
    _block(console, "A step", lines)
    lines = [
        f"{config.steps} steps: {counts.completions:,} completions, {counts.updates:,} optimizer updates, "
        f"{counts.passes:.2g} times through the {train:,} training tasks",
    ]
    if counts.sft_updates:
        lines.append(f"warm start: {counts.sft_updates} updates")
    lines += [
        f"{f'evaluation {name}' if name else 'evaluation'}: {times} times {answers:,} answers"
        for name, times, answers in counts.evaluations
    ]
    _block(console, "The run", lines)


def _show_stages(console: Console, stages: list[Stage], origin: str) -> None:
    table = Table.grid(padding=(0, 2))
    for stage in stages:
        table.add_row(
            "", Text(visible(stage.name)), Text(duration(stage.seconds), justify="right"), Text(stage.how, style="dim")
        )
    table.add_row(
        "",
        Text("in all", style="bold"),
        Text(duration(sum(s.seconds for s in stages)), style="bold", justify="right"),
        "",
    )
    console.print(Text.assemble(("Time on this machine", "bold"), f", {origin}"), soft_wrap=True)
    console.print(table)


def _show_memory(console: Console, peaks: dict[str, tuple[int, float]], together: float | None) -> None:
    from rlft.common.machine import memory

    usable = memory().usable
    table = Table.grid(padding=(0, 2))
    for role, (count, size) in sorted(peaks.items(), key=lambda item: -item[1][1]):
        table.add_row(
            "",
            Text(role),
            Text(f"{size / 1e9:.2f} GB", justify="right"),
            Text(f"the largest of {count}" if count > 1 else "", style="dim"),
        )
    total = together if together is not None else sum(n * size for n, size in peaks.values())
    style = "bold red" if total > 0.9 * usable else "bold"
    table.add_row(
        "",
        Text("in all", style="bold"),
        Text(f"{total / 1e9:.2f} GB", style=style, justify="right"),
        Text(f"of {usable / 1e9:.1f} GB here", style="dim"),
    )
    console.print(Text("Memory at its peak", style="bold"))
    console.print(table)


def _show_signal(console: Console, config: RunConfig, found: Signal, hopeless: bool, advice: str) -> None:
    share = interval_text(found.share)
    lines = [
        f"{share} of {found.share.n} groups of {found.samples} samples of {found.policy} have different rewards and "
        f"can teach something; the mean reward is {found.reward:.3f}"
    ]
    if hopeless:
        lines.append(f"HOPELESS as it is: {advice}")
    elif found.share.mean < 0.25:
        may_rise = "; the whole warm start may do better, which a probe cannot tell" if found.may_rise else ""
        lines.append(f"that is little{may_rise}: {advice}")
    _block(console, "Signal", lines)


def _block(console: Console, title: str, lines: list[Any]) -> None:
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Text(visible(f"  {line}")), soft_wrap=True)
