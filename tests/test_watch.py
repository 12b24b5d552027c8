"""`rlft watch`: what it shows of a run that is not there, goes on, and has ended; it reads only what is new."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves import terminal_plot
from rlft.curves.follow import Followed
from rlft.curves.live_panel import View, training_console
from rlft.curves.watch_frame import Frame
from rlft.run import logs
from tests.fakes_run import append, event, make_run, rollout, step_metrics, step_rollouts, write_config, write_eval
from tests.fakes_run import write_rollouts as write


def frame(followed: Followed, width: int = 100) -> str:
    console = Console(force_terminal=False, width=width, file=io.StringIO())
    console.print(Frame(followed))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def add_step(run: Path, step: int) -> None:
    random_ = random.Random(step)
    rows = step_rollouts(step, 0.5, random_)
    append(run / "metrics.jsonl", step_metrics(step, rows, random_))
    write(run / "rollouts" / f"step-{step:06d}.parquet", rows)


def test_one_frame_has_all_of_the_first_screen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", steps=12)
    append(run / "events.jsonl", event("alarm", "truncation since step 3: 40 % cut (told after step 10)", step=3))
    told = CliRunner().invoke(app, ["watch", str(run), "--once"], env={"COLUMNS": "100"})
    assert told.exit_code == 0, told.output
    for pattern in (
        r"sums  step 12/12  ended",
        r"verdict +SHIP  \+0\.\d+ \[\+0\.\d+, \+0\.\d+\] \(97\.5 %\) from SFT to RL, step 12; at least 0\.01 is wanted",
        r"reward +0\.\d{3}",
        r"parts +math_answer 0\.\d{3}, brevity 0\.\d{3}",
        r"held out +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]  n=120  accuracy \(math_answer\), RL, step 12",
        r"alarm +truncation since step 3",
        r"reward/mean, each step; ● held out",
        r"sample of step 12, sum-000: reward [01]\.000",
        r"training time 1 min 55 s",
    ):
        assert re.search(pattern, told.output), pattern
    assert "\x1b" not in told.output


def test_the_verdict_is_found_for_each_new_evaluation_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every look, as it reads the files of the whole run."""
    from rlft.curves import verdict

    run, told = tmp_path / "run", []
    original = verdict.verdict_of
    monkeypatch.setattr(verdict, "verdict_of", lambda of: (told.append(len(followed.evals)), original(of))[1])
    lock = FileLock(run / ".lock", thread_local=False)

    def begin() -> None:
        write_config(run, steps=3)
        lock.acquire()

    def end() -> None:
        append(run / "events.jsonl", event("stopped", "by SIGTERM"))
        lock.release()

    random_ = random.Random(0)
    steps = iter(
        [
            begin,
            lambda: write_eval(run, "base", 0.2, random_),
            lambda: add_step(run, 1),
            lambda: add_step(run, 2),
            lambda: write_eval(run, "step-000002", 0.9, random_),
            lambda: add_step(run, 3),
            end,
        ]
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: next(steps)())
    console = Console(force_terminal=True, width=120, height=60, file=io.StringIO())
    monkeypatch.setattr("rlft.cli.watch.Console", lambda: console)
    followed = Followed(run)
    monkeypatch.setattr("rlft.curves.follow.Followed", lambda path: followed)
    from rlft.cli.watch import watch

    watch(run)
    assert told == [0, 1, 2, 2]
    assert "CAN'T TELL" in console.file.getvalue()  # before there was anything to compare
    last = frame(followed, width=140)
    assert followed.verdict == original(run)
    assert re.search(r"verdict +(SHIP|CAN'T TELL)  \+0\.\d+ \[", last)


def test_shadows_stand_apart_and_missing_scores_are_counted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    config = (run / "config.yaml").read_text()
    shadow = "- path: rewards.judge:judge\n  name: quality\n  weight: 0\n  role: shadow\nalgorithm:"
    (run / "config.yaml").write_text(config.replace("algorithm:", shadow))
    for step, trained, quality in ((1, 0.25, 0.75), (2, 0.5, 0.5), (3, 0.75, 0.25)):
        parts = {"reward/part/math_answer": trained, "reward/part/brevity": 0.5, "reward/part/quality": quality}
        missing = {"reward/failed": float(step == 1) * 3, "reward/abstained": float(step < 3)}
        append(run / "metrics.jsonl", {"step": step, "reward/mean": trained, **parts, **missing})
    followed = Followed(run)
    followed.look()
    told = frame(followed)
    assert re.search(r"parts +math_answer 0\.750, brevity 0\.500 ", told)
    assert re.search(r"shadow quality +0\.250 \(-0\.500 since step 1; trained \+0\.500\)", told)
    assert re.search(r"not scored +3 failed, 2 abstained, in 2 of 3 steps", told)
    assert "not scored" not in frame(_looked(make_run(tmp_path / "whole", steps=2)))


