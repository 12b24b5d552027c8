"""`rlft chat`: talk to the base model and the trained policy side by side."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlft.cli.export import AdapterName
from rlft.cli.serve import RunOrModel, is_run
from rlft.curves.reading import read_config
from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.train.talk import Reply, Talk

NEW = "/new"
"""What begins a new conversation."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    target: RunOrModel,
    prompt: Annotated[str, typer.Option(help="Say this, print the replies and end.")] = "",
    task: Annotated[
        str, typer.Option(metavar="ID", help="Answer this task of the run, score the answers by its rewards, and end.")
    ] = "",
    only: Annotated[Literal["both", "base", "trained"], typer.Option(help="Talk to one of them alone.")] = "both",
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy; the run's own when left out.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply in tokens; the run's own when left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the replies; both draw the same numbers.")] = 0,
    adapter: AdapterName = "",
) -> None:
    """Talk to the base model and the trained policy side by side: the run's chat template, the run's sampling.

    Ctrl-C stops a reply, Ctrl-D ends, /new begins a new conversation.
    """
    if prompt and task:
        raise ValueError("--prompt and --task are two questions; give one of them")
    changes: dict[str, float] = {}
    if temperature is not None:
        changes["temperature"] = temperature
    if max_new_tokens is not None:
        changes["max_new_tokens"] = max_new_tokens
    if not is_run(target):
        if task or adapter or only != "both":
            raise ValueError(f"{target} is no run directory, and --task, --adapter and --only are for runs")
        from rlft.train.talk import talk_to_model

        talk = talk_to_model(target, changes=changes, seed=seed, system=system)
    else:
        if task and (kind := read_config(Path(target)).get("kind", "rl")) != "rl":
            raise ValueError(f"{target} is a run of kind {kind}, which has no tasks; ask something with --prompt")
        if task and system:
            raise ValueError("a task has its own prompt; leave --system out")
        from rlft.train.talk import talk_to_run

        talk = talk_to_run(
            Path(target),
            adapter=adapter,
            only="" if only == "both" else only,
            changes=changes,
            seed=seed,
            system=system,
        )
    console = Console()
    if task:
        _answer(console, talk, Path(target), task)
    elif prompt:
        with _stopping() as stop:
            _exchange(console, talk, prompt, stop)
    else:
        _converse(console, talk)


class _Stop:
    """Whether Ctrl-C was pressed while a reply is generated; otherwise it interrupts as usual."""

    def __init__(self) -> None:
        self.is_asked = self.is_generating = False

    def __call__(self, number: int, frame: object) -> None:
        if not self.is_generating:
            raise KeyboardInterrupt
        self.is_asked = True


@contextlib.contextmanager
def _stopping() -> Iterator[_Stop]:
    stop = _Stop()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _converse(console: Console, talk: Talk) -> None:
    params = talk.params
    who = " and ".join(speaker.label for speaker in talk.speakers)
    console.print(
        Text(
            visible(
                f"{who}, temperature {params.temperature:g}, at most {params.max_new_tokens} tokens. Ctrl-C stops a "
                f"reply, {NEW} begins again, Ctrl-D ends."
            )
        )
    )
    with _stopping() as stop:
        while True:
            try:
                said = _read(console)
            except KeyboardInterrupt:
                console.print()
                continue
            if said is None:
                return
            if said.strip() == NEW:
                talk.begin()
            elif said.strip():
                try:
                    _exchange(console, talk, said, stop)
                except ValueError as error:
                    talk.take_back()
                    told = f"{error}; {NEW} begins a new conversation"
                    console.print(Text(visible(told), style="red"), soft_wrap=True)


def _read(console: Console) -> str | None:
    """A line from the user; None at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrows and history at the prompt
    try:
        return input("> ")
    except EOFError:
        console.print()
        return None


def _exchange(console: Console, talk: Talk, said: str, stop: _Stop) -> None:
    """Say something and show the replies: in columns on a terminal while they come, else one after the other."""
    talk.say(said)
    shown: dict[str, tuple[str, str]] = {speaker.label: ("", "") for speaker in talk.speakers}
    if not console.is_terminal:
        for speaker in talk.speakers:
            reply = _reply(talk, speaker.label, stop, lambda text: None)
            _print_plainly(console, speaker.label, reply.text, _remark(reply))
        return
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        for speaker in talk.speakers:

            def show(text: str, label: str = speaker.label) -> None:
                shown[label] = (text, "")
                live.update(_columns(shown))

            reply = _reply(talk, speaker.label, stop, show)
            shown[speaker.label] = (reply.text, _remark(reply))
    console.print(_columns(shown))


def _reply(talk: Talk, label: str, stop: _Stop, show: Callable[[str], None]) -> Reply:
    from rlft.train.talk import StopReply

    def on_text(text: str) -> None:
        show(text)
        if stop.is_asked:
            raise StopReply

    stop.is_asked, stop.is_generating = False, True
    try:
        return talk.reply(next(each for each in talk.speakers if each.label == label), on_text)
    finally:
        stop.is_generating = False


def _remark(reply: Reply) -> str:
    how = {"length": ", cut at the longest allowed", "stopped": ", stopped"}.get(reply.ended, "")
    return f"{reply.tokens} tokens{how}"


def _columns(shown: Mapping[str, tuple[str, str]]) -> RenderableType:
    table = Table.grid(expand=True)
    for _ in shown:
        table.add_column(ratio=1)
    table.add_row(
        *(
            Panel(
                Text(visible(text)), title=Text(visible(label)), subtitle=Text(remark, style="dim"), title_align="left"
            )
            for label, (text, remark) in shown.items()
        )
    )
    return table


def _print_plainly(console: Console, label: str, text: str, remark: str) -> None:
    console.print(Text(visible(f"{label} ({remark}):"), style="cyan"), soft_wrap=True)
    console.print(Text(visible(text)), soft_wrap=True)
    console.print()


def _answer(console: Console, talk: Talk, run: Path, task_id: str) -> None:
    """Show a task, each speaker's answer and what the run's rewards give for it."""
    from rlft.cli.env import show_messages, show_outcome
    from rlft.cli.run_config import load_run

    answers = talk.answer(load_run(run, None, is_trained=False), task_id)
    task = answers[0][1].task
    show_messages(console, task.messages)
    if task.answer is not None:
        console.print(Text(visible(f"(the task's answer: {task.answer})"), style="dim"), soft_wrap=True)
    for speaker, trajectory in answers:
        console.print(Text(visible(f"\n{speaker.label}:"), style="bold"))
        if len(trajectory.turns) > 1 or trajectory.messages:
            show_messages(console, trajectory.messages[len(task.messages) :])
        else:
            console.print(Text(visible(trajectory.text)), soft_wrap=True)
        show_outcome(console, trajectory)
