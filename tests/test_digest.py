"""What a run says in numbers: the verdict, the waste, the rollouts that are shown, the formatting."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlft.curves import digest
from rlft.curves.reading import read_rollouts
from rlft.curves.samples import showcase
from rlft.curves.statistics import accuracy_interval
from rlft.curves.text import duration, interval_text, number, percent, shortened, visible
from rlft.run.records import Evaluation
from tests.fakes_run import rollout, write_rollouts


def _evaluation(name: str, right: int, tasks: int = 100, first: int = 0) -> Evaluation:
    by_task = {f"t{i}": [float(i < right)] for i in range(first, first + tasks)}
    return Evaluation(
        name=name,
        step=int(name[5:]) if name.startswith("step-") else 0,
        adapter_version=0,
        adapter_hash="",
        metric="m",
        accuracy=accuracy_interval(by_task),
        failed=0,
        length=1.0,
        truncated=0.0,
        by_task=by_task,
    )


@pytest.mark.parametrize(
    ("evals", "kind", "words"),
    [
        ([("base", 3), ("sft", 31), ("step-000010", 78)], "improved", "over 0.31"),
        ([("base", 3), ("sft", 78), ("step-000010", 31)], "worse", "RL made it worse."),
        (
            [("base", 3), ("sft", 31), ("step-000010", 31)],
            "inconclusive",
            "interval of the change includes 0",
        ),
        ([("base", 30), ("step-000010", 35)], "inconclusive", "only 5 tasks changed, and fewer than 6"),
        ([("base", 30), ("step-000005", 90), ("step-000010", 30)], "inconclusive", "(RL, step 10)"),
        ([("base", 30)], "open", "0.30 [0.22, 0.40] (base); nothing has been evaluated after RL yet"),
        ([("step-000010", 30)], "open", "nothing was evaluated before RL"),
    ],
)
def test_the_verdict(evals: list[tuple[str, int]], kind: str, words: str) -> None:
    verdict = digest.verdict([_evaluation(name, right) for name, right in evals], [], {})
    assert verdict.kind == kind
    assert words in verdict.sentence


def test_the_verdict_in_full() -> None:
    evals = [_evaluation("base", 3), _evaluation("sft", 31), _evaluation("step-000060", 78)]
    # 47 of 100 tasks changed by 1: sd sqrt(0.47 * 0.53 * 100 / 99) = 0.5016, t(99) = 1.9842: 0.47 -+ 0.0995.
    assert digest.verdict(evals, [], {}).sentence == (
        "Held-out accuracy went from 0.03 [0.01, 0.08] (base) over 0.31 [0.23, 0.41] (SFT) to "
        "0.78 [0.69, 0.85] (RL, step 60). Paired over 100 tasks, RL changed it by +0.47 [+0.37, +0.57] "
        "against SFT; the whole run changed it by +0.75 [+0.66, +0.84]. RL improved it."
    )


def test_the_verdict_without_common_tasks_compares_intervals() -> None:
    apart = [_evaluation("base", 0), _evaluation("step-000001", 180, first=100)]
    assert digest.verdict(apart, [], {}).sentence.endswith("; the intervals do not overlap.")
    summary = {"accuracy_base": {"mean": 0.1, "low": 0.05, "high": 0.2, "n": 50}, "accuracy_sft": None}
    summary["accuracy_rl"] = {"mean": 0.15, "low": 0.1, "high": 0.3, "n": 50}
    verdict = digest.verdict([], [], summary)
    assert verdict.kind == "inconclusive"
    assert "0.10 [0.05, 0.20] (base) to 0.15 [0.10, 0.30] (RL)" in verdict.sentence


def test_wasted_tokens_are_counted_by_cause(tmp_path: Path) -> None:
    rows = [
        *(rollout(1, 0, i, reward=r, advantage=r - 0.5, completion_tokens=10) for i, r in enumerate((0.0, 1.0))),
        *(rollout(1, 1, i, reward=1.0, advantage=0.0, completion_tokens=20) for i in range(2)),
        rollout(1, 2, 0, outcome="failed", reward=None, advantage=None, completion_tokens=5),
        rollout(1, 2, 1, outcome="abstain", reward=None, advantage=None, completion_tokens=4),
        rollout(1, 3, 0, reward=0.0, advantage=None, completion_tokens=3),  # left out though rewards differ
        rollout(1, 3, 1, reward=1.0, advantage=None, completion_tokens=3),
        rollout(2, 1, 0, reward=0.0, advantage=-1.0, completion_tokens=45),  # same group number, another step
    ]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    table = read_rollouts(tmp_path, digest.WASTE_COLUMNS)
    waste = digest.waste(table)
    assert waste.tokens == 120
    assert waste.causes == {
        "the whole group got the same reward": 40,
        "reward failed": 5,
        "reward abstained": 4,
        "advantage was zero or the sample was left out": 6,
    }
    assert waste.share == 55 / 120
    # A run that stores no advantages: groups 0 and 3 have a spread; the lone sample of step 2 has none.
    for row in rows:
        row["advantage"] = None
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    assert digest.waste(read_rollouts(tmp_path, digest.WASTE_COLUMNS)).causes == {
        "the whole group got the same reward": 85,
        "reward failed": 5,
        "reward abstained": 4,
    }


def test_best_and_worst_are_of_different_tasks_and_never_the_same(tmp_path: Path) -> None:
    rows = [rollout(1, g, s, reward=g + s / 10, advantage=float(s)) for g in range(2) for s in range(3)]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    shown = showcase(tmp_path)
    assert [(s.group_index, s.sample_index) for s in shown.best] == [(1, 2), (0, 2)]
    assert [(s.group_index, s.sample_index) for s in shown.worst] == [(0, 0), (1, 0)]
    assert (shown.failed, shown.failures) == ((), {})


def test_numbers_and_text_for_readers() -> None:
    assert [number(x) for x in (0.0, 1.0, 34.0, 531.2, 12345.6, 2e-4, float("nan"))] == [
        *("0.00", "1.00", "34.0", "531", "12,346", "2.00e-04", "\N{EN DASH}"),
    ]
    assert [percent(x) for x in (0.0, 0.0213, 0.5, 1.0)] == ["0 %", "2.1 %", "50 %", "100 %"]
    assert [duration(x) for x in (4.4, 59.7, 200, 7500)] == ["4 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert interval_text(accuracy_interval([[1, 0]])) == "0.50"
    assert visible("a\tb\n\x1b[2J\x7f\u202e\ud800 \u00a0\N{SNOWMAN}") == (
        "a\tb\n\N{SYMBOL FOR ESCAPE}[2J\N{SYMBOL FOR DELETE}<U+202E><U+D800> \u00a0\N{SNOWMAN}"
    )
    assert "5,000 characters left out" in shortened("x" * 9000)
    assert shortened("short") == "short"
