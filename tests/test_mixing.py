"""Several environments in one run, each with its share of a step, its episodes and tools, rewards and metrics; and
choosing tasks by signal, which a checkpoint goes on with."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from rlft.config import EnvironmentConfig, RunConfig
from rlft.config_file import load
from rlft.curves.charts import sections
from rlft.curves.evaluation_sets import read_sets
from rlft.curves.reading import read_config
from rlft.environment import loading
from rlft.environment.contract import Environment, Step
from rlft.environment.mix import interleaved, shares
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine
from rlft.rollout.generate import run_chunk
from rlft.run.checkpoint import load_latest
from rlft.train.rl import launch
from rlft.train.rl.metrics import describe
from rlft.train.rl.task_choice import HALF_LIFE, TaskChoice
from rlft.train.rl.verify.verify import verify
from rlft.types import Group, Message, RewardSpec, SamplingParams, Task
from tests.conftest import MakeConfig
from tests.fakes import byte_tokenizer, made_up_group, read_metrics, read_rollouts, tiny_config

HERE = "tests.test_mixing"


def words(prompt: str = "say", tasks: int = 12, heldout: int = 6, columns: dict[str, Any] | None = None) -> Environment:
    """Single-turn tasks whose ids are the same in every environment of this kind."""
    made = [
        Task(id=str(n), messages=({"role": "user", "content": f"{prompt}{n}"},), answer="a", columns=columns or {})
        for n in range(tasks + heldout)
    ]
    shown = [({"role": "user", "content": f"{prompt}?{n}"}, {"role": "assistant", "content": "a"}) for n in range(4)]
    return Environment(
        train=made[:tasks],
        heldout=made[tasks:],
        demonstrations=[tuple(map(dict, pair)) for pair in shown],  # type: ignore[misc]
    )


class Echo:
    """An episode of two turns that says which task it was given."""

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        self.task = task
        return task.messages

    def step(self, message: Message) -> Step:
        done = message["content"] == "end"
        return Step(messages=({"role": "user", "content": f"{self.task.id} {sorted(self.task.columns)}"},), done=done)


def game(prompt: str = "play") -> Environment:
    tool = {"type": "function", "function": {"name": f"tool_of_{prompt}", "parameters": {}}}
    return replace(words(prompt, columns={"level": 1}), episode=Echo, tools=(tool,), max_turns=2)


def mixed(*entries: dict[str, Any], **more: Any) -> EnvironmentConfig:
    return EnvironmentConfig.model_validate({"mix": list(entries), **more})


def entry(name: str, function: str = "words", weight: float = 1.0, **args: Any) -> dict[str, Any]:
    return {"name": name, "path": f"{HERE}:{function}", "weight": weight, "args": {"prompt": name, **args}}


TWO = (entry("a", weight=3), entry("b"))


# The config


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "`path` is required"),
        ({"path": "x:y", "mix": [entry("a")]}, "take out those beside it"),
        ({"mix": [entry("a"), entry("a")]}, "the name 'a' stands twice"),
        ({"mix": [{**entry("a"), "weight": 0}]}, "greater than 0"),
        ({"mix": [{**entry("a"), "name": "a/b"}]}, "should match pattern"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EnvironmentConfig.model_validate(tree)


def test_rewards_and_evaluations_are_checked_against_the_mix() -> None:
    environment = {"path": "", "mix": [entry("sums")]}
    rewards = [{"path": "tests.fakes:share_of_a", "only": ["smus"]}]
    with pytest.raises(ValidationError, match=r"names the environment 'smus'. Did you mean 'sums'"):
        tiny_config("x", environment=environment, rewards=rewards)
    with pytest.raises(ValidationError, match="the name 'sums' stands twice"):
        tiny_config("x", environment=environment, evaluations=[{"name": "sums"}])


# The mixed environment


def test_every_stretch_has_its_shares() -> None:
    assert interleaved(["abcdef", "XY"], [3, 1]) == list("abXcdeYf")
    assert interleaved(["ab", "XYZ"], [1, 1]) == list("aXbYZ")  # what is left when one runs out


def test_shares_add_up_and_none_is_empty() -> None:
    assert shares(8, {"a": 1, "b": 2}) == {"a": 3, "b": 5}  # 2.67 and 5.33
    assert shares(4, {"a": 1, "b": 1, "c": 1}) == {"a": 2, "b": 1, "c": 1}
    with pytest.raises(ValueError, match="'b' gives none with the weight 1 of 20; use tasks_per_step=20"):
        shares(4, {"a": 19, "b": 1})


def test_tasks_say_where_they_come_from_and_ids_stay_apart() -> None:
    environment = loading.load(mixed(*TWO))
    assert [task.id for task in environment.heldout[:4]] == ["a/12", "a/13", "b/12", "a/14"]
    assert {task.columns["environment"] for task in environment.train} == {"a", "b"}
    assert len({task.id for task in environment.train}) == 24
    assert Counter(environment.shown_by[:4]) == {"a": 3, "b": 1}


def test_what_another_environment_holds_out_is_not_trained_on() -> None:
    # Of 18 tasks `a` holds out 12 to 17, and `b` the last 2 of the same 18.
    environment = loading.load(mixed(entry("a", prompt="x"), entry("b", prompt="x", tasks=16, heldout=2)))
    asked = {task.messages[0]["content"] for task in environment.heldout}
    assert not asked & {task.messages[0]["content"] for task in environment.train}
    assert Counter(task.columns["environment"] for task in environment.train) == {"a": 12, "b": 12}
    assert environment.notes == (
        "b: left out 4 training tasks and 0 demonstrations that ask what another environment of the mix holds out",
    )


def test_a_column_of_that_name_is_refused() -> None:
    with pytest.raises(ValueError, match="the tasks of 'a' have a column 'environment'"):
        loading.load(mixed(entry("a", columns={"environment": "mars"})))


def test_an_error_says_which_environment_it_is_of() -> None:
    with pytest.raises(ValueError, match=r"environment.mix, a: environment.args.tsaks"):
        loading.load(mixed(entry("a", tsaks=3)))


def test_difficulties_that_were_measured_of_the_mix_fit_its_environments(tmp_path: Path) -> None:
    file = tmp_path / "difficulty.jsonl"
    file.write_text("".join(json.dumps({"id": f"a/{n}", "difficulty": n / 20}) + "\n" for n in range(12)))
    environment = loading.load(mixed(entry("a", difficulty_file=str(file)), entry("b")))
    assert environment.sources["a"].train[3].columns["difficulty"] == 0.15
    assert "difficulty" not in environment.sources["b"].train[3].columns


def test_each_task_meets_its_own_environment() -> None:
    environment = loading.load(mixed(entry("a"), entry("b", "game"), entry("c", "game")))
    engine = ScriptedEngine(byte_tokenizer(), lambda text, seed, turn: "go", context=10_000)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=8)
    tasks = tuple(environment.train[:6])
    chunk = Chunk(tasks=tasks, samples_per_task=2, params=params, run_seed=0, stream="x", step=1, version=0)
    groups = run_chunk(engine, byte_tokenizer(), chunk, environment)
    assert [group.task.id for group in groups] == [task.id for task in tasks]
    seen = {group.task.id: group.trajectories[1] for group in groups}
    assert seen["a/0"].messages == ()
    assert len(seen["a/0"].turns) == 1
    # The episode gets its environment's own task: the id and the columns that it has there.
    assert seen["b/0"].messages[2]["content"] == "0 ['level']"
    assert len(seen["b/0"].turns) == 2
    names = [environment.of(task).tools for task in tasks]
    assert [tools[0]["function"]["name"] if tools else "" for tools in names[:3]] == ["", "tool_of_b", "tool_of_c"]
    shown = dict(zip(environment.shown_by, environment.tools_shown, strict=True))
    assert {name: len(tools) for name, tools in shown.items()} == {"a": 0, "b": 1, "c": 1}


def test_a_reward_may_be_for_some_environments_only() -> None:
    environment = loading.load(mixed(entry("a"), entry("b")))
    groups = [
        Group(task=task, trajectories=tuple(replace(t, task=task) for t in made_up_group([None, None]).trajectories))  # type: ignore[list-item]
        for task in environment.train[:2]
    ]
    rewards = [
        RewardSpec(path=f"{HERE}:one", name="all"),
        RewardSpec(path=f"{HERE}:one", name="of_b", only=("b",), weight=2),
    ]
    with Scorer(rewards, workers=0, deadline_s=5, log_dir=None) as scorer:
        scored = scorer.score(groups)
    assert [group.scores for group in scored] == [[1.0, 1.0], [3.0, 3.0]]
    assert [dict(group.trajectories[0].parts) for group in scored] == [{"all": 1.0}, {"all": 1.0, "of_b": 1.0}]


def one(completion: str) -> float:
    return 1.0


def length(completion: str) -> float:
    """Differs within nearly every group of the tiny model."""
    return len(completion.encode()) / 100


# Tasks of a step


def choice(*overrides: Any, order: str = "shuffle", count: int = 8, **changes: Any) -> TaskChoice:
    config = tiny_config(
        "x", tasks_per_step=count, environment={"path": "", "mix": list(TWO), "order": order}, **changes
    )
    return TaskChoice(config, loading.load(config.environment).train)


@pytest.mark.parametrize("order", ["shuffle", "listed", "by_signal"])
def test_every_step_has_its_share_of_each_environment(order: str) -> None:
    chosen = choice(order=order)
    for step in range(1, 20):
        tasks = chosen.of_step(step)
        assert Counter(task.columns["environment"] for task in tasks) == {"a": 6, "b": 2}
        assert len({task.id for task in tasks}) == 8
        assert {task.columns["environment"] for task in tasks[:4]} == {"a", "b"}  # each half of an update's tasks
    assert chosen.notes == ("tasks of each step: 6 of a, 2 of b",)


def test_an_environment_that_is_too_small_for_its_share_is_refused() -> None:
    with pytest.raises(ValueError, match="a step takes 15 tasks of 'a', which has 12"):
        choice(count=20).of_step(1)


# by_signal


def by_signal(tasks: int = 40, count: int = 4, **changes: Any) -> TaskChoice:
    config = tiny_config("x", tasks_per_step=count, environment={"path": "x:y", "order": "by_signal"}, **changes)
    return TaskChoice(config, words(tasks=tasks).train)


def groups_of(tasks: Sequence[Task], useful: set[str]) -> list[Group]:
    return [replace(made_up_group([0.0, 1.0] if task.id in useful else [0.0, 0.0]), task=task) for task in tasks]


USEFUL = {str(n) for n in range(10)}


def test_tasks_that_give_signal_come_more_often_and_the_others_keep_a_chance() -> None:
    chosen, counts = by_signal(), Counter[bool]()
    late: Counter[str] = Counter()
    for step in range(1, 441):
        tasks = chosen.of_step(step)
        assert len({task.id for task in tasks}) == 4
        chosen.observe(step, groups_of(tasks, USEFUL))
        counts.update(task.id in USEFUL for task in tasks if step > 40)
        late.update(task.id for task in tasks if step > 40)
    # A quarter of the tasks is useful: shuffled they are a quarter of the draws.
    assert counts[True] / counts.total() > 0.45
    assert len(late) == 40  # each of them came again


def test_what_was_seen_long_ago_counts_less() -> None:
    chosen = by_signal()
    for step in range(1, 31):
        chosen.observe(step, groups_of(words(tasks=40).train, USEFUL))

    def share(step: int) -> float:
        picked = [task.id in USEFUL for number in range(100) for task in chosen.of_step(step, number)]
        return sum(picked) / len(picked)

    assert share(31) > 0.7
    assert share(31 + 20 * HALF_LIFE) < 0.45


def test_a_measured_difficulty_is_what_is_expected_of_an_unseen_task() -> None:
    tasks = words(tasks=40).train
    rated = [replace(t, columns={"difficulty": 0.5 if t.id in USEFUL else 1.0}) for t in tasks]
    config = tiny_config("x", tasks_per_step=4, environment={"path": "x:y", "order": "by_signal"})
    picked = Counter(t.id in USEFUL for n in range(50) for t in TaskChoice(config, rated).of_step(1, n))
    assert picked[True] > 3 * picked[False]


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_choice_goes_on_from_its_state(staleness: int) -> None:
    changes = {"max_staleness": staleness, "algorithm": {"preset": "grpo", "correction": "token_truncate"}}
    whole, steps = by_signal(**(changes if staleness else {})), {}
    states = {}
    for step in range(1, 15):
        steps[step] = [task.id for task in whole.of_step(step)]
        whole.observe(step, groups_of(whole.of_step(step), USEFUL))
        states[step] = json.loads(json.dumps(whole.state(step)))
    for saved in (3, 9):
        again = by_signal(**(changes if staleness else {}))
        again.load(states[saved])
        for step in range(saved + 1, 15):
            assert [task.id for task in again.of_step(step)] == steps[step]
            again.observe(step, groups_of(again.of_step(step), USEFUL))
        assert json.dumps(again.state(14)) == json.dumps(states[14])


def test_a_state_of_the_step_before_does_not_know_of_the_present_one() -> None:
    chosen = by_signal()
    chosen.observe(1, groups_of(chosen.of_step(1), USEFUL))
    before = chosen.of_step(2)
    chosen.observe(2, groups_of(before, USEFUL))  # and then the run is stopped, before it has learnt from it
    again = by_signal()
    again.load(chosen.state(1))
    assert again.of_step(2) == before
    again.observe(2, groups_of(before, USEFUL))
    assert again.of_step(3) == chosen.of_step(3)


def test_one_sample_of_each_task_cannot_differ() -> None:
    with pytest.raises(ValidationError, match="by_signal asks whether the samples of a task differ"):
        tiny_config("x", samples_per_task=1, algorithm="ppo", environment={"path": "x:y", "order": "by_signal"})


# Metrics


def test_every_environment_has_metrics_of_its_own() -> None:
    tasks = loading.load(mixed(entry("a"), entry("b"))).train[:4]
    groups = groups_of(tasks, {"a/0"})
    metrics = describe(groups, mixed=("a", "b", "c"))
    assert (metrics["environment/a/reward"], metrics["environment/b/reward"]) == (0.25, 0.0)
    assert (metrics["environment/a/with_signal"], metrics["environment/a/groups"]) == (0.5, 2.0)
    assert metrics["environment/c/groups"] == 0.0
    assert "environment/c/reward" not in metrics
    assert "low/environment/a/with_signal" in metrics


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A mix of single-turn tasks and episodes, by signal, with a warm start; its checkpoint of step 2 is kept."""
    config = tiny_config(
        tiny_model,
        output_dir=str(tmp_path_factory.mktemp("mixing")),
        steps=4,
        tasks_per_step=4,
        environment={
            "path": "",
            "order": "by_signal",
            "mix": [entry("a", weight=3), entry("b", "game")],
        },
        rewards=[{"path": f"{HERE}:length"}, {"path": f"{HERE}:one", "name": "of_b", "only": ["b"]}],
        sft={"examples": 6, "batch_size": 3},
        evaluation={"tasks": 8},
        checkpoint={"every": 2},
    )
    launch.train(config)
    return config.run_dir


