"""The report: complete, offline, inert whatever a model wrote, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlft.curves import charts
from rlft.curves.reading import read_config, read_evals, read_events, read_metrics
from rlft.curves.report import write_report, write_reward_png
from tests.fakes_run import (
    append,
    event,
    make_run,
    rollout,
    write_config,
    write_eval,
    write_json,
    write_rollouts,
)

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\x1b[31mred\x1b[0m"


class Page(HTMLParser):
    """What a browser would see: scripts, attributes, text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0])["figures"]

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def titles(run: Path) -> list[str]:
    sections = charts.sections(read_metrics(run), read_evals(run), read_events(run))
    return [chart.title for section in sections for chart in section.charts]


def test_a_finished_run_is_told_on_one_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", steps=12, failures=True, critic=True)
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    for text in (
        "sums",
        "SmolLM2-135M-Instruct",
        "grpo",
        "environments.arithmetic:sums",
        "12 of 12",
        "finished",
    ):
        assert text in page.text
    for text in (
        "SHIP",
        "Held-out accuracy went from",
        "Best rollouts",
        "Worst rollouts",
        "preset: grpo",
    ):
        assert text in page.text
    assert "3 timeout" in page.text
    assert "math_answer did not return within 10 s" in page.text
    assert "rollout worker 1 was killed" in page.text
    assert titles(run) == [
        *("Train reward", "Held-out accuracy (math_answer)", "math_answer", "brevity"),
        *("KL to the reference", "Entropy", "Completion length", "Cut at the length limit", "Groups"),
        *("Not scored", "Gradient norm", "Clip fraction", "Mismatch KL", "Policy loss", "Learning rate"),
        *("Critic loss", "Explained variance", "Throughput", "Time per step"),
    ]
    assert len(page.figures) == page.source.count('class="plot"') == len(titles(run))
    assert sorted(item.name for item in run.iterdir() if item.name.startswith(".")) == []  # no temporary file


def test_plotly_accepts_every_chart(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    run = make_run(tmp_path / "run", steps=6, failures=True, critic=True)
    for figure in Page(write_report(run)).figures:
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises on an unknown key or value
        assert all(len(trace["x"]) == len(trace["y"]) > 0 for trace in figure["data"])


def test_whatever_was_written_by_others_is_inert(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    with (run / "config.yaml").open("a") as file:
        file.write(f"comment: {json.dumps(EVIL)}\n")
    config = (run / "config.yaml").read_text().replace("name: run", f"name: {json.dumps(EVIL)}")
    (run / "config.yaml").write_text(config)
    evil_json = json.dumps({EVIL: EVIL})
    rows = [
        rollout(prompt=EVIL, completion=EVIL, answer=json.dumps(EVIL), parts=evil_json, task_id=EVIL),
        rollout(sample=1, task_id="other", reward=0.0, completion=f"<!-- {EVIL}", adapter_hash=EVIL),
        rollout(
            sample=2, outcome="failed", reward=None, advantage=None, failure_kind=EVIL, failure_message=EVIL,
            reproduce=EVIL, messages=json.dumps([{"role": EVIL, "content": EVIL}] * 2),
        ),
    ]  # fmt: skip
    write_rollouts(run / "rollouts" / "step-000001.parquet", rows)
    append(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.5, f"reward/part/{EVIL}": 0.25})
    append(run / "events.jsonl", event(EVIL, EVIL, step=1))
    write_json(run / "provenance.json", {EVIL: EVIL})
    write_eval(run, "base", 0.5, random.Random(0), tasks=3)
    evaluation = json.loads((run / "evals" / "base.json").read_text())
    write_json(run / "evals" / "base.json", {**evaluation, "metric": EVIL})

    page = Page(write_report(run))
    assert len(page.scripts) == 3  # the data, plotly.js, and the page's own
    assert not any("alert(" in script for script in page.scripts[1:])
    assert "<" not in page.scripts[0]
    assert page.text.count("<script>alert(1)</script>") >= 15  # it is all there, to be read
    assert "\x1b" not in page.source
    assert "\N{SYMBOL FOR ESCAPE}[31mred" in page.text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "img" not in {tag for tag, _, _ in page.attributes}


def test_an_episode_of_several_turns_is_shown_whole(tmp_path: Path) -> None:
    write_config(tmp_path)
    said = [("user", "Guess."), ("assistant", f"5 {EVIL}"), ("user", "My number is higher."), ("assistant", "7")]
    messages = [{"role": role, "content": content} for role, content in said]
    episode = {"turns": 2, "stop_reason": "turns", "environment_reward": -0.25, "conversation": json.dumps(messages)}
    rows = [rollout(completion="7", **episode), rollout(sample=1, task_id="plain", reward=0.0)]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    page = Page(write_report(tmp_path))
    for words in (
        "2 turns, ended: turns",
        "the environment gave -0.25",
        "My number is higher.",
        EVIL.replace("\x1b", "\u241b"),
    ):
        assert words in page.text
    assert page.text.count("Completion") == 1  # of the other sample
    import pyarrow.parquet as pq

    file = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(episode)), file)  # as older runs have it
    assert "ended:" not in Page(write_report(tmp_path)).text


