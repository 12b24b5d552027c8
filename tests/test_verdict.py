"""SHIP, DON'T or CAN'T TELL: what decides, and what speaks against a number that looks good."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves import doubts
from rlft.curves.alarms import ALARMS, Alarm, Health
from rlft.curves.differences import paired
from rlft.curves.looks import picked
from rlft.curves.page_data import tables
from rlft.curves.page_data.decision import chips
from rlft.curves.reading import read_config, read_evals
from rlft.curves.scored_run import read_run
from rlft.curves.shadow import Shadow, moved
from rlft.curves.statistics import mean_interval
from rlft.curves.text import number
from rlft.curves.verdict import Verdict, judge, verdict_of
from rlft.run.records import Evaluation, word_for
from tests.fakes_run import append, event, make_run, rollout, write_config, write_eval, write_rollouts
from tests.synthetic_runs import write_run as write_scored

Values = Mapping[str, Sequence[float]]


def _evaluation(name: str, by_task: Values, **changes: Any) -> Evaluation:
    plain = Evaluation(
        name=name,
        step=int(name[5:]) if name.startswith("step-") else 0,
        adapter_version=0,
        adapter_hash="",
        metric="m",
        accuracy=mean_interval(by_task),
        failed=0,
        length=10.0,
        truncated=0.0,
        by_task=by_task,
        samples=len(by_task),
    )
    return replace(plain, **changes)


def _solved(count: int, tasks: int = 100, first: int = 0) -> dict[str, list[float]]:
    return {f"t{i}": [float(i < count)] for i in range(first, first + tasks)}


def _judge(*evals: tuple[str, int], config: Mapping[str, Any] | None = None) -> Verdict:
    return judge(config or {}, [], [_evaluation(name, _solved(count)) for name, count in evals])


def _codes(verdict: Verdict) -> dict[str, str]:
    return {reason.code: reason.weight for reason in verdict.reasons}


@pytest.mark.parametrize(
    ("evals", "kind", "words"),
    [
        ([("base", 3), ("sft", 31), ("step-000010", 78)], "ship", "lies above the 0.01 that matters"),
        ([("base", 3), ("sft", 78), ("step-000010", 31)], "dont", "RL made it worse: -0.47"),
        ([("base", 3), ("sft", 31), ("step-000010", 31)], "cant_tell", "may be less than the 0.01 that matters"),
        ([("base", 30), ("step-000010", 35)], "cant_tell", "5 of them changed"),
        ([("base", 30), ("step-000005", 90), ("step-000010", 30)], "cant_tell", "The best of 2 evaluations is"),
        ([("base", 30)], "cant_tell", "(base); nothing has been evaluated after RL yet"),
        ([("step-000010", 30)], "cant_tell", "nothing was evaluated before RL"),
    ],
)
def test_the_verdict(evals: list[tuple[str, int]], kind: str, words: str) -> None:
    verdict = _judge(*evals)
    assert verdict.kind == kind
    assert words in " ".join(reason.says for reason in verdict.reasons)


def test_the_sentence_in_full() -> None:
    # 47 of 100 tasks changed by 1: with -1 and 1 the mean is 47 / 102 = 0.4608, squares 49 - 102 * 0.4608^2 = 27.34,
    # error sqrt(27.34 / 101 / 102) = 0.05152, t(101) = 1.9837: 0.4608 -+ 0.1022.
    assert _judge(("base", 3), ("sft", 31), ("step-000060", 78)).sentence == (
        "Held-out accuracy went from 0.03 [0.00, 0.08] (base) over 0.31 [0.22, 0.41] (SFT) to "
        "0.78 [0.69, 0.86] (RL, step 60). Paired over 100 tasks, RL changed it by +0.47 [+0.36, +0.56] "
        "against SFT; the whole run changed it by +0.75 [+0.64, +0.83]."
    )


def test_an_evaluation_in_between_needs_more_to_be_sure() -> None:
    config = {"steps": 100, "evaluation": {"every": 10}}
    sure = [("base", 30), ("step-000010", 38)]
    assert _judge(*sure).kind == "ship"
    verdict = _judge(*sure, config=config)
    assert verdict.kind == "cant_tell"
    assert verdict.effect is not None
    assert verdict.effect.change.level == pytest.approx(1 - 0.025 / 9)
    assert "look 1 of 10" in verdict.sentence


def test_what_is_too_small_to_matter_is_not_shipped() -> None:
    evals = [_evaluation("base", _solved(2000, 5000)), _evaluation("step-000010", _solved(2020, 5000))]
    verdict = judge({}, [], evals)
    assert verdict.effect is not None
    assert verdict.effect.change.conclusive  # +0.004, beyond chance
    assert (verdict.kind, verdict.reasons[0].code) == ("dont", "effect")
    assert "smaller than the 0.01 that matters" in verdict.reasons[0].says
    assert judge({"evaluation": {"min_effect": 0.001}}, [], evals).kind == "ship"


def _rows(rewards: Sequence[float]) -> list[dict[str, float]]:
    return [{"step": step, "reward/mean": reward} for step, reward in enumerate(rewards, 1)]


def test_a_reward_that_fell_after_the_last_evaluation_is_not_shipped() -> None:
    evals = [_evaluation("base", _solved(10)), _evaluation("step-000040", _solved(80))]
    rising = [0.1 + 0.7 * min(1, step / 40) + 0.02 * (step % 3) for step in range(130)]
    config = {"steps": 130, "evaluation": {"every": 100}}
    assert judge(config, _rows(rising), evals).kind == "ship"
    fallen = _rows([*rising[:40], *[0.0] * 90])
    verdict = judge(config, fallen, evals)
    assert (verdict.kind, verdict.reasons[0].code) == ("dont", "collapse")
    assert "fell from 0.636 to 0.00" in verdict.reasons[0].says
    easy_first = judge({**config, "environment": {"order": "easy_first"}}, fallen, evals)
    assert (easy_first.kind, _codes(easy_first)["collapse"]) == ("cant_tell", "doubt")  # later tasks may be harder


def test_an_old_evaluation_tells_nothing_of_the_run() -> None:
    evals = [_evaluation("base", _solved(10)), _evaluation("step-000040", _solved(80))]
    config = {"steps": 200, "evaluation": {"every": 20}}
    assert judge(config, _rows([0.5] * 60), evals).kind == "ship"
    verdict = judge(config, _rows([0.5] * 90), evals)
    assert (verdict.kind, _codes(verdict)["age"]) == ("cant_tell", "doubt")


def test_missing_scores_are_counted_at_their_worst() -> None:
    before = _evaluation("base", _solved(60, 250))
    # 0.24 before; 100 of 250 cannot be scored afterwards: 0.49 of the others, 0.30 if they count as 0.
    lost = {f"t{i}": [] if i >= 150 else [float(i < 74)] for i in range(250)}
    verdict = judge({}, [], [before, _evaluation("step-000010", lost, failed=100, samples=250)])
    assert (verdict.kind, _codes(verdict)["missing"]) == ("cant_tell", "doubt")
    assert "100 of 250 after have no score, more than 20 %" in " ".join(reason.says for reason in verdict.reasons)
    few = {**_solved(150, 250), **{f"t{i}": [] for i in range(30)}}
    worst = doubts.worst_case(before, _evaluation("step-000010", few, failed=30), 0.95, {})
    assert (worst.interval.mean, worst.interval.n) == (pytest.approx((120 - 60) / 250), 250)
    verdict = judge({}, [], [before, _evaluation("step-000010", few, failed=30, samples=250)])
    assert (verdict.kind, _codes(verdict)["missing"]) == ("ship", "note")
    close = {**_solved(85, 250), **{f"t{i}": [] for i in range(30)}}
    verdict = judge({}, [], [before, _evaluation("step-000010", close, failed=30, samples=250)])
    assert (verdict.kind, _codes(verdict)["missing"]) == ("cant_tell", "doubt")


def test_what_does_not_apply_to_a_task_is_not_missing() -> None:
    by_task = {**_solved(30), "other": []}
    verdict = judge({}, [], [_evaluation("base", by_task), _evaluation("step-000010", {**_solved(80), "other": []})])
    assert "at their worst the change is +0.50" in " ".join(reason.says for reason in verdict.reasons)


def test_a_limit_that_cuts_completions_leaves_doubt() -> None:
    evals = [_evaluation("base", _solved(10)), _evaluation("step-000040", _solved(80), truncated=0.4)]
    assert judge({}, [], evals).kind == "cant_tell"
    evals[1] = replace(evals[1], truncated=0.1, length=25.0)
    verdict = judge({}, [], evals)
    assert verdict.kind == "ship"
    assert {"truncation": "note", "length": "note"}.items() <= _codes(verdict).items()


def _shadow(after: float) -> Shadow:
    before = {f"t{i}": [(float(i < 30), float(i < 60))] for i in range(100)}
    later = {f"t{i}": [(float(i < 90), float(i < 60 + 100 * after))] for i in range(100)}
    evaluation = _evaluation("step-000010", _solved(90))
    return Shadow(name="truth", start="base", moved=[(evaluation, moved(before, later))], training=None)


@pytest.mark.parametrize(
    ("change", "weight", "kind"), [(-0.4, "against", "dont"), (0.0, "doubt", "cant_tell"), (0.3, "for", "ship")]
)
def test_a_shadow_reward_that_does_not_follow_speaks_against(change: float, weight: str, kind: str) -> None:
    evals = [_evaluation("base", _solved(30)), _evaluation("step-000010", _solved(90))]
    verdict = judge({}, [], evals, shadows=[_shadow(change)])
    assert (_codes(verdict)["shadow"], verdict.kind) == (weight, kind)


def test_an_observed_reward_that_falls_leaves_doubt(tmp_path: Path) -> None:
    write_config(tmp_path, 10)
    text = (tmp_path / "config.yaml").read_text().replace("weight: 0.1", "weight: 0.0")
    (tmp_path / "config.yaml").write_text(text)
    for name, judged, truth in (("base", 20, 50), ("step-000010", 90, 10)):
        evaluation = _evaluation(name, _solved(judged), length=10.0 if name == "base" else 100.0)
        (tmp_path / "evals").mkdir(exist_ok=True)
        (tmp_path / f"evals/{name}.json").write_text(json.dumps(evaluation.as_dict()))
        rows = [
            rollout(
                0,
                i,
                task_id=f"t{i}",
                prompt=f"What is {i}?",
                parts=json.dumps({"math_answer": float(i < judged), "brevity": float(i < truth)}),
            )
            for i in range(100)
        ]
        write_rollouts(tmp_path / f"evals/{name}.parquet", rows)
    verdict = verdict_of(tmp_path)
    assert (verdict.kind, _codes(verdict)["observed"]) == ("cant_tell", "doubt")
    told = " ".join(reason.says for reason in verdict.reasons)
    assert "brevity, which is observed and not trained on, fell by -0.40" in told
    assert "grew from 10.0 to 100" in told


def test_an_observed_reward_that_falls_in_training_leaves_doubt_where_no_samples_are_stored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=40)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("weight: 0.1", "weight: 0.0"))
    assert verdict_of(run).kind == "ship"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[20:]:
        line["reward/part/brevity"] -= 0.3
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    verdict = verdict_of(run)
    assert (verdict.kind, _codes(verdict)["observed"]) == ("cant_tell", "doubt")


def test_what_was_rolled_back_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=20, sft=False)
    for name in ("step-000015", "step-000020"):
        write_eval(run, name, 0.0, random.Random(0))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[10:]:
        line["reward/mean"] = 0.0
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert verdict_of(run).kind != "ship"
    append(run / "events.jsonl", event("rolled_back", "reward_collapse", step=10))
    verdict = verdict_of(run)
    assert verdict.effect is not None
    assert (verdict.effect.after.step, verdict.effect.look.planned) == (10, 2)
    assert (_codes(verdict)["effect"], _codes(verdict)["rolled_back"]) == ("for", "note")
    assert "collapse" not in _codes(verdict)
    assert read_run(run).evaluation == "step-000010"
    append(run / "events.jsonl", event("resumed", "continuing after step 20", step=20))
    assert verdict_of(run).kind != "ship"


def test_a_verdict_is_for_programs_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(make_run(tmp_path / "r")), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] == "ship"
    assert {"mean", "low", "high", "n", "level", "look", "planned_looks", "min_effect"} <= told["effect"].keys()
    assert told["reasons"][0].keys() == {"code", "weight", "says"}
    assert not (tmp_path / "r/report.html").exists()
    write_config(tmp_path / "empty")
    assert json.loads(CliRunner().invoke(app, ["report", str(tmp_path / "empty"), "--json"]).stdout)["effect"] is None


def test_evaluations_of_other_tasks_cannot_be_paired() -> None:
    evals = [_evaluation("base", _solved(0)), _evaluation("step-000001", _solved(180, first=100))]
    verdict = judge({}, [], evals)
    assert (verdict.kind, word_for(evals)) == ("cant_tell", "accuracy")
    assert "no scored task in common" in verdict.reasons[0].says
    assert paired(evals[0].by_task, evals[1].by_task).why_none == "no task was scored on both sides"


def test_a_critical_alarm_leaves_doubt(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=40)
    assert verdict_of(run).kind == "ship"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[20:]:
        line["policy/grad_norm"] = float("nan")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    verdict = verdict_of(run)
    assert (verdict.kind, verdict.reasons[0].code) == ("cant_tell", "alarm")
    assert "not_finite since step 21" in verdict.reasons[0].says


def test_a_finished_run_without_its_last_evaluation_or_step_is_not_shipped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=12)
    last = json.loads((run / "evals" / "step-000012.json").read_text())
    summary = {"steps": 12, "metric": "math_answer", "accuracy_rl": last["accuracy"]}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "lost" not in _codes(verdict_of(run))
    (run / "summary.json").write_text(json.dumps({**summary, "accuracy_rl": {**last["accuracy"], "mean": 0.999}}))
    changed = verdict_of(run)
    assert "one of them was changed" in next(each.says for each in changed.reasons if each.code == "lost")
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "evals" / "step-000012.json").unlink()
    gone = verdict_of(run)
    assert (gone.kind, _codes(gone)["lost"]) == ("cant_tell", "doubt")
    says = next(each.says for each in gone.reasons if each.code == "lost")
    assert "an evaluation after step 12, which is not there; the last one is of step 10" in says
    (run / "evals" / "step-000012.json").write_text(json.dumps(last))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    torn = verdict_of(run)
    assert (torn.kind, _codes(torn)["lost"]) == ("cant_tell", "doubt")


def test_samples_that_failed_count_where_an_earlier_rlft_kept_no_number_of_samples() -> None:
    before, half = _evaluation("base", _solved(20)), _evaluation("step-000010", _solved(40, tasks=60), failed=40)
    reason = doubts.missing(before, replace(half, samples=0), 0.95, 0.01, True, {})
    assert reason is not None
    assert "40 of 100 after have no score" in reason.says


def _flipped() -> tuple[dict[str, list[float | None]], dict[str, list[float | None]]]:
    """250 tasks, of which 45 failed in both and 25 were got right by training."""
    before: dict[str, list[float | None]] = {f"t{i}": [None if i < 45 else float(i % 2)] for i in range(250)}
    wrong = [task for task, values in before.items() if values == [0.0]]
    return before, {**before, **{task: [1.0] for task in wrong[:25]}}


def test_tasks_that_failed_on_both_sides_are_at_their_worst_as_rlft_compare_has_them(tmp_path: Path) -> None:
    before, after = _flipped()
    known = [{task: [v for v in values if v is not None] for task, values in side.items()} for side in (before, after)]
    evals = [
        _evaluation(name, by_task, failed=45) for name, by_task in zip(("base", "step-000010"), known, strict=True)
    ]
    verdict = judge({}, [], evals)
    assert (verdict.kind, _codes(verdict)["missing"]) == ("cant_tell", "doubt")
    said = next(each.says for each in verdict.reasons if each.code == "missing")
    worst = doubts.worst_case(evals[0], evals[1], 0.95, {}).interval
    assert (worst.mean, worst.n) == (pytest.approx((25 - 45) / 250), 250)
    text = "with all of them at their worst the change is -0.08 [-0.15, -0.01]"
    assert text in said
    runs = [write_scored(tmp_path / name, side) for name, side in (("a", before), ("b", after))]
    compared = CliRunner().invoke(app, ["compare", *map(str, runs)], env={"COLUMNS": "300"})
    assert text in compared.output.replace("\n", " "), compared.output
    # Of 45 tasks without a score 5 failed: the reward did not apply to the other 40.
    evals = [replace(each, failed=5) for each in evals]
    worst = doubts.worst_case(evals[0], evals[1], 0.95, {}).interval
    assert (worst.mean, worst.n) == (pytest.approx((25 - 5) / 210), 210)


def test_a_warning_that_the_reward_may_be_hacked_leaves_doubt_unless_a_shadow_rose() -> None:
    evals = [_evaluation("base", _solved(30)), _evaluation("step-000010", _solved(90))]
    for name in ALARMS:
        alarm = Alarm(name=name, severity="warning", onset=5, seen=10, evidence="as seen", numbers={})
        health = Health(steps=40, alarms=(alarm,), unable=())
        watched = {
            change: judge({}, [], evals, remarks=doubts.alarms(health, doubts.shadows([_shadow(change)], "shuffle")))
            for change in (0.0, 0.3)
        }
        unwatched = judge({}, [], evals, remarks=doubts.alarms(health))
        of_hacking = name in ("length_with_reward", "part_against_part", "repetition", "shadow_gap")
        assert (unwatched.kind, _codes(unwatched)["alarm"]) == (
            ("cant_tell", "doubt") if of_hacking else ("ship", "note")
        )
        assert _codes(watched[0.0])["alarm"] == ("doubt" if of_hacking else "note")
        assert _codes(watched[0.3])["alarm"] == "note"
    critical = replace(health, alarms=(replace(alarm, severity="critical"),))
    assert doubts.alarms(critical, doubts.shadows([_shadow(0.3)], "shuffle"))[0].weight == "doubt"


def test_length_that_grows_tenfold_with_the_reward_is_not_shipped_and_does_not_pass(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", steps=40)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        line["rollout/length"] = 20.0 * 10 ** (index / 39)
        line["reward/mean"] = 0.3 + 0.01 * index
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    verdict = verdict_of(run)
    assert (verdict.kind, _codes(verdict)["alarm"]) == ("cant_tell", "doubt")
    assert verdict.health is not None
    hacked = chips(verdict, verdict.health, read_config(run), read_evals(run), 40, {}, 0)[1]
    assert (hacked["label"], hacked["value"]) == ("Hacked?", "maybe")
    words = ["gate", f"{run}@base", str(run), "--min-effect", "0.05"]
    told = CliRunner().invoke(app, words)
    assert (told.exit_code, "length_with_reward since step" in told.output) == (2, True), told.output


def test_the_best_evaluation_is_marked_as_picked_in_the_table_where_it_is_not_the_result() -> None:
    solved = [30, 40, 90, 50, 52, 54, 50, 52, 54, 50, 52]
    evals = [_evaluation("base" if not at else f"step-{5 * at:06d}", _solved(count)) for at, count in enumerate(solved)]

    def policies(result: Sequence[Evaluation]) -> list[str]:
        table = tables.evaluations(evals, (), result)
        assert table is not None
        return [row[0] for row in table["rows"]]

    evals[4], evals[2] = replace(evals[2], name="step-000020", step=20), replace(evals[4], name="step-000010", step=10)
    best = picked(evals[1:])
    assert best is not None
    marked = f"RL, step 20, best of 10: picked (optimism {number(best.optimism)})"
    assert policies(evals)[:4] == ["base", "RL, step 5", "RL, step 10", marked]  # of a row that is else left out
    assert not any("picked" in row for row in policies(evals[:5]))  # the best is the result, as after rolling back
    rising = [_evaluation(name, _solved(count)) for name, count in (("step-000005", 40), ("step-000010", 60))]
    assert "picked" not in json.dumps(tables.evaluations(rising, (), rising))