def test_a_run_trains_on_the_mix_and_says_what_each_environment_did(run: Path) -> None:
    rows = read_metrics(run)
    assert [(row["environment/a/groups"], row["environment/b/groups"]) for row in rows] == [(3.0, 1.0)] * 4
    assert "reward/part/of_b" in rows[0]
    turns = {r["task_id"].partition("/")[0]: len(json.loads(r["conversation"] or "[]")) for r in read_rollouts(run, 1)}
    assert turns["a"] == 0
    assert turns["b"] > 1
    titles = [chart.title for each in sections(rows) for chart in each.charts]
    assert {"Train reward by environment", "Groups with signal by environment"} <= set(titles)
    sets = read_sets(run, read_config(run))
    assert [(each.name, each.evals[-1].accuracy.n) for each in sets] == [("a", 6), ("b", 2)]
    assert [e.name for e in sets[0].evals] == ["base", "sft", "step-000004"]
    provenance = json.loads((run / "provenance.json").read_text())
    assert {f"{HERE}:words", f"{HERE}:game"} <= provenance["sha256"].keys()


def test_a_resumed_run_ends_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "step-000004")
    launch.resume(copy)
    for step in (3, 4):
        keys = ("task_id", "token_ids", "reward", "advantage")
        rows = [[{key: row[key] for key in keys} for row in read_rollouts(each, step)] for each in (run, copy)]
        assert rows[0] == rows[1]
    (first, _), (second, _) = (load_latest(each / "checkpoints") for each in (run, copy))
    assert first is not None
    assert second is not None
    assert first.state["tasks"] == second.state["tasks"]
    assert first.state["tasks"]["a"]["seen"]
    assert all((first.tensors[name] == second.tensors[name]).all() for name in first.tensors)