def _looked(run: Path) -> Followed:
    followed = Followed(run)
    followed.look()
    return followed


def test_a_run_that_is_not_there_or_has_no_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = CliRunner().invoke(app, ["watch", str(run), "--once"])
    assert isinstance(told.exception, ValueError)
    assert "without --once it is waited for" in str(told.exception)
    followed = Followed(run)
    followed.look()
    assert "no run yet" in frame(followed)
    write_config(run)
    with FileLock(run / ".lock"):
        followed.look()
    assert "step 0/12  running" in frame(followed)
    assert "no step yet" in frame(followed)


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", steps=4)
    read: list[tuple[str, int]] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def reader(path: Path, *rest: Any, **options: Any) -> Any:
            read.append((name, options.get("start", 0)))
            return original(path, *rest, **options)

        return reader

    for name in ("read_metrics", "read_events", "read_evaluation", "read_provenance"):
        monkeypatch.setattr(logs, name, counted(name, getattr(logs, name)))
    followed = Followed(run)
    followed.look()
    assert [name for name, _ in read].count("read_evaluation") == 3
    size = (run / "metrics.jsonl").stat().st_size
    read.clear()
    followed.look()
    assert read == []
    add_step(run, 5)
    write_eval(run, "step-000005", 0.5, random.Random(0))
    followed.look()
    assert read == [("read_metrics", size), ("read_evaluation", 0)]
    assert [row["step"] for row in followed.rows] == [1, 2, 3, 4, 5]
    assert followed.evals[-1].step == 5
    assert followed.sample is not None
    assert followed.sample["step"] == 5


def test_half_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    followed = Followed(run)
    line = json.dumps({"step": 3, "reward/mean": 0.25}) + "\n"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        followed.look()
        assert [row["step"] for row in followed.rows] == [1, 2]
        file.write(line[20:])
    followed.look()
    assert followed.rows[-1] == {"step": 3, "reward/mean": 0.25}
    assert followed.notes == []


def test_steps_that_are_made_again_count_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=4)
    followed = Followed(run)
    followed.look()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "new").write_text("".join(lines[:2]))  # what a resume does: a new file without the last steps
    (run / "new").replace(run / "metrics.jsonl")
    followed.look()
    assert [row["step"] for row in followed.rows] == [1, 2]
    append(run / "metrics.jsonl", {"step": 2, "reward/mean": 0.125})  # as older runs logged them
    followed.look()
    assert [(row["step"], row["reward/mean"]) for row in followed.rows][1:] == [(2, 0.125)]


def test_what_is_damaged_or_hostile_is_noted_and_inert(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, sft=False)
    evil = "[bold]x[/] \x1b]0;owned\x07\x1b[2J\u202e"
    write(run / "rollouts" / "step-000003.parquet", [rollout(3, prompt=evil, completion=evil, task_id=evil)])
    append(run / "metrics.jsonl", {"step": 3, "reward/mean": 0.5, f"reward/part/{evil}": 0.25})
    append(run / "events.jsonl", event(evil, evil))
    (run / "evals" / "base.json").write_text("{")
    followed = Followed(run)
    followed.look()
    followed.look()
    text = frame(followed, width=400)
    assert text.count("base.json is not readable") == 1
    assert "[bold]x[/]" in text
    assert not set("\x1b\x07\u202e") & set(text)


def test_it_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    lock = FileLock(run / ".lock", thread_local=False)
    steps = iter(
        [
            lambda: None,
            lambda: (write_config(run), lock.acquire()),
            lambda: add_step(run, 1),
            lambda: (append(run / "events.jsonl", event("stopped", "by SIGTERM")), lock.release()),
        ]
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: next(steps)())  # the fifth look would be one too many
    console = Console(force_terminal=True, width=100, height=40, file=io.StringIO())
    monkeypatch.setattr("rlft.cli.watch.Console", lambda: console)
    from rlft.cli.watch import watch

    watch(run)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for told in ("no run yet", "step 0/12", "step 1/12", "stopped by SIGTERM"):
        assert told in shown
    assert next(steps, None) is None


