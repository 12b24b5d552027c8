"""What moved the reward: contributions that add up on random data, plain sentences, fair samples, typical failures."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.contributions import REST, Change, Window, explain, read_window
from rlft.curves.failing import failing
from rlft.curves.sample_kinds import drawn, kinds_of, shape
from tests.fakes_run import make_run, rollout, write_config
from tests.fakes_run import write_rollouts as write

CONFIG = {
    "seed": 7,
    "rewards": [
        {"path": "a.py:format", "weight": 0.2},
        {"path": "a.py:right", "weight": 1.0},
        {"path": "a.py:seen", "weight": 0},
    ],
}


def sample(step: int, group: int, index: int, right: float, form: float = 1.0, **changes: Any) -> dict[str, Any]:
    parts = {"format": form, "right": right}
    row = rollout(step, group, index, parts=json.dumps(parts), reward=0.2 * form + right)
    return {**row, **changes}


def window(label: str, rows: list[dict[str, Any]]) -> Window:
    return Window(label=label, rows=rows)


def made_up(rng: random.Random, step: int, *, tasks: int) -> list[dict[str, Any]]:
    """Groups of changing tasks with parts of all scales, rewards that abstain, failures, something beyond the parts."""
    rows = []
    for group in range(rng.randint(1, tasks)):
        task = rng.randint(0, 5)
        prompt = f"What is {rng.choice([7, 77, 777])} {'+-*'[task % 3]} {rng.randint(1, 99)}?"
        for index in range(rng.randint(1, 4)):
            parts = {"format": rng.choice([0.0, 1.0]), "right": rng.gauss(0, 10 ** rng.randint(-3, 3)), "seen": 1.0}
            if rng.random() < 0.2:
                del parts["right"]
            total = 0.2 * parts["format"] + parts.get("right", 0.0) + rng.choice([0.0, 0.0, rng.gauss(0, 1)])
            failed = {"outcome": "failed", "reward": None, "failure_kind": "timeout", "parts": "{}"}
            row = rollout(step, group, index, task_id=f"t{task}", prompt=prompt, parts=json.dumps(parts), reward=total)
            rows.append({**row, **(failed if rng.random() < 0.2 else {})})
    return rows


def mean(rows: list[dict[str, Any]]) -> float:
    """The mean of `reward/mean`, computed in another way."""
    groups: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row["reward"] is not None:
            groups.setdefault((row["step"], row["group_index"]), []).append(row["reward"])
    return sum(sum(each) / len(each) for each in groups.values()) / len(groups)


@pytest.mark.parametrize("seed", range(60))
def test_contributions_add_up(seed: int) -> None:
    rng = random.Random(seed)
    sides = [made_up(rng, step, tasks=rng.choice([1, 5, 30])) for step in (1, 2)]
    if any(all(row["reward"] is None for row in rows) for rows in sides):
        with pytest.raises(ValueError, match=r"none of .* samples has a score"):
            explain(CONFIG, window("a", sides[0]), window("b", sides[1]))
        return
    change = explain(CONFIG, window("a", sides[0]), window("b", sides[1]))
    total = mean(sides[1]) - mean(sides[0])
    tolerance = 1e-9 * max(1.0, *(abs(row["reward"] or 0) for side in sides for row in side))
    assert change.total == pytest.approx(total, abs=tolerance)
    assert change.interval.mean == pytest.approx(total, abs=tolerance)
    assert math.fsum(part.added for part in change.parts) == pytest.approx(total, abs=tolerance)
    assert math.fsum(each.within + each.mix for each in change.clusters) == pytest.approx(total, abs=tolerance)
    for side in (0, 1):
        assert math.fsum(each.share[side] for each in change.clusters) == pytest.approx(1)
    json.dumps(change.as_dict(), allow_nan=False)


def test_tasks_that_come_again_in_a_window_are_paired() -> None:
    def steps(first: int, right: float, times: tuple[int, ...] = (2,) * 20) -> list[dict[str, Any]]:
        # Tasks differ widely, and each is answered better by about `right`.
        return [
            sample(first + time, task, 0, task / 4 + right * (0.8 + task % 5 / 10), task_id=f"t{task}")
            for task, count in enumerate(times)
            for time in range(count)
        ]

    once = explain(CONFIG, window("a", steps(1, 0.0, (1,) * 20)), window("b", steps(9, 0.5, (1,) * 20)))
    twice = explain(CONFIG, window("a", steps(1, 0.0)), window("b", steps(9, 0.5)))
    assert "paired by task, 20" in twice.sentences[0]
    assert (twice.interval.n, twice.total) == (20, pytest.approx(0.5))
    assert twice.interval.high - twice.interval.low == pytest.approx(once.interval.high - once.interval.low)
    uneven = explain(CONFIG, window("a", steps(1, 0.0)), window("b", steps(9, 0.5, (2, 1) * 10)))
    assert uneven.is_paired
    assert uneven.interval.mean == pytest.approx(uneven.total)
    cost = (0.5 * 2**2 + 0.5 * 1) / 1.5**2  # tasks asked more often than others tell less together
    width = uneven.interval.high - uneven.interval.low
    assert width > (twice.interval.high - twice.interval.low) * math.sqrt(cost) * 0.99


def test_another_mix_of_tasks_is_told_apart_from_other_answers() -> None:
    easy, hard = "Add 1 and 2", "Add 100 and 200, then halve it"
    kinds = [(easy, 1.0)] * 3 + [(hard, 0.0)] * 1, [(easy, 1.0)] * 1 + [(hard, 0.0)] * 3
    rows = [
        [sample(step, group, 0, right, prompt=prompt) for group, (prompt, right) in enumerate(side)]
        for step, side in enumerate(kinds, start=1)
    ]
    change = explain(CONFIG, window("a", rows[0]), window("b", rows[1]))
    assert change.total == pytest.approx(-0.5)
    assert [each.within for each in change.clusters] == pytest.approx([0, 0])
    assert math.fsum(each.mix for each in change.clusters) == pytest.approx(-0.5)
    assert "-0.500 of it is another mix of tasks, +0.000 other answers." in change.sentences
    better = [sample(2, group, 0, 1.0, prompt=prompt) for group, (prompt, _) in enumerate(kinds[0])]
    change = explain(CONFIG, window("a", rows[0]), window("b", better))
    assert [each.mix for each in change.clusters] == pytest.approx([0, 0])
    assert [each.within for each in change.clusters] == pytest.approx([0.25, 0])


def after_sft() -> Change:
    """Format was right nearly always before RL, which made 96 more sums right, of 250."""
    before = [sample(1, i, 0, float(i % 250 < 56), form=float(i not in (3, 9)), task_id=f"t{i}") for i in range(250)]
    after = [sample(2, i, 0, float(i % 250 < 152), form=float(i != 3), task_id=f"t{i}") for i in range(250)]
    return explain(CONFIG, window("SFT", before), window("RL, step 30", after))


def test_it_is_told_in_plain_sentences() -> None:
    sentences = after_sft().sentences
    assert sentences[0].startswith("The mean reward went from 0.422 (SFT) to 0.807 (RL, step 30): +0.38 [+0.3")
    assert "paired by task, 250" in sentences[0]
    assert re.match(r"right: \+0\.384 \[\+0\.\d+, \+0\.\d+\] of the reward; ", sentences[1])
    assert sentences[1].endswith("right in 152 of 250 samples of RL, step 30, before in 56 of 250 of SFT.")
    assert sentences[2].startswith("format: +0.001 [")
    assert "(weight 0.2); right in 249 of 250 samples of RL, step 30, before in 248 of 250 of SFT." in sentences[2]
    assert len(sentences) == 3


def test_named_parts_and_missing_scores_are_told() -> None:
    rows = [
        [
            rollout(step, i, parts=json.dumps({"right": 1.0, "right/units": float(i < n), "seen": 0.5}), reward=1.0)
            for i in range(4)
        ]
        for step, n in ((1, 1), (2, 3))
    ]
    rows[1][3] |= {"outcome": "failed", "reward": None, "failure_kind": "timeout"}
    change = explain({"rewards": [{"path": "a.py:right"}]}, window("a", rows[0]), window("b", rows[1]))
    assert "right/units: right in 3 of 3 samples of b, before in 1 of 4 of a." in change.sentences
    assert "Samples without a score, which are in none of this: 0 of 4 in a, 1 of 4 in b." in change.sentences
    assert change.total == 0
    assert not change.is_paired  # one task has no score in b


def test_what_is_beyond_the_parts_has_a_line_of_its_own() -> None:
    rows = [[sample(step, i, 0, 1.0, reward=1.2 + extra) for i in range(3)] for step, extra in ((1, 0.0), (2, 0.5))]
    change = explain(CONFIG, window("a", rows[0]), window("b", rows[1]))
    assert (change.parts[0].name, change.parts[0].added) == (REST, pytest.approx(0.5))


def test_what_appeared_is_a_random_choice_of_each_kind() -> None:
    change = after_sft()
    assert {each.kind for each in change.appeared} == {"format 1, right 1"}
    assert all(each.step == 2 for each in change.appeared)
    assert {each.kind for each in change.disappeared} >= {"format 1, right 0"}
    assert all(each.step == 1 for each in change.disappeared)
    assert change.appeared == after_sft().appeared
    # Which samples are chosen depends neither on their order nor on others of their kind that are left out.
    rows = [*change.after.rows]
    random.Random(1).shuffle(rows)
    chosen = {each.task_id for each in change.appeared}
    again = explain(CONFIG, change.before, window("b", rows))
    assert {each.task_id for each in again.appeared} == chosen
    kept = [row for i, row in enumerate(rows) if row["task_id"] in chosen or i % 3]
    assert {each.task_id for each in explain(CONFIG, change.before, window("b", kept)).appeared} == chosen
    right = [row for row in rows if row["reward"] > 1]
    kinds = ["right"] * len(right)
    counts = Counter(each.task_id for seed in range(60) for each in drawn(right, kinds, {"right": 1.0}, 6, seed))
    assert len(counts) > 110  # of 151 samples, in 360 draws
    assert max(counts.values()) < 12


def test_typical_failures_come_before_extremes() -> None:
    rows = [sample(1, i, 0, 1.0, task_id=f"ok{i}") for i in range(40)]
    wrong = "<answer>{}</answer>"
    rows += [sample(1, 50 + i, 0, 0.0, task_id=f"w{i}", completion=wrong.format(i * 7)) for i in range(18)]
    rows += [sample(1, 80 + i, 0, 0.0, 0.0, task_id=f"f{i}", completion=f"It is {i}!") for i in range(3)]
    lost = {"outcome": "failed", "reward": None, "failure_kind": "timeout"}
    rows += [sample(1, 90, 0, 0.0, task_id="lost", **lost)]
    found = failing(CONFIG, window("step 1", rows), count=6)
    assert found.kinds == [("format 1, right 0", 18), ("format 0, right 0", 3), ("not scored: timeout", 1)]
    assert Counter(each.kind for each in found.typical)["format 1, right 0"] >= 4
    assert {each.kind for each in found.typical} == {kind for kind, _ in found.kinds}
    assert found.extremes[0].reward == 0.0
    assert not set(found.typical) & set(found.extremes)
    assert found.sentence == "Of the 62 samples of step 1 22 fail (35 %): a reward below 0.600, or no score."
    assert failing(CONFIG, window("a", rows[:40])).sentence == "Of the 40 samples of a none fails."


def test_zeros_that_are_written_differently_are_of_different_kinds() -> None:
    texts = ["<answer>41</answer>"] * 6 + ["The answer is 41."] * 2
    rows = [rollout(1, i, parts='{"right": 0.0}', reward=0.0, completion=text) for i, text in enumerate(texts)]
    kinds = Counter(kinds_of(rows, ["right"]))
    assert kinds == {"right 0, written <answer>#</answer>": 6, "right 0, written … # .": 2}
    assert shape("17 + 25 = 42\n<answer>42</answer>") == "# + # = #<answer>#</answer>"
    assert len(shape("a " * 3 + "(" * 10_000)) < 60


def test_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=12)
    told = CliRunner().invoke(app, ["why", str(run), "--from", "1-3", "--to", "10-12"])
    assert told.exit_code == 0, told.output
    for says in ("The mean reward went from", "math_answer: +0.", "Kinds of samples", "Appeared, in steps 10-12"):
        assert says in told.output
    assert told.output.index("What fails") < told.output.index("Typical") < told.output.index("Lowest rewards")
    found = json.loads(CliRunner().invoke(app, ["why", str(run), "--json"]).output)
    assert (found["from"]["label"], found["to"]["label"]) == ("step 1", "step 12")
    assert sum(part["added"] for part in found["parts"]) == pytest.approx(found["change"]["mean"], abs=1e-9)
    assert sum(each["within"] + each["mix"] for each in found["tasks"]) == pytest.approx(
        found["change"]["mean"], abs=1e-9
    )
    for window_, says in (("20-30", "stored: 1 to 12"), ("sft", "there are: none whose samples are stored")):
        refused = CliRunner().invoke(app, ["why", str(run), "--from", window_])
        assert isinstance(refused.exception, ValueError)
        assert says in str(refused.exception)


def test_two_evaluations(tmp_path: Path) -> None:
    from tests.synthetic_runs import write_run

    for name, right in (("base", 0.0), ("step-000010", 1.0)):
        write_run(tmp_path / "run", {f"t{i}": [right] for i in range(20)}, evaluation=name)
    change = explain(CONFIG, read_window(tmp_path / "run", "base"), read_window(tmp_path / "run", "last"))
    assert change.is_paired
    assert change.sentences[0].startswith("The mean reward went from 0.000 (base) to 1.000 (RL, step 10): +1.00")


def test_hostile_texts_and_damaged_files_do_no_harm(tmp_path: Path) -> None:
    evil = "[red]x[/] \x1b]0;owned\x07 <script>\u202e"
    write_config(tmp_path)
    for step in (1, 2):
        rows = [
            rollout(step, i, prompt=f"{evil}{i}", completion=evil * i, task_id=evil, parts=json.dumps({evil: step * i}))
            for i in range(4)
        ]
        write(tmp_path / "rollouts" / f"step-{step:06d}.parquet", rows)
    (tmp_path / "rollouts" / "step-000003.parquet").write_bytes(b"PAR1")
    told = CliRunner().invoke(app, ["why", str(tmp_path), "--from", "1", "--to", "2-3"])
    assert told.exit_code == 0, told.output
    assert not set("\x1b\x07\u202e") & set(told.output)
    assert "step-000003.parquet cannot be read" in told.output


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "curves.md").read_text(encoding="utf-8")
    ((command, shown),) = re.findall(r"^```text\n\$ rlft (why .*?)\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    make_run(Path(command.split()[1]), steps=30)
    told = CliRunner().invoke(app, command.split())
    lines = [line.rstrip() for line in told.output.splitlines()]
    assert lines[: len(shown.splitlines())] == shown.splitlines()