def test_where_an_observed_reward_failed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, sft=False)
    config = (run / "config.yaml").read_text().replace("weight: 0.1", "weight: 0")
    (run / "config.yaml").write_text(config)
    failure = {"kind": "timeout", "message": f"no result {EVIL}", "reproduce": "load('brevity')()"}
    rows = [
        rollout(3, sample=0),
        rollout(3, sample=1, task_id="slow", failed_parts=json.dumps({"brevity": failure})),
        rollout(3, sample=2, failed_parts=json.dumps({"brevity": failure, "math_answer": failure}), outcome="failed"),
    ]
    write_rollouts(run / "rollouts" / "step-000003.parquet", rows)
    base = json.loads((run / "evals" / "base.json").read_text())
    write_json(run / "evals" / "base.json", {**base, "failed_parts": {"brevity": 7, "math_answer": 8}})
    text = Page(write_report(run)).text
    assert f"observed reward brevity failed on 2 of {2 * 16 * 6 + 3} samples" in text
    assert "First, in step 3 on slow (timeout)" in text
    assert f"no result {EVIL}".replace("\x1b", "\u241b") in text
    assert "load('brevity')()" in text
    assert "observed reward brevity failed on 7 samples of base" in text
    assert "0, brevity 7" in text  # among what was not scored
    assert "observed reward math_answer" not in text

    import pyarrow.parquet as pq

    for file in (run / "rollouts").iterdir():  # as older runs have it
        pq.write_table(pq.read_table(file).drop_columns(["failed_parts"]), file)
    assert "observed reward brevity failed on 7 samples of base" in (text := Page(write_report(run)).text)
    assert text.count("observed reward") == 1


def test_a_run_that_was_stopped_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, sft=False)
    (run / "summary.json").unlink()
    events = run / "events.jsonl"
    for kind, message, says in [
        ("stopped", "RuntimeError: step 3: it failed\nReproduce it", "stopped: RuntimeError: step 3: it failed<"),
        ("resumed", "continuing after step 2", "still running elsewhere, or killed<"),
        ("stopped", "by SIGINT", "stopped by SIGINT<"),
    ]:
        with events.open("a") as file:
            file.write(json.dumps({"time": "2030-01-01T00:00:00", "kind": kind, "message": message}) + "\n")
        assert says in write_report(run).read_text()


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", steps=2)))
    assert {name for _, name, _ in page.attributes} & {"src", "href", "srcset", "action", "data"} == set()
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    assert page.source.index("Content-Security-Policy") < page.source.index("<script")
    for script in page.scripts[1:]:  # every script that runs is one that the policy names
        digest_ = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest_}'" in policy
    assert page.source.count("Copyright 2012") == 1  # plotly.js, once


def test_what_was_not_measured_has_no_chart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    for step in (1, 2):
        append(run / "metrics.jsonl", {"step": step, "reward/mean": 0.5, "reward/failed": 0})
    assert titles(run) == ["Train reward"]
    page = Page(write_report(run))
    assert len(page.figures) == 1
    assert len(page.figures[0]["data"]) == 1  # no band without bounds
    assert "There is no held-out evaluation. Train reward went from 0.500 to 0.500 in 2 steps" in page.text
    for absent in (
        "Best rollouts",
        "Evaluations on",
        "Where the rollout tokens went",
        "Provenance",
        "Events",
    ):
        assert absent not in page.text