def test_a_run_by_signal_can_be_verified(run: Path) -> None:
    config = RunConfig.model_validate(read_config(run))
    found = verify(run, config, share=0.2, seed=0, workers=0)
    assert [(check.what, check.differences) for check in found.checks if check.differences] == []


def test_a_mix_that_is_played_and_checked_by_hand(make_config: MakeConfig) -> None:
    from rlft.cli.env_check import check_environment

    found = check_environment(mixed(entry("a"), entry("b", "game")), tasks=2, samples=2)
    assert {each.name.partition(":")[0] for each in found} == {"tasks", "a", "b"}
    assert all(each.is_fine for each in found), found


# The documentation


def test_the_page_is_about_what_there_is(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "mixing.md").read_text()
    config = RunConfig.model_validate(YAML(typ="safe").load(re.findall(r"```yaml\n(.*?)```", text, re.S)[0]))
    environment = loading.load(config.environment)
    chosen = TaskChoice(config, environment.train)
    assert chosen.notes[0] in text
    assert re.findall(r"as in `(\w+/)\d+\+\d+`", text)[0] == environment.train[0].id[:5]
    shown = Counter(environment.shown_by[: config.sft.examples if config.sft else 0])
    assert shown == {"sums": 64}  # the game shows none
    namespace: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], namespace)
    assert namespace["right"]("<answer>3</answer>", "3", "sums", None) == 1.0
    assert namespace["right"]("5", None, "games", made_up_group([1.0]).trajectories[0]) is None  # no game was played


def test_the_shipped_config_has_tasks_for_every_step() -> None:
    config = load(Path(__file__).parents[1] / "configs" / "mixing.yaml")
    chosen = TaskChoice(config, loading.load(config.environment).train)
    assert chosen.notes == ("tasks of each step: 4 of small, 4 of large",)
