"""`rlft compare` and `rlft power`: statistics against recomputation and known truths, pairing, refusals, commands."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.compare import compare, interquartile_mean
from rlft.curves.compare_page import facts
from rlft.curves.comparison import Comparison
from rlft.curves.courses import compare_courses, first_at
from rlft.curves.differences import paired
from rlft.curves.power import Size, measured_noise, power, prior_noise, seeds_needed, smallest_effect, tasks_needed
from rlft.curves.scored_run import Group, read_groups, read_run
from rlft.curves.seeds import group_difference, holm, least_p, paired_p, permutation_p, seed_difference
from tests.compare_rates import NULLS, null_rates
from tests.synthetic_runs import World, pair, run, shifted, write_run


def _values(rng: np.random.Generator, chance: float, tasks: int = 60, samples: int = 2) -> dict[str, list[float]]:
    return {f"t{task}": [float(v) for v in rng.random(samples) < chance] for task in range(tasks)}


def test_permutation_counts_every_way_of_dealing_out() -> None:
    assert [round(least_p(n, n), 4) for n in (1, 2, 3, 4, 5)] == [1, 0.3333, 0.1, 0.0286, 0.0079]
    assert permutation_p([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)  # 3 and 3 at their most different
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=4), rng.normal(size=3) + 1
    everything = np.append(before, after)
    sums = [sum(everything[list(chosen)]) for chosen in combinations(range(7), 3)]
    above, below = np.mean(sums >= sum(after) - 1e-9), np.mean(sums <= sum(after) + 1e-9)
    assert permutation_p(list(before), list(after)) == pytest.approx(min(1, 2 * min(above, below)))
    many = permutation_p(list(rng.normal(size=12)), list(rng.normal(size=12) + 3))
    assert 0 < many < 0.001  # drawn, not counted: 2.7 million ways


def test_difference_over_seeds_is_welchs() -> None:
    before, after = [0.61, 0.55, 0.58, 0.63], [0.70, 0.66, 0.74]
    known = scipy.stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    ours = seed_difference(before, after).interval
    assert (ours.low, ours.high, ours.n) == (pytest.approx(known.low), pytest.approx(known.high), 3)
    alone = seed_difference(before, [0.7])  # the spread of the four stands for that of the one
    assert alone.error == pytest.approx(np.std(before, ddof=1) * np.sqrt(1 / 4 + 1))


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.5; none falls below the one before it.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []


def test_the_interquartile_mean_is_scipys() -> None:
    values = np.random.default_rng(2).random((3, 41))
    assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=1))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero(level: float) -> None:
    rng = np.random.default_rng(3)
    before, after = _values(rng, 0.4), _values(rng, 0.55)
    p = paired_p(paired(before, after, level))
    at_p = paired(before, after, 1 - p).interval
    assert min(abs(at_p.low), abs(at_p.high)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("effect", [0.0, 4.0])
def test_the_unit_of_a_reward_changes_nothing(effect: float) -> None:
    # Of small values the bounds of the paired interval are within -1 and 1, of those times 1000 both are beyond.
    rng = np.random.default_rng(5)
    difficulty, seeds = rng.uniform(10, 90, 60), [rng.normal(size=(60, 2)) for _ in range(8)]

    def told(scale: float, before: slice = slice(4), after: slice = slice(4, 8)) -> tuple[list[float], str]:
        sides = [
            Group(
                label=label,
                runs=[
                    run(f"{label}{seed}", {f"t{i}": list(row) for i, row in enumerate(values)}, seed=seed)
                    for seed, noise in enumerate(seeds[part])
                    for values in [scale * (difficulty[:, None] + shift + noise)]
                ],
            )
            for label, part, shift in (("base", before, 0.0), ("new", after, effect))
        ]
        result = compare(*sides, min_effect=scale)
        change = result.headline.change
        return [change.mean / scale, change.low / scale, change.high / scale, result.headline.p], result.verdict

    for sides in ((slice(4), slice(4, 8)), (slice(1), slice(1, 2))):
        numbers, verdict = told(1.0, *sides)
        assert verdict == ("better" if effect else "same")
        for scale in (0.02, 0.1, 10.0, 1000.0):
            assert told(scale, *sides) == (pytest.approx(numbers), verdict)


def test_the_interval_over_seeds_and_tasks_covers_where_that_over_seeds_alone_does_not() -> None:
    # What the change does to a task differs by 0.1 from task to task: other tasks would have given another difference.
    rng, world = np.random.default_rng(4), World(tasks=60, samples=4, seeds=5, seed_sd=0.01, effect_sd=0.15, steps=0)
    inside = np.zeros(2)
    for _ in range(150):  # standard error of a coverage of 0.95: 0.018
        before, after = pair(world, rng)
        both = group_difference([r.values for r in before.runs], [r.values for r in after.runs])
        inside += [
            both.interval.low <= 0 <= both.interval.high,
            both.seeds.interval.low <= 0 <= both.seeds.interval.high,
        ]
    whole, alone = inside / 150
    assert whole > 0.95 - 0.036
    assert alone < 0.85


def test_equal_runs_are_seldom_called_different() -> None:
    # The quick form of `make compare-rates`: 100 pairs at a true rate of 0.05 exceed 0.12 once in 500 times.
    assert max(null_rates(NULLS["1 against 1, 30 tasks x 1"], 100).values()) <= 0.12


def test_equal_groups_are_seldom_called_different() -> None:
    rng, world = np.random.default_rng(12), World(tasks=40, seeds=4, seed_sd=0.03, effect_sd=0.05, steps=0)
    found = 0
    for _ in range(200):  # 0.095 is three standard errors above 0.05
        sides = [[each.values for each in group.runs] for group in pair(world, rng)]
        found += group_difference(*sides).conclusive
    assert found / 200 <= 0.095


def test_three_seeds_can_never_tell() -> None:
    rng = np.random.default_rng(5)
    groups = [
        Group(label=label, runs=[run(f"{label}-{s}", _values(rng, chance), seed=s) for s in seeds])
        for label, chance, seeds in (("base", 0.1, range(3)), ("new", 0.9, range(3)))
    ]
    result = compare(*groups)
    assert result.verdict == "cant_tell"
    assert result.headline.change.low > 0.5
    assert "3 and 3 seeds can never show p < 0.05 (the smallest exact p is 0.10); 4 of each can" in result.sentence
    more = [run("x", _values(rng, chance), seed=9) for chance in (0.1, 0.9)]
    four = [Group(label=g.label, runs=[*g.runs, other]) for g, other in zip(groups, more, strict=True)]
    assert compare(*four).verdict == "better"


def test_one_run_against_many_can_never_tell() -> None:
    rng = np.random.default_rng(13)
    many = [run(f"new-{seed}", _values(rng, 0.9), seed=seed) for seed in range(6)]
    single = Group(label="base", runs=[run("base", _values(rng, 0.1))])
    result = compare(single, Group(label="new", runs=many), min_effect=0.1)
    assert result.verdict == "cant_tell"
    assert "1 and 6 seeds can never show p < 0.05" in result.sentence
    assert result.detectable.effect == float("inf")
    assert result.detectable.tasks is None
    assert result.detectable.seeds in range(4, 20)


def test_a_difference_that_is_there_is_found_and_said_once() -> None:
    rng = np.random.default_rng(6)
    result = compare(*pair(World(seeds=6, seed_sd=0.01, effect=0.15, parts=2), rng))
    assert result.verdict == "better"
    assert result.sentence.startswith("new is better than base: held-out accuracy of right")
    assert result.headline.change.low > 0.05
    assert [row.conclusive for row in result.rows[:2]] == [True, True]
    assert not result.rows[2].conclusive  # training curves are alike in these made-up runs
    assert len(result.scores[0]) == 6
    worse, better, same = result.counts
    assert worse + better + same == 200
    assert better > 2 * worse
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_small_interval_around_zero_is_no_difference() -> None:
    values = _values(np.random.default_rng(7), 0.5, tasks=400)
    same = [Group(label=name, runs=[run(name, values)]) for name in ("a", "b")]
    result = compare(*same, min_effect=0.02)
    assert result.verdict == "same"
    assert result.sentence.startswith("b and a differ by less than 0.02")
    assert compare(*same, min_effect=0.005).verdict == "cant_tell"  # 400 tasks that agree do not show so little


def test_a_verdict_has_to_hold_with_missing_samples_at_their_worst() -> None:
    # 40 of 100 tasks got better. The baseline lost scores of tasks that are wrong after: at worst those got worse.
    after = {f"t{i}": [float(i < 60)] for i in range(100)}

    def verdict(lost: int) -> Comparison:
        before = {f"t{i}": [float(40 <= i < 60)] if i < 100 - lost else [] for i in range(100)}
        groups = [Group(label="a", runs=[run("a", before, missing=lost)]), Group(label="b", runs=[run("b", after)])]
        return compare(*groups)

    holds, open_ = verdict(10), verdict(38)
    assert (holds.verdict, holds.missing, holds.unpaired) == ("better", 10, 10)
    assert (open_.verdict, open_.headline.conclusive) == ("cant_tell", True)
    assert "38 samples could not be scored; with all of them at their worst the change is +0.02 [" in open_.sentence


def test_curves_part_where_they_do() -> None:
    rng, steps = np.random.default_rng(8), range(1, 121)

    def course(from_step: int) -> list[tuple[int, float]]:
        return [(s, 0.5 + (0.3 if s > from_step else 0) + rng.normal(0, 0.05)) for s in steps]

    result = compare_courses([course(999) for _ in range(4)], [course(60) for _ in range(4)])
    assert result is not None
    assert result.parted == 61
    assert result.final.interval.low > 0.2
    single = compare_courses([course(999)], [course(60)])
    assert single is not None
    assert single.parted == 61
    never = compare_courses([course(999)], [course(999)])
    assert never is not None
    assert never.parted is None
    assert compare_courses([[(1, 0.5)]], [[(2, 0.5)]]) is None


def test_a_level_is_reached_when_the_mean_of_a_window_is() -> None:
    assert first_at([10, 20, 30, 40], [0, 1, 0.5, 1], 0.75, width=2) == 30
    assert first_at([10, 20, 30, 40], [0, 1, 0.5, 1], 0.8, width=2) is None


def test_power_is_what_simulation_gives() -> None:
    # Beta(0.8, 0.8): E p = 1/2 and E p^2 = 1/2 * 1.8 / 2.6 = 0.34615, so E p (1 - p) = 0.15385. With 0.9 p instead of
    # p the mean is lower by 0.05, and 0.45 - 0.81 * 0.34615 = 0.16962; the two sides have 0.16173 on average.
    noise, rng = prior_noise(0.05), np.random.default_rng(9)
    assert noise.within == pytest.approx(0.16173, abs=1e-5)
    size = Size(tasks=200, samples=4)
    found = 0
    for _ in range(300):  # standard error 0.028
        truth = rng.beta(0.8, 0.8, 200)
        moved = shifted(truth, 0.05 + rng.normal(0, 0.025, 200))
        sides = [
            {str(i): list(row) for i, row in enumerate((rng.random((200, 4)) < p[:, None]).astype(float))}
            for p in (truth, moved)
        ]
        found += paired(*sides).conclusive
    assert power(noise, 0.05, size) == pytest.approx(found / 300, abs=0.085)


def test_sizes_that_power_names_have_the_power() -> None:
    noise = prior_noise(0.05)
    for seeds in (1, 5, 8):
        tasks = tasks_needed(noise, 0.05, Size(seeds=seeds, tasks=1, samples=4))
        assert tasks is not None
        assert power(noise, 0.05, Size(seeds=seeds, tasks=tasks, samples=4)) >= 0.8
        assert power(noise, 0.05, Size(seeds=seeds, tasks=int(tasks * 0.9), samples=4)) < 0.8
    assert power(noise, 0.05, Size(seeds=3, tasks=10_000)) == 0
    assert tasks_needed(noise, 0.05, Size(seeds=3, tasks=1)) is None
    seeds = seeds_needed(noise, 0.05, Size(tasks=250))
    assert seeds is not None
    assert power(noise, 0.05, Size(seeds=seeds, tasks=250)) >= 0.8
    size = Size(tasks=200, samples=2)
    assert power(noise, smallest_effect(noise, size), size) == pytest.approx(0.8, abs=0.01)
    greedy = prior_noise(0.05, is_greedy=True)
    assert power(greedy, 0.05, Size(tasks=200, samples=8)) == power(noise, 0.05, Size(tasks=200, samples=1))


def test_noise_is_measured_where_it_can_be() -> None:
    rng = np.random.default_rng(10)
    before, after = pair(World(tasks=2000, samples=4, seeds=6, seed_sd=0.05, effect=0.1, steps=0), rng)
    noise = measured_noise(0.1, after.runs, before.runs)
    within = np.mean([np.var(v, ddof=1) for r in after.runs for v in r.values.values()])
    assert noise.within == pytest.approx(within)
    assert noise.seed_sd == pytest.approx(0.05, abs=0.04)
    assert all("assumed" not in source for source in noise.sources)
    single = measured_noise(0.1, [run("a", {f"t{i}": [float(i % 2)] for i in range(50)})])
    assert single.within == pytest.approx(0.25 * 1.6 / 2.6)
    assert "one sample of each task" in single.sources[0]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Five seeds each of two configs, the second of which is better, in `runs/`."""
    rng = np.random.default_rng(11)
    for label, chance, lr in (("base", 0.4, 1e-4), ("new", 0.7, 2e-4)):
        for seed in range(5):
            rewards = [chance * step / 40 + float(rng.normal(0, 0.03)) for step in range(40)]
            values = _values(rng, chance)
            write_run(tmp_path / "runs" / f"{label}-{seed}", values, seed=seed, lr=lr, rewards=rewards)  # type: ignore[arg-type]
    return tmp_path


