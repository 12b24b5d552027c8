"""A shadow reward: never trained on, measured everywhere, and compared honestly with what is trained on."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.cli.summary import show_summary
from rlft.curves import doubts
from rlft.curves.alarms import Alarm, Health, alarms_until
from rlft.curves.live_panel import View
from rlft.curves.report import write_report
from rlft.curves.shadow import Pairs, Shadow, drifted, measure_shadows, moved, shadow_names, told
from rlft.curves.statistics import mean_interval
from rlft.curves.verdict import verdict_of
from rlft.reward.scoring import Scorer
from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.train.rl import launch
from rlft.train.rl.metrics import describe
from rlft.train.rl.summary import summarize
from rlft.types import Score
from tests.fakes import made_up_group, tiny_config
from tests.fakes_run import append, rollout, write_config, write_eval, write_rollouts
from tests.test_report import Page

SHADOW = {"path": "rewards.brevity:brevity", "name": "quality", "role": "shadow"}


def samples(trained: float, shadow: float, *, seed: int = 0, tasks: int = 80) -> Pairs:
    """Four samples of each task, each reward 1 with the given chance."""
    random_ = random.Random(seed)
    return {
        f"t{task}": [(float(random_.random() < trained), float(random_.random() < shadow)) for _ in range(4)]
        for task in range(tasks)
    }


def test_a_shadow_is_measured_and_never_in_the_total() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = re.search(r"## A shadow reward.*?```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    config = tiny_config("m", **YAML(typ="safe").load(example[1]))
    assert shadow_names(config.rewards) == ["strict"]
    group = made_up_group([0.0, 0.0])
    task = replace(group.task, answer="4")
    texts = ("<answer>4</answer>", "it is 4")
    answered = tuple(
        replace(t, task=task, text=text, outcome=None) for t, text in zip(group.trajectories, texts, strict=True)
    )
    with Scorer(config.rewards, workers=0, deadline_s=5, log_dir=None) as scorer:
        [scored] = scorer.score([replace(group, task=task, trajectories=answered)])
    assert [t.outcome for t in scored.trajectories] == [
        Score(value=1.0, parts={"loose": 1.0, "strict": 1.0}),
        Score(value=1.0, parts={"loose": 1.0, "strict": 0.0}),
    ]


def test_a_shadow_with_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward 'quality' is a shadow.*leave out its weight"):
        tiny_config("m", rewards=[{"path": "a:b"}, {**SHADOW, "weight": 0.5}])
    config = tiny_config("m", rewards=[{"path": "a:b"}, SHADOW])
    assert [reward.weight for reward in config.rewards] == [1, 0]
    assert type(config).model_validate(config.model_dump(mode="json")) == config  # as it is stored


def test_the_interval_of_a_shadow_while_training() -> None:
    values = [0.0, 1.0, 1.0]
    groups = [
        made_up_group([Score(value=1.0, parts={"a": 1.0, "b": value})], task_id=str(i))
        for i, value in enumerate(values)
    ]
    metrics = describe(groups)
    expected = mean_interval([[value] for value in values])
    assert metrics["reward/part/b"] == expected.mean == 2 / 3
    assert (metrics["low/reward/part/b"], metrics["high/reward/part/b"]) == (expected.low, expected.high)


def test_the_gap_by_hand() -> None:
    # Trained: 0, 0 before and 1, 1 after, deviation 1/2: moved by 2 deviations. Shadow: 0, 8 before and 4, 8 after; the
    # deviation of 0, 8, 4, 8 is sqrt(11), and it moved by 2 on average.
    change = moved({"a": [(0, 0)], "b": [(0, 8)], "gone": [(9, 9)]}, {"a": [(1, 4)], "b": [(1, 8)], "new": [(7, 7)]})
    assert (change.trained.interval.mean, change.shadow.interval.mean) == (1, 2)
    assert change.gap.interval.mean == pytest.approx(2 - 2 / 11**0.5)
    assert change.gap.interval.n == 2


@pytest.mark.parametrize("scale", [100.0, 0.001])
def test_the_gap_does_not_depend_on_a_rewards_scale(scale: float) -> None:
    def scaled(side: Pairs) -> Pairs:
        return {task: [(t, scale * s) for t, s in values] for task, values in side.items()}

    before, after = samples(0.2, 0.3), samples(0.9, 0.3, seed=1)
    one, other = moved(before, after).gap.interval, moved(scaled(before), scaled(after)).gap.interval
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
    assert one.low > 0


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((0.2, 0.3), (0.9, 0.3), "The trained reward rose, and q did not rise beyond chance (trained reward +0."),
        ((0.2, 0.8), (0.9, 0.3), "The trained reward rose, and q fell ("),
        ((0.2, 0.2), (0.9, 0.5), "The trained reward and q both rose, the trained reward further ("),
        ((0.2, 0.2), (0.7, 0.7), "The trained reward and q both rose, cannot tell which of them further ("),
        ((0.5, 0.2), (0.5, 0.2), "Cannot tell: the trained reward did not rise beyond chance"),
        (
            (0.0, 0.0),
            (1.0, 0.0),
            "The trained reward rose, and q did not rise beyond chance (",
        ),  # nothing was ever right
    ],
)
def test_what_is_said(before: tuple[float, float], after: tuple[float, float], says: str) -> None:
    assert told("q", moved(samples(*before), samples(*after, seed=1))).startswith(says)


def test_few_tasks_or_none_in_common_cannot_tell() -> None:
    few = moved(samples(0.0, 0.5, tasks=5), samples(1.0, 0.5, tasks=5))  # one-sided, but five signs can be chance
    assert few.trained.interval.low > 0
    assert told("q", few).startswith("Cannot tell")
    assert told("q", moved({"a": [(0, 0)]}, {"b": [(1, 1)]})).startswith("Cannot tell: no held-out task")
    # The trained reward rose a little; whether the shadow did is lost in its noise.
    slow = moved(samples(0.4, 0.4, tasks=60), samples(0.48, 0.46, seed=5, tasks=60))
    assert told("q", slow).startswith("Cannot tell whether q rose with the trained reward (")


def write_shadow_run(
    run: Path, chances: dict[str, tuple[float, float]], *, shadow: str = SHADOW["name"], configured: bool = False
) -> None:
    """A made-up run with stored samples; `chances` of (trained, shadow) by name of evaluation or `train-STEP`."""
    if not configured:
        write_config(run)
        text = (run / "config.yaml").read_text(encoding="utf-8")
        text = text.replace("  name: brevity\n  weight: 0.1\n", f"  name: {shadow}\n  weight: 0.0\n  role: shadow\n")
        (run / "config.yaml").write_text(text, encoding="utf-8")
    for seed, (name, chance) in enumerate(chances.items()):
        step = int(name.rpartition("-")[2]) if "-" in name else 0
        drawn = samples(*chance, seed=seed, tasks=40)
        rows = [
            rollout(step, reward=t, parts=json.dumps({"math_answer": t, shadow: s}), task_id=task, prompt=task)
            for task, values in drawn.items()
            for t, s in values
        ]
        rows.append(rollout(step, outcome="failed", reward=None, parts="{}", task_id="t0", prompt="t0"))
        if name.startswith("train-"):
            write_rollouts(run / "rollouts" / f"step-{step:06d}.parquet", rows)
            metrics = {
                "reward/mean": chance[0],
                "reward/part/math_answer": chance[0],
                f"reward/part/{shadow}": chance[1],
            }
            bounds = {f"{end}/reward/part/{shadow}": chance[1] + by for end, by in (("low", -0.1), ("high", 0.1))}
            append(run / "metrics.jsonl", {"step": step, **metrics, **bounds})
        else:
            write_eval(run, name, chance[0], random.Random(seed))
            write_rollouts(run / "evals" / f"{name}.parquet", rows)


def test_the_page_shows_a_shadow_beside_the_trained_reward(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_shadow_run(
        run,
        {"base": (0.1, 0.3), "train-1": (0.1, 0.3), "step-000001": (0.1, 0.3), "train-2": (0.9, 0.3)}
        | {"step-000002": (0.9, 0.3)},
    )
    page = Page(write_report(run))
    assert "The trained reward rose, and quality did not rise beyond chance" in page.text
    assert "quality (shadow)" in page.text  # among the facts, without "x 0.0"
    assert "base and RL, step 1, held out" in page.text
    main, gap = page.data["result"]
    assert (main["title"], gap["title"]) == (
        "Train reward and held-out accuracy (math_answer)",
        "Held-out gap to quality",
    )
    (line,) = [mark for mark in main["marks"] if mark["name"] == "quality, shadow"]
    assert (line["low"], line["y"]) == ([0.2, 0.2], [0.3, 0.3])
    points = gap["marks"][0]
    assert points["x"] == [1, 2]
    assert points["low"][1] > 0
    assert page.data["chips"][1]["value"] == "maybe"  # hacked?
    assert [each.training for each in measure_shadows(run, ["quality"])] == [None]  # two steps are too few
    [shadow] = measure_shadows(run, ["quality"], width=1)
    assert shadow.training
    assert shadow.training.gap.low > 0 > shadow.training.shadow.low


def test_without_stored_samples_the_page_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_shadow_run(run, {"base": (0.1, 0.3), "step-000002": (0.9, 0.3)})
    (run / "evals" / "base.parquet").unlink()
    assert "Cannot tell: no samples of an evaluation before" in Page(write_report(run)).text


@pytest.mark.parametrize(
    ("ends", "order", "kind", "says"),
    [
        ((0.9, 0.3), "shuffle", "dont", "the trained reward rose, and quality fell (trained reward +0."),
        ((0.9, 0.3), "easy_first", "cant_tell", "the trained reward rose, and quality fell (trained reward +0."),
        ((0.9, 0.6), "shuffle", "cant_tell", "the trained reward rose, and quality did not rise beyond chance ("),
        ((0.9, 0.9), "shuffle", "cant_tell", "the trained reward and quality both rose"),
    ],
)
def test_a_gap_in_training_decides_where_held_out_samples_do_not(
    tmp_path: Path, ends: tuple[float, float], order: str, kind: str, says: str
) -> None:
    run = tmp_path / "run"
    write_shadow_run(run, {f"train-{step}": (0.1, 0.6) if step < 7 else ends for step in range(1, 13)})
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("environment:\n", f"environment:\n  order: {order}\n"), "utf-8")
    found = verdict_of(run)  # nothing was evaluated
    [shadow] = [each for each in found.reasons if each.code == "shadow"]
    assert (found.kind, says in shadow.says) == (kind, True), shadow.says
    assert shadow.weight == {"dont": "against"}.get(kind, "for" if ends[1] > 0.6 else "doubt")
    assert (found.reasons[0].code == "shadow") == (kind == "dont")
    if kind == "dont":
        for name, seed in (("base", 0), ("step-000012", 1)):  # a held-out rise of the trained reward does not save it
            write_eval(run, name, 0.9 if seed else 0.1, random.Random(seed))
        assert (verdict_of(run).kind, verdict_of(run).reasons[0].code) == ("dont", "shadow")
        page = Page(write_report(run))
        assert page.data["chips"][1]["value"] == "likely"
        assert "first and last 3 steps of training" in page.text
        for path in (run / "rollouts").iterdir():  # only the metrics are left
            path.unlink()
        [fell] = [each for each in verdict_of(run).reasons if each.code in ("observed", "alarm")]
        assert fell.weight == "doubt"


@pytest.mark.parametrize("steps", [2, 11])
def test_too_few_steps_decide_nothing(tmp_path: Path, steps: int) -> None:
    run = tmp_path / "run"
    write_shadow_run(run, {f"train-{at}": (0.1, 0.9) if 2 * at <= steps else (0.9, 0.1) for at in range(1, steps + 1)})
    found = verdict_of(run)
    assert (found.kind, [each.code for each in found.reasons]) == ("cant_tell", ["open"])
    assert found.shadows[0].sentence.endswith("nor of enough steps of training.")


def test_how_often_training_speaks_against_a_shadow_that_did_not_move() -> None:
    # The trained reward rises beyond doubt. One sample of 0 or 1 from each of 16 tasks at each end is where intervals
    # err most: with four samples of a task 95 % is wrong in 1 % of such runs, here in 2.5 %.
    random_ = random.Random(0)

    def end(name: str, trained: float, shadow: float) -> Pairs:
        return {
            f"{name}{at}": [(float(random_.random() < trained), float(random_.random() < shadow))] for at in range(16)
        }

    def weights(runs: int, before: float, after: float) -> Counter[str]:
        """How the runs are judged; `fell` counts those in which the shadow's 95 % interval lies below 0."""
        found: Counter[str] = Counter()
        for _ in range(runs):
            drift = drifted(end("first", 0.1, before), end("last", 0.9, after), steps=3)
            [reason] = doubts.shadows([Shadow(name="q", start="", moved=[], training=drift)], "shuffle")
            found[reason.weight] += 1
            if drift.trained.low > 0 > drift.shadow.high:
                found["fell"] += 1
                assert ("not at the 99.9 %" in reason.says) == (reason.weight == "doubt")
        return found

    null = weights(600, 0.5, 0.5)
    assert null["against"] <= 1  # 0.05 % is expected: 0.3 runs
    assert 5 <= null["fell"] <= 30  # at 95 % it would be 2.5 %: 15 runs
    assert weights(50, 0.95, 0.05)["against"] >= 45


