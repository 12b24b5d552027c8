"""What a policy is judged by on held-out tasks: all rewards with intervals, one of them the headline, and its name."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rlft.cli import main
from rlft.cli.summary import show_summary
from rlft.curves.report import write_report
from rlft.curves.statistics import mean_interval
from rlft.curves.verdict import judge
from rlft.model.adapter import bare_base
from rlft.reward.outcomes import combine
from rlft.run.records import Evaluation
from rlft.run.rollout_table import to_parquet
from rlft.train.rl.evaluate import evaluation, headline
from rlft.train.rl.metrics import describe
from rlft.types import Abstain, Failed, Group, Score
from tests.fakes import made_up_group, tiny_config
from tests.test_report import Page

REWARDS = [{"path": "a:right"}, {"path": "b:style", "weight": 0}]
FAILED = Failed(kind="error", message="m", reproduce="r")


def groups(parts: Sequence[dict[str, float]], **failed: Failed) -> list[Group]:
    """A task for each sample's parts; the last sample has failures."""
    made = [made_up_group([1.0], task_id=f"t{number}") for number in range(len(parts))]
    scored = [
        replace(
            group.trajectories[0],
            outcome=Score(value=1.0, parts=each),
            failed_parts=failed if each is parts[-1] else {},
        )
        for group, each in zip(made, parts, strict=True)
    ]
    return [replace(group, trajectories=(t,)) for group, t in zip(made, scored, strict=True)]


def measured(metric: str, parts: Sequence[dict[str, float]], **failed: Failed) -> Evaluation:
    config = tiny_config("m", rewards=REWARDS, evaluation={"metric": metric}, scoring={"max_failed": 0.5})
    return evaluation(config, groups(parts, **failed), adapter=bare_base(), name="base", step=0, samples_file=None)


PARTS = [
    {"right": 1.0, "style": 18.5, "style/length": 0.5},
    {"right": 0.0, "style": 12.0, "style/length": 1.0},
    {"right": 1.0},
]


def test_every_reward_and_part_is_measured_with_its_interval() -> None:
    result = measured("", PARTS, style=FAILED)
    assert result.metric == "right"
    assert result.accuracy == result.rewards["right"] == mean_interval([[1.0], [0.0], [1.0]])
    assert list(result.rewards) == ["right", "style", "style/length"]
    assert str(result.rewards["style"]) == str(mean_interval([[18.5], [12.0]]))  # nan is no equal of nan
    assert (result.rewards["style"].n, result.failed, result.failed_parts) == (2, 0, {"style": 1})
    assert str(Evaluation.from_dict(json.loads(json.dumps(result.as_dict())))) == str(result)


def test_what_the_trained_reward_cannot_grade_still_counts_in_the_headline() -> None:
    rewards = [{"path": "a:judge"}, {"path": "b:exact", "weight": 0}]
    config = tiny_config("m", rewards=rewards, evaluation={"metric": "exact"})
    graded = [(Abstain(reason="r"), 1.0), (FAILED, 1.0), (Score(value=0.5), 0.0)]
    outcomes = [combine(config.rewards, [judged, Score(value=exact)]) for judged, exact in graded]
    made = [made_up_group([outcome], task_id=f"t{number}") for number, outcome in enumerate(outcomes)]
    result = evaluation(config, made, adapter=bare_base(), name="base", step=0, samples_file=None)
    assert result.by_task == {"t0": [1], "t1": [1], "t2": [0]}
    assert (result.failed, result.accuracy.mean, result.rewards["judge"].n) == (0, pytest.approx(2 / 3), 1)
    assert describe(made)["reward/part/exact"] == pytest.approx(2 / 3)
    rows = pq.read_table(io.BytesIO(to_parquet(made, step=1))).to_pylist()
    assert [json.loads(row["parts"])["exact"] for row in rows] == [1, 1, 0]


def test_the_headline_may_be_a_part_and_is_an_accuracy_only_of_zeros_and_ones() -> None:
    assert measured("", PARTS).word == "accuracy"
    style = measured("style", PARTS)
    assert (style.accuracy.mean, style.word) == (15.25, "mean")
    part = measured("style/length", PARTS, style=FAILED)
    assert (part.metric, part.accuracy.mean, part.failed, part.word) == ("style/length", 0.75, 1, "mean")
    later = replace(part, name="step-000004", step=4)
    assert judge({}, [], [part, later]).sentence.startswith("Held-out mean went from 0.75")
    assert judge({}, [], [later]).sentence.startswith("Held-out mean is 0.75")
    assert judge({}, [], [part]).sentence.startswith("Held-out mean is 0.75")


def test_a_headline_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(ValueError, match=r"no reward is named 'stile'.*'style'.*right, style"):
        headline(tiny_config("m", rewards=REWARDS, evaluation={"metric": "stile/length"}))
    with pytest.raises(RuntimeError, match=r"no sample has the part style/lenght.*right, style, style/length"):
        measured("style/lenght", PARTS)
    alone = combine(tiny_config("m", rewards=REWARDS).rewards, [Abstain(reason="it is alone"), Score(value=1)])
    with pytest.raises(RuntimeError, match=r"right returned None for all 1 samples.*\(right: it is alone\)"):
        evaluation(
            tiny_config("m", rewards=REWARDS),
            [made_up_group([alone])],
            adapter=bare_base(),
            name="base",
            step=0,
            samples_file=None,
        )


def test_a_run_shows_what_it_is_judged_by(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert (summary["metric"], summary["word"]) == ("odd", "accuracy")  # greedy replies here are all odd or all even
    assert summary["rewards_rl"] == {"odd": summary["accuracy_rl"]}
    assert summary["rewards_sft"] is None


def test_tables_show_all_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evals").mkdir()
    (tmp_path / "config.yaml").write_text("name: x\n")
    result = measured("style", PARTS)
    for name, step in (("base", 0), ("step-000002", 2)):
        record = replace(result, name=name, step=step).as_dict()
        (tmp_path / "evals" / f"{name}.json").write_text(json.dumps(record))
    page = Page(write_report(tmp_path)).text
    assert "Mean [95 %]" in page
    assert "Accuracy [95 %]" not in page
    assert "Every reward and part on held-out tasks" in page
    assert "style/length" in page
    summary = {"metric": "style", "word": "mean", "adapter": "adapters/v000002", "rewards_base": None}
    means = {name: interval.as_dict() for name, interval in result.rewards.items()}
    show_summary(tmp_path, {**summary, "accuracy_rl": means["style"], "rewards_rl": means})
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert "All rewards and parts on held-out tasks" in shown
    assert "style/length" in shown
    assert "headline" in CliRunner().invoke(main.app, ["schema"]).output.lower()