def _invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_one_sentence_first(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "160")
    told = _invoke("compare", "runs/base-*", "vs", "runs/new-*", "--html", "page.html")
    assert told.startswith("new is better than base: held-out accuracy of right")
    for words in (
        "learner.lr 0.0001 -> 0.0002", "seeds 0, 1, 2, 3, 4", "every seed of new", "got better most", "brief",
        "train reward, final window", "the training curves part at step", "in 80 of 100 cases", "permutation p = 0.008",
    ):  # fmt: skip
        assert words in told
    page = (runs / "page.html").read_text(encoding="utf-8")
    assert page.count("<circle") >= 10 + 4
    assert "<script" not in page
    data = json.loads(_invoke("compare", "runs/base-*", "runs/new-*", "--json"))
    assert data["verdict"] == "better"
    assert len(data["groups"][0]["scores"]) == 5
    one = _invoke("compare", "runs/base-0", "runs/new-0", "--metric", "brief")
    assert "One run each: whether other seeds would do the same is not known" in one


def test_a_narrow_terminal_cuts_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    (runs / "runs" / "base-0").rename(runs / "runs" / "baseline-with-a-long-name-that-ends-in-10")
    words = ["compare", "runs/baseline-with-a-long-name-that-ends-in-10", "runs/new-0"]
    change = json.loads(_invoke(*words, "--json"))["effect"]
    tables = {}
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        told = _invoke(*words)
        tables[width] = [
            line
            for line in told.splitlines()
            if line[:1] in set("\N{BOX DRAWINGS HEAVY VERTICAL}\N{BOX DRAWINGS LIGHT VERTICAL}")
        ]
        assert "\N{HORIZONTAL ELLIPSIS}" not in told
        assert any(f"[{change['low']:+.2f}, {change['high']:+.2f}]" in line for line in tables[width])
    cells = [
        line.strip("\N{BOX DRAWINGS HEAVY VERTICAL}").split("\N{BOX DRAWINGS HEAVY VERTICAL}")
        for line in tables[80]
        if line[0] == "\N{BOX DRAWINGS HEAVY VERTICAL}"
    ]
    assert "".join(cell[1].strip() for cell in cells) == "baseline-with-a-long-name-that-ends-in-10"
    assert max(map(len, tables[80])) <= 80
    assert any("o" in line and "---" in line for line in tables[200])
    assert not any("---" in line for line in tables[80])