def test_a_part_that_is_the_whole_reward_is_named_and_not_drawn_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    append(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.5, "reward/part/judge/style": 0.5})
    assert titles(run) == ["Train reward (judge/style)"]
    append(run / "metrics.jsonl", {"step": 2, "reward/mean": 0.5, "reward/part/judge/style": 0.9})
    assert titles(run) == ["Train reward", "judge/style"]


def test_bounds_that_are_not_known_leave_a_gap_and_valid_json(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    lines = [
        '{"step": 1, "reward/mean": 0.5, "reward/low": NaN, "reward/high": NaN}',
        '{"step": 2, "reward/mean": 0.6, "reward/low": 0.4, "reward/high": 0.8}',
        '{"step": 3, "reward/mean": NaN, "policy/kl_ref": Infinity}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (figure,) = Page(write_report(run)).figures
    low, high, mean, broken = figure["data"]
    assert (low["x"], low["y"], high["y"]) == ([2], [0.4], [0.8])
    assert (mean["x"], mean["y"]) == ([1, 2, 3], [0.5, 0.6, None])
    assert (broken["name"], broken["x"]) == ("not a number", [3])
    write_reward_png(run)


def test_many_steps_are_drawn_as_means_with_bands_and_single_steps_faint() -> None:
    rng = random.Random(0)
    rows = [{"step": step, "reward/mean": 0.5 + rng.gauss(0, 0.1)} for step in range(1, 1001)]
    (section,) = charts.sections(rows, [], [])
    (chart,) = section.charts
    low, high, faint, smooth = chart.traces
    assert len(faint["x"]) == 1000
    assert len(smooth["x"]) == len(low["x"]) == 59  # 58 times 17 steps, and 14
    assert smooth["y"][0] == pytest.approx(sum(row["reward/mean"] for row in rows[:17]) / 17)
    within = [a <= 0.5 <= b for a, b in zip(low["y"], high["y"], strict=True)]
    assert 50 <= sum(within) < 59
    assert "single steps faint" in chart.hint


def test_train_and_held_out_say_what_they_are_and_share_an_axis(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    config = read_config(run) | {"tasks_per_step": 16, "evaluation": {"temperature": 0.0}}
    for order, band in (("shuffle", "clustered by task"), ("listed", "for exactly the tasks of each step")):
        (result, *_) = charts.sections(
            read_metrics(run), read_evals(run), [], config=config | {"environment": {"order": order}}
        )
        train, heldout = result.charts
        assert train.hint == f"T = 1, 16 training tasks a step; 95 % band {band}" + (
            "" if order == "shuffle" else " (order: listed)"
        )
        assert heldout.hint.startswith("greedy, 120 held-out tasks; 95 % intervals")
        assert train.layout["yaxis"] == heldout.layout["yaxis"]


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    page = Page(write_report(run))
    assert "No step has finished and nothing has been evaluated yet." in page.text
    assert "0 of 12" in page.text
    assert page.figures == []
    assert write_reward_png(run).stat().st_size > 1000


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for write in (write_report, write_reward_png):
        with pytest.raises(ValueError, match="is not a run directory"):
            write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_base_evaluation_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    write_eval(run, "base", 0.1, random.Random(0))
    page = Page(write_report(run))
    assert "nothing has been evaluated after RL yet" in page.text
    assert titles(run) == ["Held-out accuracy (math_answer)"]
    assert write_reward_png(run).exists()


def test_a_torn_log_is_reported_with_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    page = Page(write_report(run))
    assert "metrics.jsonl:3: the last line is torn" in page.text
    assert "2 of 2" in page.text


def test_the_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "costs $5 and $6 \N{CJK UNIFIED IDEOGRAPH-6E2C}", steps=3)
    path = write_reward_png(run)
    content = path.read_bytes()
    assert path == run / "reward.png"
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1350, 900)
    assert len(content) > 20_000


def test_reading_a_run_needs_no_model_and_no_drawing_library() -> None:
    heavy = "torch ray transformers trl peft plotly matplotlib pyarrow scipy numpy pandas jinja2 pydantic"
    code = f"import sys, rlft.curves.report, rlft.curves.png\nprint(sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_making_a_report_imports_no_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    code = (
        "import sys, pathlib, rlft.curves.report as r\n"
        "r.write_report(pathlib.Path(sys.argv[1])); r.write_reward_png(pathlib.Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
