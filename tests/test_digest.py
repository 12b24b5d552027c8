"""What a run says in numbers: the waste, the groups that are shown, the formatting."""

from __future__ import annotations

from pathlib import Path

from rlft.curves import digest
from rlft.curves.reading import read_rollouts
from rlft.curves.samples import read_light
from rlft.curves.sampling_of_groups import choose
from rlft.curves.statistics import mean_interval
from rlft.curves.text import duration, interval_text, number, percent, shortened, visible
from tests.fakes_run import rollout, write_rollouts


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


def test_best_and_worst_come_first_and_are_of_different_tasks(tmp_path: Path) -> None:
    rows = [rollout(1, g, s, reward=g + s / 10, advantage=float(s)) for g in range(9) for s in range(3)]
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", rows)
    reasons = {key: why[0] for key, why in choose(read_light(tmp_path), limit=36).keys.items() if why}
    assert list(reasons) == [(1, 8), (1, 7), (1, 6), (1, 0), (1, 1), (1, 2)]  # the best ones first, then the worst
    assert [why.partition(" ")[0] for why in reasons.values()] == ["best"] * 3 + ["worst"] * 3


def test_numbers_and_text_for_readers() -> None:
    assert [number(x) for x in (0.0, 1.0, 34.0, 531.2, 12345.6, 2e-4, float("nan"))] == [
        *("0.00", "1.00", "34.0", "531", "12,346", "2.00e-04", "\N{EN DASH}"),
    ]
    assert [percent(x) for x in (0.0, 0.0213, 0.5, 1.0)] == ["0 %", "2.1 %", "50 %", "100 %"]
    assert [duration(x) for x in (4.4, 59.7, 200, 7500)] == ["4 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert interval_text(mean_interval([[1, 0]])) == "0.50"
    assert visible("a\tb\n\x1b[2J\x7f\u202e\ud800 \u00a0\N{SNOWMAN}") == (
        "a\tb\n\N{SYMBOL FOR ESCAPE}[2J\N{SYMBOL FOR DELETE}<U+202E><U+D800> \u00a0\N{SNOWMAN}"
    )
    assert "5,000 characters left out" in shortened("x" * 9000)
    assert shortened("short") == "short"