@pytest.mark.parametrize("width", [40, 80])
def test_no_p_value_and_no_star_is_cut(runs: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", str(width))
    edge = "\N{BOX DRAWINGS LIGHT VERTICAL}"
    table = [line for line in _invoke("compare", "runs/base-*", "runs/new-*").splitlines() if line.startswith(edge)]
    assert all(line.endswith(f" {edge}") for line in table)
    p_values = [line.split(edge)[-2].strip() for line in table]
    assert p_values[0] == "0.008*"
    assert [p for p in p_values if p] == ["0.008*", "0.024*", "0.024*", "0.024*"]
    assert any("step that" in line for line in table)  # whose list of steps is what has to fold


def test_intervals_that_are_not_of_the_same_thing_are_explained(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    rng = np.random.default_rng(5)
    for label, chance in (("one", 0.4), ("two", 0.6)):
        for seed in range(3):
            values = {f"t{i}": [float(v) for v in rng.random(8) < chance] for i in range(40)}
            write_run(runs / f"{label}-{seed}", values, seed=seed, lr=chance)  # type: ignore[arg-type]
    explained = "The interval over both is narrower than one of these because the noise of the samples"
    told = _invoke("compare", "one-*", "two-*")
    line = next(line for line in told.splitlines() if "over seeds alone" in line)
    assert explained in line
    bounds = [[float(v) for v in found.split(", ")] for found in re.findall(r"\[([^\]]+)\]", line)]
    whole = json.loads(_invoke("compare", "one-*", "two-*", "--json"))["effect"]
    assert whole["high"] - whole["low"] < max(high - low for low, high in bounds)
    assert not re.search(r"[+-]\d\.\d+ \[", line), "the mean is said once"
    widened = pair(World(tasks=100, samples=8, seeds=8, effect=0.2, effect_sd=0.2, seed_sd=0.05), rng)
    assert not any(explained in fact for fact in facts(compare(*widened)))


def test_one_run_made_twice_with_other_results_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {f"t{i}": [float(i % 2)] for i in range(40)}
    for name, changed, processor in (("a", {}, "one"), ("b", {"t3": [0.0]}, "other"), ("c", {}, "one")):
        write_run(tmp_path / name, {**values, **changed}, seed=5)  # type: ignore[dict-item]
        written = {"processor": processor, "packages": {"torch": "2"}, "config": {"name": name}}
        (tmp_path / name / "provenance.json").write_text(json.dumps(written), encoding="utf-8")
    told = _invoke("compare", "a", "b")
    assert "same config and same seed 5, so these are one run made twice" in told
    assert "the scores of 1 task differ: processor: one -> other\n" in told
    told = " ".join(_invoke("compare", "a", "c").split())
    assert "the same scores on 40 tasks: these are one run made twice, sample for sample" in told


def test_what_a_data_set_wrote_stays_text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    hostile = "<script>alert(1)</script>\x1b]0;x\x07 [red]"
    for name, right in (("a", 0.0), ("b", 1.0)):
        write_run(
            runs / name, {f"t{i}": [right] for i in range(20)}, prompts={f"t{i}": f"{hostile}{i}" for i in range(20)}
        )
    told = _invoke("compare", "a", "b", "--html", "page.html")
    assert "\x1b]" not in told
    assert "[red]" in told
    page = (runs / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_tasks_are_paired_by_content(tmp_path: Path) -> None:
    prompts = {f"t{i}": f"Add {i}" for i in range(10)}
    a = write_run(tmp_path / "a", {f"t{i}": [0.0] for i in range(10)}, prompts=prompts)
    renamed = {f"u{i}": f"Add {i}" for i in range(10)}
    b = write_run(tmp_path / "b", {f"u{i}": [1.0] for i in range(10)}, prompts=renamed, seed=1)
    before, after, remarks = read_groups([str(a), str(b)])
    assert compare(before, after).tasks.interval.n == 10
    assert remarks == []
    c = write_run(tmp_path / "c", {f"t{i}": [1.0] for i in range(10)}, prompts={**prompts, "t3": "Add 4"}, seed=2)
    with pytest.raises(ValueError, match=r"task 't3' has another prompt or answer .* \(1 of 10 common ids differ\)"):
        read_groups([str(a), str(c)])
    assert "1 tasks have another prompt" in read_groups([str(a), str(c)], by_id=True)[2][0]
    (tmp_path / "c" / "evals" / "step-000010.parquet").unlink()
    assert "paired by id and not by content" in read_groups([str(a), str(c)])[2][0]
    d = write_run(tmp_path / "d", {f"x{i}": [1.0] for i in range(10)})
    with pytest.raises(ValueError, match="different tasks, none is in both"):
        read_groups([str(a), str(d)])
    same = read_groups([f"{a}@step-000010", str(b)])[0].label
    assert same == "a@step-000010"
    with pytest.raises(ValueError, match="no evaluation 'base'; it has: step-000010"):
        read_groups([f"{a}@base", str(d)])


def test_what_is_no_group_of_seeds_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    with pytest.raises(ValueError, match="3 names without `vs`: which are compared with which"):
        read_groups(["runs/base-0", "runs/base-1", "runs/new-1"])
    with pytest.raises(ValueError, match=r"differ by more than their seed: learner\.lr is 0\.0001"):
        read_groups(["runs/*", "runs/new-1"])
    with pytest.raises(ValueError, match="named twice"):
        read_groups(["runs/base-*", "runs/base-1"])
    with pytest.raises(ValueError, match="matches no run directory here"):
        read_groups(["runs/nothing-*", "runs/base-1"])
    with pytest.raises(ValueError, match=r"has no 'rihgt'\. Did you mean 'right'"):
        read_groups(["runs/base-1", "runs/new-1"], "rihgt")
    write_run(runs / "runs" / "base-9", _values(np.random.default_rng(0), 0.5), seed=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both have seed 4: they are the same run twice"):
        read_groups(["runs/base-*", "runs/new-*"])
    (runs / "runs" / "base-9").rename(runs / "runs" / "base-9.20300101-120000")  # as --restart moves one aside
    assert len(read_groups(["runs/base-*", "runs/new-*"])[0].runs) == 5
    (runs / "runs" / "base-0" / "evals" / "step-000010.json").rename(runs / "runs" / "base-0" / "evals" / "sft.json")
    (runs / "runs" / "base-0" / "evals" / "sft.json").write_text(
        (runs / "runs" / "base-1" / "evals" / "step-000010.json").read_text().replace('"step-000010"', '"sft"')
    )
    with pytest.raises(ValueError, match=r"has no evaluation after training .* name another one: runs/base-0@sft"):
        read_run(Path("runs/base-0"))
    (runs / "runs" / "base-0" / "evals" / "sft.json").unlink()
    with pytest.raises(ValueError, match=r"there is: none.*or leave it out$"):
        read_run(Path("runs/base-0"))


def test_an_ended_run_without_evaluations_is_not_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: head\n")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has ended without an evaluation .*summary.json") as caught:
        read_run(tmp_path)
    assert "resume" not in str(caught.value)


def test_what_is_measured_besides_may_differ_in_a_group(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    with (runs / "runs" / "base-1" / "config.yaml").open("a") as file:
        file.write("evaluations: [{name: hot, temperature: 1.0}]\n")
    before, _, _ = read_groups(["runs/base-*", "runs/new-*"])
    assert len(before.runs) == 5


def test_the_power_command(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "160")
    told = _invoke("power", "--effect", "0.05", "--run", "runs/new-*")
    assert told.startswith("To see a change of 0.05 in 80 of 100 comparisons: one run against one needs")
    assert "measured over 5 seeds" in told
    data = json.loads(_invoke("power", "--effect", "0.05", "--run", "runs/new-*", "--json"))
    assert data["planned"] == {"seeds": 1, "tasks": 60, "samples": 1}
    with pytest.raises(ValueError, match="--config CONFIG says how many tasks"):
        CliRunner().invoke(app, ["power", "--effect", "0.05"], catch_exceptions=False)
    for spread in ("-1", "nan", "inf"):
        words = ["power", "--effect", "0.05", "--run", "runs/new-*", "--seed-sd", spread]
        with pytest.raises(ValueError, match="--seed-sd is a spread of the held-out mean, 0 or more"):
            CliRunner().invoke(app, words, catch_exceptions=False)


def test_power_counts_the_tasks_that_are_asked(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run_ = Path(shutil.copytree(runs / "runs" / "new-0", tmp_path / "new-0"))
    text = (run_ / "config.yaml").read_text(encoding="utf-8")
    (run_ / "config.yaml").write_text(text.replace("tasks: 60", "tasks: 200"), encoding="utf-8")
    assert "new-0 as it is (60 tasks x 1 sample, one run against one)" in _invoke(
        "power", "--effect", "0.05", "--run", str(run_)
    )
    config = tmp_path / "config.yaml"
    tree = (
        f"name: x\nsteps: 1\nmodel: {{source: {tiny_model}}}\nrewards: [{{path: rewards.exact_answer:exact_answer}}]\n"
    )
    source = "environment: {path: 'environments.sums:load', args: {heldout: 30}}\nevaluation: {tasks: 200}\n"
    config.write_text(tree + source, encoding="utf-8")
    assert "config.yaml as it is (30 tasks x 1 sample" in _invoke("power", "--effect", "0.05", "--config", str(config))
    config.write_text(tree + source.replace("sums:load", "gone:load"), encoding="utf-8")
    told = _invoke("power", "--effect", "0.05", "--config", str(config))
    assert "config.yaml as it is (200 tasks x 1 sample" in told
    assert "held-out tasks: at most 200, as the environment cannot be loaded here: " in told


def test_a_key_that_an_earlier_rlft_did_not_know_is_no_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(21)
    folders = [
        write_run(tmp_path / f"run-{seed}", _values(rng, 0.5), seed=seed, rewards=[0.1, 0.2, 0.3])  # type: ignore[arg-type]
        for seed in range(4)
    ]
    for folder in folders[2:]:
        config = (folder / "config.yaml").read_text()
        config = config.replace("right\n", "right\n  only: []\n") + "environment:\n  mix: []\n"
        (folder / "config.yaml").write_text(config)
    for folder in folders[:2]:
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "environment: {}\n")
    before, after, remarks = read_groups([str(folders[0]), str(folders[2])])
    result = compare(before, after, remarks=remarks)
    assert result.changes == []
    assert result.courses is not None
    assert not any("train rewards are not compared" in remark for remark in result.remarks)
    groups = read_groups([str(tmp_path / "run-[02]"), "vs", str(tmp_path / "run-[13]")])  # one old and one new in each
    assert [len(group.runs) for group in groups[:2]] == [2, 2]
    other = folders[3] / "config.yaml"
    other.write_text(other.read_text().replace("only: []", "only: [sums]"))
    changed = compare(*read_groups([str(folders[0]), str(folders[3])])[:2])
    assert [key for key, _, _ in changed.changes] == ["rewards"]