def test_a_run_that_was_rolled_back_says_the_same_everywhere(tmp_path: Path) -> None:
    config = tiny_config(
        "m",
        steps=24,
        output_dir=str(tmp_path),
        rewards=[{"path": "rewards.math_answer:math_answer"}, SHADOW],
        evaluation={"tasks": 40},
    )
    with Run.create(config, provenance=Provenance()) as run:
        chances = {f"train-{at}": (0.1 if at < 7 else 0.9, 0.8 if at < 13 else 0.1) for at in range(1, 25)}
        held_out = {"base": (0.1, 0.8), "step-000012": (0.9, 0.8), "step-000024": (0.9, 0.1)}
        write_shadow_run(run.path, {**chances, **held_out}, configured=True)
        before = verdict_of(run.path)
        assert before.health is not None
        assert [(alarm.name, alarm.severity) for alarm in before.health.alarms] == [("shadow_gap", "critical")]
        assert (before.kind, before.shadows[0].sentence[:42]) == ("dont", "The trained reward rose, and quality fell ")
        run.event("rolled_back", "shadow_gap", step=12)
        for _ in range(2):  # of held-out samples; then of training, where those of the base are not stored
            summary, found = summarize(run, 12), verdict_of(run.path)
            page = Page(run.path / "report.html")
            [shadow] = found.shadows
            [reason] = [each.says for each in found.reasons if each.code == "shadow"]
            assert reason.endswith(shadow.sentence)
            assert found.health is not None  # of the whole run, as `rlft health` and the page's alarms are
            assert ("shadow_gap", "critical") in {(each.name, each.severity) for each in found.health.alarms}
            assert found.of_result is not None
            [alarm] = found.of_result.alarms  # that it fell is of the adapters that were given up
            assert (alarm.severity, alarm.onset) == ("warning", 12)
            assert all(sample.step <= 12 for sample in alarm.samples)
            told = CliRunner().invoke(app, ["health", str(run.path)])
            assert (told.exit_code, "The run's result is the adapter of step 12" in told.output) == (1, False)
            assert shadow.sentence == summary["shadow"]["quality"]["sentence"] == page.data["shadows"][0]["sentence"]
            assert "did not rise beyond chance" in shadow.sentence
            assert " fell " not in json.dumps(page.data["shadows"])
            (run.path / "evals" / "base.parquet").unlink(missing_ok=True)
        assert "first and the last 3 steps of training" in shadow.sentence


