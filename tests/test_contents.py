"""Tasks of equal content are one cluster, in a report and in a comparison alike."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.contents import COLUMNS, EPISODE, contents_of
from rlft.curves.contributions import explain, read_window
from rlft.curves.passes import passes
from rlft.curves.reading import read_config, read_evals
from rlft.curves.statistics import mean_interval
from rlft.curves.verdict import verdict_of
from rlft.model.adapter import bare_base
from rlft.run.records import Evaluation
from rlft.train.rl.evaluate import evaluation
from rlft.train.rl.verify.arithmetic import check_evaluation
from rlft.train.rl.verify.findings import Check
from rlft.types import Group, Message, Score
from tests.fakes import made_up_group, tiny_config
from tests.fakes_run import rollout, write_json, write_rollouts
from tests.synthetic_runs import write_run


def _run(folder: Path, before: float, after: float) -> Path:
    """120 held-out tasks, of which the last 15 ask what the first 15 ask."""
    prompts = {f"t{i}": f"What is {i % 105}?" for i in range(120)}
    for name, share in (("base", before), ("step-000010", after)):
        values = {task: [float(i % 105 < share * 105)] for i, task in enumerate(prompts)}
        write_run(folder, values, prompts=prompts, evaluation=name, rewards=[0.1] * 14)  # type: ignore[arg-type]
    config = (folder / "config.yaml").read_text().replace("evaluation:\n", "evaluation:\n  every: 10\n")
    (folder / "config.yaml").write_text(config)
    return folder


def test_equal_tasks_count_once_everywhere(tmp_path: Path) -> None:
    one, other = _run(tmp_path / "one", 0.2, 0.7), _run(tmp_path / "other", 0.2, 0.8)
    says = "15 tasks have the content of another one and count once"
    report = json.loads(CliRunner().invoke(app, ["report", str(one), "--json"]).stdout)
    assert report["verdict"] == "ship"
    assert report["effect"]["n"] == 105
    assert "Paired over 105 tasks" in report["sentence"]
    assert f"{says}." in [each["says"] for each in report["reasons"]]
    told = json.loads(CliRunner().invoke(app, ["compare", str(one), str(other), "--json"]).stdout)
    assert told["effect"]["n"] == 105
    assert says in told["remarks"]
    gate = json.loads(CliRunner().invoke(app, ["gate", str(one), str(other), "--min-effect", "0.1", "--json"]).stdout)
    assert (gate["effect"]["n"], says in gate["remarks"]) == (105, True)


def test_what_was_measured_is_said(tmp_path: Path) -> None:
    run = _run(tmp_path / "one", 0.2, 0.7)
    report = json.loads(CliRunner().invoke(app, ["report", str(run), "--json"]).stdout)
    assert report["verdict"] == "ship"
    says = "What was measured is the adapter of step 10; steps 11 to 14 were not."
    assert {"code": "measured", "weight": "note", "says": says} in report["reasons"]


def test_a_copy_cannot_be_told_apart_and_the_true_reason_is_named(tmp_path: Path) -> None:
    one, other = (_run(tmp_path / name, 0.2, 0.7) for name in ("one", "other"))
    told = json.loads(CliRunner().invoke(app, ["compare", str(one), str(other), "--json"]).stdout)
    assert told["verdict"] == "cant_tell"
    assert "reaches beyond \N{PLUS-MINUS SIGN}0.01, the smallest change that matters: [-0.0" in told["sentence"]
    assert any("made twice, sample for sample" in each for each in told["remarks"])


def _repeated(folder: Path, times: int, role: str = "", missing: int = 0) -> Path:
    """24 different held-out tasks, each under `times` ids and answered alike: one reward rises, another falls a bit."""
    evaluation = f"evaluation: {{tasks: {24 * times}, every: 0}}\nevaluations:\n- {{name: other, every: 0}}\n"
    rewards = f"rewards:\n- {{path: 'a.py:a'}}\n- {{path: 'b.py:b', weight: 0{role}}}\n"
    (folder / "evals").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: d\nseed: 0\nsteps: 10\n{rewards}{evaluation}")
    (folder / "metrics.jsonl").write_text('{"step": 10, "reward/mean": 0.5}\n')
    for name, a, b in (("base", 0.3, 0.7), ("step-000010", 0.8, 0.5)):
        rows: list[dict[str, Any]] = []
        for at, copy in product(range(24), range(times)):
            has_failed = name != "base" and at >= 24 - missing
            parts = {"a": float(at * 7 % 24 < 24 * a), "b": float(at * 5 % 24 < 24 * b)}
            changed = {"reward": None, "parts": "{}", "outcome": "failed"} if has_failed else {"reward": parts["a"]}
            told = {"task_id": f"t{at}-{copy}", "prompt": f"Q{at}", "parts": json.dumps(parts), **changed}
            rows.append(rollout(10, len(rows), 0, **told))
        for path, part in ((folder / "evals", "a"), (folder / "evals" / "sets" / "other", "b")):
            by_task = {row["task_id"]: list(json.loads(row["parts"]).values())["ab".index(part) :][:1] for row in rows}
            record = {"name": name, "step": 0 if name == "base" else 10, "adapter_version": 1, "adapter_hash": "aa"}
            record |= {"metric": part, "accuracy": mean_interval(by_task).as_dict(), "failed": missing * times}
            record |= {"samples": len(rows), "length": 5.0, "truncated": 0.0, "by_task": by_task}
            write_json(path / f"{name}.json", record)
            write_rollouts(path / f"{name}.parquet", rows)
    return folder


def test_the_same_tasks_written_often_change_nothing_that_a_verdict_rests_on(tmp_path: Path) -> None:
    for number, (role, missing) in enumerate(((", role: shadow", 0), ("", 0), ("", 3))):
        once, often = (verdict_of(_repeated(tmp_path / f"{number}-{times}", times, role, missing)) for times in (1, 8))
        assert (often.kind, str(often.effect.change)) == (once.kind, str(once.effect.change))  # type: ignore[union-attr]
        assert [str(each.moved[-1][1]) for each in often.shadows] == [str(each.moved[-1][1]) for each in once.shadows]
        assert [str(each.change) for each in often.sets] == [str(each.change) for each in once.sets]
        assert [e.accuracy for each in often.sets for e in each.evals] == [
            e.accuracy for each in once.sets for e in each.evals
        ]
        told = [[each.says.partition("; with all")[2] or each.says for each in v.reasons] for v in (once, often)]
        assert [each for each in told[1] if "count once" not in each] == told[0]
        assert often.sentence.replace(f"{24} of 192", "3 of 24") == once.sentence


def test_why_pairs_equal_tasks_as_one(tmp_path: Path) -> None:
    found = []
    for times in (1, 8):
        run = _repeated(tmp_path / str(times), times)
        found.append(explain(read_config(run), read_window(run, "base"), read_window(run, "last")))
    assert str(found[1].interval) == str(found[0].interval)
    assert (found[1].is_paired, found[1].interval.n) == (True, 24)


def test_an_evaluation_is_measured_by_different_tasks_and_read_so(tmp_path: Path) -> None:
    config = tiny_config("m", rewards=[{"path": "a:right"}])
    right = [float(at < 4) for at in range(9)]

    def groups(times: int, *, messages: tuple[Message, ...] = ()) -> list[Group]:
        made = [made_up_group([Score(value=v, parts={"right": v})], task_id=f"Q{at}") for at, v in enumerate(right)]
        return [
            replace(g, task=(task := replace(g.task, id=f"{g.task.id}-{copy}")),
                    trajectories=tuple(replace(t, task=task, messages=messages) for t in g.trajectories))
            for at, g in enumerate(made)
            for copy in range(times if at else 1)
        ]  # fmt: skip

    def measured(made: list[Group], **more: bool) -> Evaluation:
        return evaluation(config, made, adapter=bare_base(), name="base", step=0, samples_file=None, **more)

    once, often = measured(groups(1)), measured(groups(8))
    assert often.accuracy == often.rewards["right"] == once.accuracy == mean_interval([[value] for value in right])
    assert (len(often.by_task), often.same["Q1-7"], "same" in once.as_dict()) == (65, "Q1-0", False)
    write_json(tmp_path / "evals" / "base.json", often.as_dict())
    assert [each.accuracy for each in read_evals(tmp_path)] == [often.accuracy]
    written = [{"role": "assistant", "content": "a"}]
    # What an environment keeps to itself may differ where episodes begin alike.
    assert measured(groups(8, messages=tuple(written))).accuracy.n == 65  # type: ignore[arg-type]
    found = Check(what="evaluations", unit="numbers")
    for stored in (often, measured(groups(8), is_by_id=True)):  # the second as an earlier rlft wrote it
        write_json(tmp_path / "evals" / "base.json", stored.as_dict())
        check_evaluation(config, tmp_path / "evals" / "base.json", "evals/base.json", groups(8), found)
    assert [each for each in found.differences if "adapter" not in each] == []


def test_episodes_that_begin_alike_are_tasks_of_their_own() -> None:
    rows = [rollout(task_id=task, conversation="[]" if task[0] == "e" else None) for task in ("e1", "e2", "s1", "s2")]
    for row in rows:
        row["answer"] = json.dumps(row["task_id"][0])
    contents = contents_of(pa.table({name: [row[name] for row in rows] for name in (*COLUMNS, EPISODE)}))
    assert len({*contents.values()}) == 3
    assert contents["s1"] == contents["s2"]


def test_pass_at_k_counts_equal_tasks_once() -> None:
    once = {f"t{at}": [1.0, float(at % 2)] for at in range(10)}
    often = {f"{task}-{copy}": values for task, values in once.items() for copy in range(8)}
    same = {task: f"{task.partition('-')[0]}-0" for task in often}
    assert [(e.k, e.any_right, e.all_right) for e in passes(often, same)] == [
        (e.k, e.any_right, e.all_right) for e in passes(once)
    ]
