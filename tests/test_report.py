"""The report: complete, offline, inert whatever a model wrote, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves import main_chart, pages, png
from rlft.curves.alarms.detectors import DETECTORS
from rlft.curves.charts import sections
from rlft.curves.contributions import explain, read_window
from rlft.curves.page_data import page_data
from rlft.curves.page_data.health import ABOUT
from rlft.curves.png import draw
from rlft.curves.reading import read_config, read_evals, read_metrics
from rlft.curves.report import write_report, write_reward_png
from rlft.curves.samples import read_light, sample
from rlft.curves.sampling_of_groups import choose
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
    """What a browser would see: the data, scripts, attributes, and every text that the page can show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open = ""
        self.feed(self.source)
        self.close()
        self.data: dict[str, Any] = json.loads(pages.unpacked(self.scripts[0]))
        self.text += "\n" + "\n".join(all_texts(self.data))

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
    def charts(self) -> list[dict[str, Any]]:
        """Every chart, in the order of the page."""
        return list(charts_of(self.data))

    @property
    def titles(self) -> list[str]:
        return [chart["title"] for chart in self.charts]

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def all_texts(data: Any) -> Iterator[str]:
    """Every text in some data, keys too."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from all_texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from all_texts(value)


def charts_of(data: Any) -> Iterator[dict[str, Any]]:
    if isinstance(data, dict):
        if "marks" in data:
            yield data
        else:
            for value in data.values():
                yield from charts_of(value)
    elif isinstance(data, list):
        for value in data:
            yield from charts_of(value)


def test_a_finished_run_is_told_on_one_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sums", steps=12, failures=True, critic=True)
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    data = page.data
    assert (data["name"], data["state"], data["verdict"]["word"]) == ("sums", "ended", "SHIP")
    assert "<p>SHIP. Held-out accuracy went from" in page.source  # also without scripts
    assert dict(data["facts"]) == {
        "Model": "SmolLM2-135M-Instruct",
        "Algorithm": "grpo",
        "Environment": "environments.arithmetic:sums",
        "Rewards": "math_answer, brevity \N{MULTIPLICATION SIGN} 0.1",
        "Seed": "7",
    }
    assert data["tiles"][0] == {"label": "Steps", "value": "12 of 12", "remark": "ended"}
    assert [(chip["id"], chip["value"], chip["tone"]) for chip in data["chips"]] == [
        ("healthy", "too short to tell", "none"),
        ("hacked", "nobody watches", "none"),
        ("age", "step 12, the last", "good"),
        ("missing", "3 rollouts", "unsure"),
    ]
    assert all(chip["evidence"] for chip in data["chips"])
    assert data["failures"]["kinds"] == {"timeout": 3}
    assert data["failures"]["groups"][0]["samples"][0]["failure"] == {
        "kind": "timeout",
        "message": "math_answer did not return within 10 s",
        "reproduce": "math_answer(completion='17 + 25')",
    }
    assert {"step": 6, "kind": "restart", "text": "worker_restarted: rollout worker 1 was killed; 2 chunks redone"} in (
        data["result"][0]["rail"]
    )
    assert "preset: grpo" in data["behind"]["config"]
    assert page.titles[:4] == [
        *("Train reward and held-out accuracy (math_answer)", "What the reward is made of", "math_answer", "brevity"),
    ]
    assert sorted(page.titles[4:]) == [
        *("Clip fraction", "Completion length", "Critic loss", "Cut at the length limit", "Entropy"),
        *("Explained variance", "Gradient norm", "Groups", "KL to the reference", "Learning rate", "Mismatch"),
        *("Mismatch KL", "Not scored", "Policy loss", "Repetition", "Throughput", "Time per step"),
    ]
    surprises = [chart["surprise"] for chart in data["health"]["charts"]]
    assert surprises == sorted(surprises, reverse=True)
    assert data["health"]["charts"][0]["title"] in ("Critic loss", "Explained variance", "Entropy")
    assert sorted(item.name for item in run.iterdir() if item.name.startswith(".")) == []  # no temporary file


def test_each_alarm_leads_to_a_chart_of_what_it_is_about(tmp_path: Path) -> None:
    wanted = {metric for metrics in ABOUT.values() for metric in metrics}
    rows = [{"step": step, **dict.fromkeys(wanted, 0.5)} for step in (1, 2)]
    shown = {metric for section in sections(rows) for chart in section.charts for metric in chart.metrics}
    assert wanted <= shown
    assert ABOUT.keys() <= DETECTORS.keys()
    besides = {name for name, detector in DETECTORS.items() if detector.__module__.endswith("of_rewards")}
    assert DETECTORS.keys() - ABOUT.keys() == (besides - {"no_signal"}) | {"not_finite"}
    write_config(tmp_path, 40)
    random_ = random.Random(0)
    for step in range(1, 41):
        faults = {"rollout/repetition": 0.6 if step > 20 else 0.05, "policy/mismatch": 0.3 if step > 20 else 0.01}
        noisy = {name: value * (1 + random_.gauss(0, 0.02)) for name, value in faults.items()}
        metrics = {"reward/mean": 0.5 + random_.gauss(0, 0.02), "policy/entropy": 2.0, "rollout/duplicates": 0.1}
        append(tmp_path / "metrics.jsonl", {"step": step, **metrics, **noisy})
    charts = page_data(tmp_path)["health"]["charts"]
    told = {chart["title"]: chart["alarm"] for chart in charts if "alarm" in chart}
    assert told == {"Repetition": "repetition", "Mismatch": "mismatch"}


def test_the_data_of_every_kind_of_run_has_its_schema(tmp_path: Path) -> None:
    schema = json.loads((pages.FOLDER / "page.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    whole = make_run(tmp_path / "whole", steps=12, failures=True, critic=True)
    write_rollouts(whole / "evals" / "sft.parquet", [rollout(0, 0, 0, task_id="held-out-003", reward=0.0)])
    write_rollouts(whole / "evals" / "step-000012.parquet", [rollout(12, 0, 0, task_id="held-out-003")])
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "empty")
    runs = [whole, make_run(tmp_path / "one", steps=1, sft=False), tmp_path / "empty"]
    runs.append(make_run(tmp_path / "running", steps=3))
    (runs[-1] / "summary.json").unlink()
    for run in runs:
        data = json.loads(pages.as_json(page_data(run)))
        problems = [error.message for error in Draft202012Validator(schema).iter_errors(data)]
        assert problems == [], run.name
    told = Draft202012Validator(schema)
    for wrong in ({**data, "verdict": {**data["verdict"], "kind": "perhaps"}}, {**data, "format": 2}, {"format": 1}):
        assert list(told.iter_errors(wrong)) != []
    assert json.loads(pages.as_json(page_data(whole)))["heldout"]["pairs"][0]["samples"][1]["reward"] == 1.0


@pytest.mark.parametrize("shadows", [(), ("quality",), ("quality", "tone", "brevity", "sense")])
def test_the_pictures_legend_leaves_its_title_readable(tmp_path: Path, shadows: tuple[str, ...]) -> None:
    run = make_run(tmp_path, steps=10)
    evals = [replace(e, rewards=dict.fromkeys(shadows, e.accuracy), metric="a" * 24) for e in read_evals(run)]
    figure = Figure(figsize=png.SIZE_INCHES, dpi=png.DPI, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    png._draw_accuracy(axes, evals, (0.0, 10.0), shadows)
    canvas.draw()
    title, legend = (each.get_window_extent() for each in (axes._left_title, axes.get_legend()))
    assert not title.overlaps(legend)
    # A shadow's course begins where RL does, behind the warm start.
    begins = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "s"]
    assert begins == [[0.0, next(e.accuracy.mean for e in evals if e.name == "sft")]] * len(shadows)


def test_a_sample_says_which_policy_made_it() -> None:
    made = [sample(rollout(adapter_version=version)) for version in (-1, 0, 39)]
    assert [each["policy"] for each in made] == ["base model", "adapter v0 5f3a9c0e", "adapter v39 5f3a9c0e"]


def test_a_small_run_is_a_small_file(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run", steps=30, failures=True, critic=True))
    assert path.stat().st_size < 160_000
    again = path.read_bytes()
    assert write_report(tmp_path / "run").read_bytes() == again  # the same run gives the same bytes


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
    assert len(page.scripts) == 2  # the data, and the page's own
    assert "alert(" not in page.scripts[1]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", page.scripts[0])  # nothing can begin or end in it
    assert page.text.count("<script>alert(1)</script>") >= 15  # it is all there, to be read
    assert "\x1b" not in page.source + page.text
    assert "\N{SYMBOL FOR ESCAPE}[31mred" in page.text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "img" not in {tag for tag, _, _ in page.attributes}


def test_an_episode_of_several_turns_is_shown_whole(tmp_path: Path) -> None:
    write_config(tmp_path)
    said = [("user", "Guess."), ("assistant", f"5 {EVIL}"), ("user", "My number is higher."), ("assistant", "7")]
    messages = [{"role": role, "content": content} for role, content in said]
    episode = {"turns": 2, "stop_reason": "turns", "environment_reward": -0.25, "conversation": json.dumps(messages)}
    rows = [rollout(completion="7", **episode), rollout(sample=1, reward=0.0)]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    ((first, plain),) = [group["samples"] for group in Page(write_report(tmp_path)).data["samples"]["groups"]]
    assert (first["turns"], first["ended"], first["environment"]) == (2, "turns", -0.25)
    assert first["conversation"] == [[role, content.replace("\x1b", "\u241b")] for role, content in said]
    assert "conversation" not in plain
    import pyarrow.parquet as pq

    file = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(episode)), file)  # as older runs have it
    assert '"ended"' not in json.dumps(Page(write_report(tmp_path)).data)


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
    page = Page(write_report(run))
    (told,) = page.data["observed"]["training"]
    assert (told["reward"], told["failed"], told["rollouts"]) == ("brevity", 2, 2 * 16 * 6 + 3)
    assert (told["first_step"], told["first_task"], told["kind"]) == (3, "slow", "timeout")
    assert told["message"] == f"no result {EVIL}".replace("\x1b", "\u241b")
    assert told["reproduce"] == "load('brevity')()"
    assert page.data["observed"]["heldout"] == ["observed reward brevity failed on 7 samples of base"]
    assert "0, brevity 7" in page.text  # among what was not scored

    import pyarrow.parquet as pq

    for file in (run / "rollouts").iterdir():  # as older runs have it
        pq.write_table(pq.read_table(file).drop_columns(["failed_parts"]), file)
    again = Page(write_report(run)).data["observed"]
    assert again == {"training": [], "heldout": page.data["observed"]["heldout"]}


def test_a_run_that_was_stopped_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, sft=False)
    (run / "summary.json").unlink()
    events = run / "events.jsonl"
    for kind, message, says in [
        ("stopped", "RuntimeError: step 3: it failed\nReproduce it", "stopped: RuntimeError: step 3: it failed"),
        ("resumed", "continuing after step 2", "still running elsewhere, or killed"),
        ("stopped", "by SIGINT", "stopped by SIGINT"),
    ]:
        with events.open("a") as file:
            file.write(json.dumps({"time": "2030-01-01T00:00:00", "kind": kind, "message": message}) + "\n")
        assert Page(write_report(run)).data["state"] == says


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", steps=2)))
    assert {name for _, name, _ in page.attributes} & {"src", "href", "srcset", "action", "data", "style"} == set()
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert page.source.index("Content-Security-Policy") < page.source.index("<script")
    for source in (page.scripts[1], style):  # the script and the styles are those that the policy names
        digest_ = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest_}'" in policy
    assert ("script", "type", "text/plain") in page.attributes  # the data is nothing that runs


def test_the_scripts_of_the_page_share_a_scope_in_which_no_name_is_twice() -> None:
    names: dict[str, str] = {}
    for path in sorted((pages.FOLDER / "js").glob("*.js")):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) < 400, path.name
        for name in re.findall(r"^(?:export )?(?:const|let|function|async function|class) (\w+)", source, re.MULTILINE):
            assert name not in names, f"{name} stands in {names[name]} and in {path.name}"
            names[name] = path.name
        for wanted, other in re.findall(r'^import \{ ([^}]*) \} from "\./([\w-]+\.js)";$', source, re.MULTILINE):
            exported = (pages.FOLDER / "js" / other).read_text(encoding="utf-8")
            for name in wanted.split(", "):
                assert re.search(rf"^export (?:const|let) {name}\b", exported, re.MULTILINE), f"{path.name}: {name}"
    script = pages.script("main.js")
    assert not re.search(r"^(?:import|export) ", script, re.MULTILINE)
    for never in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert never not in script  # texts are only ever set as text


def test_what_was_not_measured_has_no_chart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    for step in (1, 2):
        append(run / "metrics.jsonl", {"step": step, "reward/mean": 0.5, "reward/failed": 0})
    page = Page(write_report(run))
    assert page.titles == ["Train reward"]
    (mark,) = page.charts[0]["marks"]
    assert "low" not in mark  # no band without bounds
    assert "There is no held-out evaluation. Train reward went from 0.500 to 0.500 in 2 steps" in page.text
    for absent in ("samples", "heldout", "waste", "moved", "failures", "why", "sets", "gate", "bar"):
        assert page.data[absent] is None
    assert page.data["behind"]["events"] == []
    assert page.data["behind"]["provenance"] == ""


def test_a_part_that_is_the_whole_reward_is_named_and_not_drawn_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    append(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.5, "reward/part/judge/style": 0.5})
    assert Page(write_report(run)).titles == ["Train reward (judge/style)"]
    append(run / "metrics.jsonl", {"step": 2, "reward/mean": 0.5, "reward/part/judge/style": 0.9})
    assert Page(write_report(run)).titles == ["Train reward", "judge/style"]


def test_bounds_that_are_not_known_leave_a_gap_and_valid_json(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    lines = [
        '{"step": 1, "reward/mean": 0.5, "reward/low": NaN, "reward/high": NaN}',
        '{"step": 2, "reward/mean": 0.6, "reward/low": 0.4, "reward/high": 0.8}',
        '{"step": 3, "reward/mean": NaN, "policy/kl_ref": Infinity}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (mark,) = Page(write_report(run)).data["result"][0]["marks"]
    assert (mark["low"], mark["high"]) == ([None, 0.4, None], [None, 0.8, None])
    assert (mark["x"], mark["y"], mark["broken"]) == ([1, 2, 3], [0.5, 0.6, None], [3])
    write_reward_png(run)


def test_many_steps_are_drawn_as_means_with_bands_and_single_steps_faint() -> None:
    rng = random.Random(0)
    rows = [{"step": step, "reward/mean": 0.5 + rng.gauss(0, 0.1)} for step in range(1, 1001)]
    (chart,) = main_chart.result_charts(rows, [], [], {})
    (mark,) = chart.marks
    values = [row["reward/mean"] for row in rows]
    assert 400 <= len(mark["faint"]["x"]) <= 600
    assert (min(mark["faint"]["y"]), max(mark["faint"]["y"])) == pytest.approx((min(values), max(values)), rel=1e-5)
    assert len(mark["x"]) == len(mark["low"]) == 59  # 58 times 17 steps, and 14
    assert mark["y"][0] == pytest.approx(sum(values[:17]) / 17, rel=1e-5)
    within = [a <= 0.5 <= b for a, b in zip(mark["low"], mark["high"], strict=True)]
    assert 50 <= sum(within) < 59
    assert "single steps faint" in chart.hint


def test_train_and_held_out_say_what_they_are_and_share_an_axis(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    config = read_config(run) | {"tasks_per_step": 16, "evaluation": {"temperature": 0.0}}
    for order, band in (("shuffle", "clustered by task"), ("listed", "for exactly the tasks of each step")):
        (chart,) = main_chart.result_charts(
            read_metrics(run), read_evals(run), [], config | {"environment": {"order": order}}
        )
        assert (
            chart.hint
            == f"train: T = 1, 16 training tasks a step; 95 % band {band}"
            + ("" if order == "shuffle" else " (order: listed)")
            + "; held out: greedy, 120 held-out tasks, 95 % intervals"
        )
    assert [mark["name"] for mark in chart.marks] == ["train reward", "SFT, held out", "base, held out", "held out"]
    rows = [
        {**row, "reward/mean": 40 * row["reward/mean"], "reward/part/math_answer": 0.5} for row in read_metrics(run)
    ]
    train, heldout = main_chart.result_charts(rows, read_evals(run), [], config)
    assert (train.title, heldout.title) == ("Train reward", "Held-out accuracy (math_answer)")  # no one scale fits both


def test_ten_thousand_parts_of_a_reward(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    for step in range(1, 9):
        parts = {f"reward/part/judge/p{i:05d}": 0.5 + (0.01 * step if i == 777 else 0.0) for i in range(10_000)}
        append(run / "metrics.jsonl", {"step": step, "reward/mean": 0.5, "reward/part/judge": 0.5, **parts})
    path = write_report(run)
    told = Page(path).data["why"]
    assert len(told["tree"]) == 10_001  # a search finds each
    assert len(told["charts"]) == 24
    assert [line["name"] for line in told["tree"][:2]] == ["judge", "judge/p00777"]  # what moved comes first
    assert path.stat().st_size < 600_000


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run)
    page = Page(write_report(run))
    assert "No step has finished and nothing has been evaluated yet." in page.text
    assert page.data["tiles"][0]["value"] == "0 of 12"
    assert page.charts == []
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
    assert page.titles == ["Held-out accuracy (math_answer)"]
    assert write_reward_png(run).exists()


def test_a_torn_log_is_reported_with_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    page = Page(write_report(run))
    assert "metrics.jsonl:3: the last line is torn" in page.text
    assert "2 of 2" in page.text


def test_a_page_shows_a_stratified_choice_and_says_of_how_many(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30, failures=True)
    told = Page(write_report(run)).data["samples"]
    assert told["total"] == 30 * 16 * 6
    assert 380 <= told["shown"] == sum(len(group["samples"]) for group in told["groups"]) <= 400
    steps = {group["step"] for group in told["groups"]}
    assert len(steps) >= 12
    assert max(steps) == 30
    reasons = {reason for group in told["groups"] for reason in group["why"]}
    assert reasons == {"best of the last steps", "worst of the last steps", "failed", "same task through time"}
    light = read_light(run)
    large = choose(light, [(7, "sum-003", "alarm x")], limit=40)
    assert large.samples <= 40
    assert large.keys[7, 3] == ["alarm x"]
    assert choose(light, limit=100).keys == choose(light, limit=100).keys  # every time the same
    assert choose(light.slice(0, 0)).keys == {}


def test_the_page_says_what_moved_the_reward_as_rlft_why_does(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20)
    told = Page(write_report(run)).data["moved"]
    first = told["changes"][0]
    assert (first["from"], first["to"]) == ("steps 1-2", "steps 19-20")
    assert len(told["changes"]) == 6  # four windows, each with each later one
    windows = read_window(run, "1-2"), read_window(run, "19-20")
    assert first["sentences"] == explain(read_config(run), *windows).sentences
    for change in told["changes"]:
        assert math.fsum(part["added"] for part in change["parts"]) == pytest.approx(change["total"], abs=1e-5)
    assert told["fails"]["typical"]
    assert Page(write_report(make_run(tmp_path / "one", steps=1))).data["moved"] is None


def test_the_gate_of_the_page_is_a_command_that_works(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", steps=12)
    gate = Page(write_report(run)).data["gate"]
    words = shlex.split(gate["command"])
    assert words[:2] == ["rlft", "gate"]
    done = CliRunner().invoke(app, words[1:])
    assert (done.exit_code, done.output.startswith("PASS: ")) == (0, True)


def test_of_a_large_group_the_ranks_are_spread(tmp_path: Path) -> None:
    write_config(tmp_path)
    rows = [rollout(sample=i, reward=i / 63, completion=f"{i}") for i in range(64)]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    (group,) = Page(write_report(tmp_path)).data["samples"]["groups"]
    assert group["size"] == 64
    assert [each["index"] for each in group["samples"]] == [0, 9, 18, 27, 36, 45, 54, 63]


def test_the_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "costs $5 and $6 \N{CJK UNIFIED IDEOGRAPH-6E2C}", steps=3)
    path = write_reward_png(run)
    content = path.read_bytes()
    assert path == run / "reward.png"
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1350, 900)
    assert len(content) > 20_000


def test_reading_a_run_needs_no_model_and_no_drawing_library() -> None:
    heavy = "torch ray transformers trl peft matplotlib pyarrow scipy numpy pandas jinja2 pydantic"
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


def test_the_picture_shows_what_was_not_trained_on() -> None:
    rows = [{"step": step, "reward/mean": step / 9, "reward/part/wanted": 1 - step / 9} for step in range(1, 10)]
    rows = [{**row, "reward/part/large": 50.0 * row["step"]} for row in rows]
    plain, beside = draw("r", rows, []), draw("r", rows, [], ["wanted"])
    assert plain != beside
    assert plain == draw("r", rows, [], ["large", "absent"])  # another scale, and none