def test_alarms_that_began_before_the_result_concern_it(tmp_path: Path) -> None:
    def alarm(name: str, onset: int) -> Alarm:
        return Alarm(name=name, severity="warning", onset=onset, seen=48, evidence="", numbers={})

    alarms = (alarm("repetition", 5), alarm("shadow_gap", 6), alarm("reward_collapse", 25))
    found = Health(steps=48, alarms=alarms, unable=(), enough=True)
    write_shadow_run(tmp_path, {})
    for step in range(1, 49):  # no samples, and nothing in the first 24 steps: that a gap had begun was seen later
        append(tmp_path / "metrics.jsonl", {"step": step, "reward/mean": 0.5, "reward/part/quality": 0.5})
    assert [each.name for each in alarms_until(tmp_path, found, 24).alarms] == ["repetition", "shadow_gap"]
    for step in range(1, 49):  # samples of these steps say that both rose
        chance = 0.1 if step < 7 else 0.9
        rows = [
            rollout(step, reward=t, parts=json.dumps({"math_answer": t, "quality": s}), task_id=task)
            for task, values in samples(chance, chance, seed=step, tasks=40).items()
            for t, s in values
        ]
        write_rollouts(tmp_path / "rollouts" / f"step-{step:06d}.parquet", rows)
    assert [each.name for each in alarms_until(tmp_path, found, 24).alarms] == ["repetition"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_live_panel_shows_how_far_it_moved(terminal: bool) -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    view = View("run", steps=9, console=console, shadows=["qua\x1blity"])
    metric = "reward/part/qua\x1blity"
    view.step(3, {"time/step": 1.0, "reward/mean": 0.5, metric: 0.25})
    view.step(4, {"time/step": 1.0, "reward/mean": 0.75, metric: 0.2})
    if terminal:
        console.print(view)
    shown = stream.getvalue()
    assert "0.200 (-0.050 since step 3; trained +0.250)" in shown
    assert "qua␛lity" in shown


@pytest.fixture(scope="module")
def shadow_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A real run of one step, trained on one reward with another as its shadow."""
    config = tiny_config(
        tiny_model,
        steps=1,
        output_dir=str(tmp_path_factory.mktemp("shadow")),
        rewards=[
            {"path": "tests.fakes:share_of_a"},
            {"path": "tests.fakes:first_letter", "name": "hidden", "role": "shadow"},
        ],
        evaluation={"tasks": 4},
    )
    launch.train(config)
    return config.run_dir


def test_a_run_ends_with_what_its_shadow_says(shadow_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((shadow_run / "summary.json").read_text(encoding="utf-8"))
    shadow = summary["shadow"]["hidden"]
    assert shadow["base"] == summary["rewards_base"]["hidden"]
    assert shadow["rl"] == summary["rewards_rl"]["hidden"]
    assert shadow["sft"] is None
    assert (set(shadow["gap"]), shadow["gap"]["n"]) == ({"mean", "low", "high", "n"}, 4)
    show_summary(shadow_run, summary)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"shadow hidden (not trained on): {shadow['sentence']}" in shown
    assert "Held-out gap to hidden" in Page(shadow_run / "report.html").titles