def test_it_starts_without_what_takes_long(tmp_path: Path) -> None:
    code = (
        "import sys, rlft.cli.watch, rlft.curves.follow, rlft.curves.watch_frame\n"
        "from pathlib import Path\nfrom rich.console import Console\n"
        "f = rlft.curves.follow.Followed(Path(sys.argv[1])); f.look()\n"
        "Console().print(rlft.curves.watch_frame.Frame(f))\n"
        "print(sorted({'torch', 'ray', 'transformers', 'scipy', 'pandas', 'plotly'} & set(sys.modules)))"
    )
    run = make_run(tmp_path / "run", steps=2)
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ([], (0, 1)),
        ([0.3, math.nan], (0, 1)),
        ([1.0], (0, 1)),
        ([1.1], (0, 2)),
        ([3.0, -0.5], (-1, 5)),
        ([70.0], (0, 100)),
        ([-3.0], (-5, 0)),
        ([math.inf, 0.5], (0, 1)),
    ],
)
def test_the_axis_of_a_plot(values: list[float], bounds: tuple[float, float]) -> None:
    assert terminal_plot.axis(values) == bounds


def test_a_plot_does_not_move_while_values_arrive() -> None:
    line = [(step, step / 40) for step in range(1, 41)]
    pictures = [
        terminal_plot.plot(line[:count], steps=40, bounds=(0, 1), width=20, height=4) for count in (1, 10, 20, 40)
    ]
    assert [len(lines) for lines in pictures] == [6] * 4
    for fewer, more in pairwise(pictures):
        for one, other in zip(fewer, more, strict=True):
            kept = [a == b for a, b in zip(one, other, strict=True) if a not in " "]
            assert sum(not same for same in kept) <= 1  # the end of the line may get further dots
    assert pictures[-1][0].startswith("1 │")
    assert pictures[-1][-1].endswith("step 40")
    rising = [next((i for i, row in enumerate(pictures[-1][:4]) if row[3 + x] != " "), 9) for x in range(20)]
    assert rising == sorted(rising, reverse=True)


def test_a_plot_has_gaps_and_points() -> None:
    line = [(1, 0.5), (2, math.nan), (3, math.nan), (4, 0.5)]
    lines = terminal_plot.plot(line, [(4, 1.0)], steps=4, bounds=(0, 1), width=8, height=2)
    assert lines[0][3:].rstrip() == " " * 7 + terminal_plot.MARK
    assert [at for at, char in enumerate(lines[1][3:]) if char != " "] == [1, 7]  # no line between them


def test_lines_of_a_training_go_to_stdout_where_that_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with View("r", steps=40, console=training_console(), shadows=["a\nb"]) as view:
        view.stage("loading")
        metrics = {"reward/mean": 0.5, "reward/part/a\nb": 0.25, "policy/kl_ref": 0.01, "policy/entropy": 2.0}
        view.step(1, {**metrics, "rollout/length": 17.0, "groups/with_signal": 0.5, "time/step": 1.0})
        view.note("a line that is longer than forty columns, and stays as it is")
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert len(out.splitlines()) == 3
    assert out.splitlines()[1].startswith("step 1/40  reward 0.500  KL 0.0100")


def test_the_panel_of_a_training_shows_the_last_evaluation_and_the_parts(tmp_path: Path) -> None:
    from rlft.curves.reading import read_evals

    run = make_run(tmp_path / "run", steps=5)
    console = Console(force_terminal=True, width=120, file=io.StringIO())
    view = View("run", steps=5, console=console)
    for evaluation in read_evals(run):
        view.evaluated(evaluation, "told")
    view.step(5, {"reward/mean": 0.5, "reward/part/right": 0.75, "reward/part/brief": -0.25, "time/step": 1.0})
    with console.capture() as shown:
        console.print(view)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.get())
    assert re.search(r"held out +0\.\d+ \[0\.\d+, 0\.\d+\]  n=120  accuracy \(math_answer\), RL, step 5", text)
    assert re.search(r"parts +right 0\.750, brief -0\.250", text)


def test_a_driver_is_not_refused_while_it_is_watched(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / ".lock").touch()
    followed, done = Followed(tmp_path), threading.Event()

    def watch() -> None:
        while not done.is_set():
            followed.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        from rlft.run.lock import PATIENCE_S

        for _ in range(20):
            with FileLock(tmp_path / ".lock", poll_interval=0.01).acquire(timeout=PATIENCE_S):
                pass
    finally:
        done.set()
        thread.join()
