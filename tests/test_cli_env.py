"""`rlft env`: a person plays, a check finds what is wrong, a measurement orders the tasks."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig, Phi3Config
from typer.testing import CliRunner, Result

from rlft.cli import env_check, main
from rlft.cli.env_check import check_environment
from rlft.cli.env_measure import difficulties
from rlft.cli.env_rewards import Finding
from rlft.config import EnvironmentConfig
from rlft.config_file import load
from rlft.environment.fresh_process import fingerprints
from rlft.environment.loading import load as load_environment
from rlft.environment.prompt_lengths import fit_context
from rlft.model import chat
from rlft.model.context import Context
from rlft.reward.scoring import Scorer
from rlft.rollout import context
from rlft.rollout.weight_proof import CANARY_TOKENS
from rlft.train.rl import launch
from rlft.types import Failed, RewardSpec
from tests.conftest import MakeConfig
from tests.fakes import byte_tokenizer, letters, made_up_group, read_lines, read_rollouts, tiny_config
from tests.test_engine import save_family


def env(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(
        main.app, ["env", *map(str, arguments)], input=stdin, env={"COLUMNS": "200", "TERM": "dumb"}
    )


# Play


def test_a_person_plays_a_game() -> None:
    result = env(
        "play", "number_guessing", "--task", "1-3", "--seed", "4", "--args", "max_turns=5", stdin="?\n1\n2\n3\n"
    )
    out = result.output
    assert result.exit_code == 0, out
    assert "task 1-3, seed 4" in out
    assert "Guess my number between 1 and 3" in out
    assert "Say a number." in out
    assert "reward -0.1" in out
    assert "reward 1\n" in out
    assert "stopped: done after" in out
    assert env("play", "number_guessing", "--task", "1-3", "--seed", "4", stdin="?\n1\n2\n3\n").output == out


def test_the_budget_of_turns_ends_a_game_and_so_does_leaving() -> None:
    out = env("play", "environments.number_guessing:load", "--args", "max_turns=2", stdin="no\nno\nno\n").output
    assert "stopped: turns after 2 turns, reward of the environment -0.2" in out
    assert "stopped: left after 1 turns" in env("play", "number_guessing", stdin="no\n").output


def test_tools_are_shown_and_called() -> None:
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "6 * 7"}}</tool_call>\n'
    out = env("play", "calculator", stdin=f"{call}<tool_call>oops\n1 2\n").output
    assert "tool calculate(expression): Computes an arithmetic expression." in out
    assert "tool calculate\n42\n" in out
    assert "error: the call is not JSON" in out
    assert "stopped: done after 3 turns, reward of the environment 0" in out


def test_rewards_of_a_single_turn_task() -> None:
    options = ("--args", "demonstrations=0", "--reward", "rewards.countdown:countdown", "--task")
    task = load_environment(EnvironmentConfig(path="environments.countdown:load", args={"demonstrations": 0})).train[0]
    out = env("play", "countdown", *options, task.id, stdin="<answer>1 +\\\n2</answer>\n").output
    assert "countdown: 0" in out
    assert "weighted: 0" in out
    (number, *_) = task.columns["numbers"]
    out = env(
        "play", "countdown", *options, task.id, stdin=f"<answer>{number} +\\\n{number * 0}{number}</answer>\n"
    ).output
    assert "countdown/legal" in out


def test_a_config_names_environment_and_rewards(config_file: Path) -> None:
    out = env("play", config_file, "--task", "train-3", stdin="[/red]\x1b[31m{}\n").output
    assert "train3" in out
    assert "odd: " in out
    assert "\x1b" not in out


def test_what_a_game_shows_does_nothing_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    out = env("play", f"{tmp_path}/evil.py:load", stdin="x\n").output
    assert "[bold]bad[/bold] [/red]" in out
    assert "\x1b" not in out


EVIL = """
from rlft.environment.contract import Environment, Step
from rlft.types import Task

class Evil:
    def start(self, task, seed):
        return task.messages
    def step(self, message):
        return Step(messages=({"role": "user", "content": "[bold]bad[/bold] [/red] \\x1b]0;title\\x07"},), done=True)

def load():
    tasks = [Task(id=str(i), messages=({"role": "user", "content": str(i)},)) for i in range(4)]
    return Environment(train=tasks[:3], heldout=tasks[3:], episode=Evil)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("play", "countdwn"), r"environments\.countdwn"),
        (("play", "countdown", "--task", "0"), "no task '0' among 900"),
        (("play", "countdown", "--args", "high"), "write key=value"),
        (("play", "countdown", "--args", "hihg=3"), "Did you mean 'high'"),
    ],
)
def test_a_wrong_name_is_told(arguments: tuple[str, ...], message: str) -> None:
    error = env(*arguments).exception
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=message):
        raise error


# Check


def test_a_good_environment_passes() -> None:
    result = env("check", "number_guessing", "--tasks", "3", "--samples", "2", "--action", "5")
    assert result.exit_code == 0, result.output
    for words in ("a group starts alike", "deterministic", "budgets", "tokens and masks", "environment's reward"):
        assert words in result.output
    assert "wrong" not in result.output


def test_a_config_is_checked_with_its_rewards_and_a_models_tokenizer(config_file: Path, tiny_model: Path) -> None:
    result = env("check", config_file, "--model", str(tiny_model))
    assert result.exit_code == 0, result.output
    assert re.search(r"rewards +.* of .* episodes, for made-up replies", " ".join(result.output.split()))


BAD = """
import random
from rlft.environment.contract import Environment, Step
from rlft.types import Task
COUNT = [0]

class Episode:
    def start(self, task, seed):
        {start}
        return task.messages
    def step(self, message):
        COUNT[0] += 1
        {step}
        return Step(messages=({{"role": "user", "content": "on"}},), reward=0.0)

def load():
    COUNT[0] += 1
    tasks = [Task(id=str(i), messages=({{"role": "user", "content": str(i)}},), {columns}) for i in range(6)]
    {load}
    return Environment(train=tasks[:4], heldout=tasks[4:], episode=Episode, max_turns=3)
"""
WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "random answers": ({"step": "return Step(reward=random.random(), done=True)"}, "deterministic", "other answers"),
    "other starts": (
        {"start": 'COUNT[0] += 1; return [{"role": "user", "content": str(COUNT[0])}]'},
        "a group starts alike",
        "other messages for the same seed",
    ),
    "raises": ({"step": "raise KeyError('board')"}, "episodes", "KeyError: 'board'"),
    "a reward that is no number": ({"step": "return Step(reward=float('inf'), done=True)"}, "episodes", "reward inf"),
    "no message": ({"step": "return Step(reward=1.0)"}, "episodes", "the prompt has no messages"),
    "other tasks": (
        {"load": 'tasks[0] = Task(id="0", messages=({"role": "user", "content": f"{COUNT}"},))'},
        "same arguments, same tasks",
        "train differs when it is loaded again",
    ),
    "the order of a set": (
        {
            "load": "words = ' '.join({str(n) for n in range(99)}); "
            'tasks[0] = Task(id="0", messages=({"role": "user", "content": words},))'
        },
        "same arguments, same tasks",
        "train differs from row 0 on in another process",
    ),
    "another process": (
        {"load": "import os; assert os.getpid() == MAIN, 'only here'"},
        "same arguments, same tasks",
        "AssertionError: only here",
    ),
    "objects": ({"columns": "columns={'x': {1, 2}}"}, "plain data", "no plain data"),
    "no held-out tasks": (
        {"load": "return Environment(train=tasks, heldout=[], episode=Episode)"},
        "tasks",
        "held-out",
    ),
}


def find(path: Path, **parts: str) -> list[Finding]:
    defaults = {"start": "pass", "step": "pass", "columns": "", "load": "pass"}
    path.write_text(f"MAIN = {os.getpid()}\n" + BAD.format(**{**defaults, **parts}))
    return check_environment(EnvironmentConfig(path=f"{path}:load"), tasks=2, samples=2)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(tmp_path: Path, name: str) -> None:
    parts, what, seen = WRONG[name]
    assert all(finding.is_fine for finding in find(tmp_path / "fine.py"))
    found = [finding for finding in find(tmp_path / "wrong.py", **parts) if not finding.is_fine]
    assert [finding.name for finding in found] == [what]
    assert seen in found[0].detail


def test_dates_of_a_table_are_plain_data(tmp_path: Path) -> None:
    found = find(tmp_path / "dates.py", columns="columns={'day': __import__('datetime').date(2024, 1, 2)}")
    assert [finding.detail for finding in found if not finding.is_fine] == []
    assert "in another process" in str(found)


def test_a_wrong_environment_ends_with_code_1(tmp_path: Path) -> None:
    find(tmp_path / "wrong.py", step="raise KeyError('board')")
    result = env("check", f"{tmp_path}/wrong.py:load")
    assert result.exit_code == 1
    assert "wrong" in result.output
    assert "KeyError" in result.output


def test_a_step_that_hangs_is_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_check, "STEP_S", 0.1)
    began = time.monotonic()
    found = [
        finding for finding in find(tmp_path / "slow.py", step="import time; time.sleep(60)") if not finding.is_fine
    ]
    assert time.monotonic() - began < 50
    assert [finding.name for finding in found] == ["episodes"]
    assert found[0].detail.startswith(
        "2 of 2 failed; the environment did not answer in turn 1 within step_deadline_s=0.1, while it was at "
        f"{tmp_path}/slow.py:"
    )


REWARDS = """
import random
CALLS = [0]

def deviation(group):
    values = [float(len(t.text)) for t in group.trajectories]
    mean = sum(values) / len(values)
    return [mean + sum((v - mean) ** 2 for v in values) / (len(values) - 1) for _ in values]

def no_return(completion):
    value = float(len(completion))

def counts_calls(completion):
    CALLS[0] += 1
    return float(CALLS[0])

def randomly(completion):
    return random.random()

def constant(completion):
    return 0.5

def fine(completion):
    return len(completion) / 1000
"""
WRONG_REWARDS = {
    "deviation": "an episode that is alone in its group could not be scored: deviation: .*ZeroDivisionError",
    "no_return": "none given in 24 episodes: they abstained from all of them",
    "counts_calls": "reward counts_calls: the same episode got 1, and 25 when it was scored again alone",
    "randomly": "reward randomly: the same episode got .* when it was scored again alone",
    "constant": "gave 0.5 for [0-9]+ different",
    "fine": "",
}


@pytest.fixture
def loads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether another process loads the same tasks is not looked at: that takes a second for each environment."""
    monkeypatch.setattr(env_check, "load_elsewhere", lambda config: fingerprints(load_environment(config)))


@pytest.mark.usefixtures("loads_here")
@pytest.mark.parametrize(
    ("name", "args"),
    [("number_guessing", {}), ("sums", {"low": 2, "high": 20, "heldout": 8, "demonstrations": 8})],
)
def test_what_is_wrong_with_a_reward_is_found(tmp_path: Path, name: str, args: dict[str, Any]) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    for reward, said in WRONG_REWARDS.items():
        spec = RewardSpec(path=f"{tmp_path}/mine.py:{reward}")
        with Scorer([spec], workers=0, deadline_s=5.0, log_dir=None) as scorer:
            found = check_environment(
                EnvironmentConfig(path=f"environments.{name}:load", args=args),
                scorer=scorer,
                specs=[spec],
                tasks=6,
                actions=[f"reply {n}" for n in range(9)],
            )
        wrong = [finding.detail for finding in found if not finding.is_fine]
        assert len(wrong) == (said != ""), (reward, wrong)
        assert re.search(said, "".join(wrong), re.DOTALL), (reward, wrong)


NOTHING = """
from rlft.environment.contract import Environment, Step
from rlft.types import Task

class Episode:
    def start(self, task, seed):
        return task.messages
    def step(self, message):
        return Step(reward={reward}, done=True)

def load():
    tasks = [Task(id=str(i), messages=({{"role": "user", "content": str(i)}},)) for i in range(6)]
    shown = [(*task.messages, {{"role": "assistant", "content": "yes"}}) for task in tasks[:4]]
    return Environment(train=tasks[:4], heldout=tasks[4:], episode=Episode, {demonstrations})
"""


@pytest.mark.usefixtures("loads_here")
def test_doing_nothing_may_not_be_the_best_that_a_policy_can_do(tmp_path: Path) -> None:
    for number, (reward, demonstrations, said) in enumerate(
        (
            ("1.0 if message['content'] == 'yes' else 0.0", "demonstrations=shown", ""),
            ("1.0 if message['content'] == 'yes' else 0.2", "", ""),
            ("0.0 - len(message['content'])", "demonstrations=shown", "demonstration gets -3 .* empty replies get 0"),
            ("1.0 if not message['content'] else 0.5", "", "no other episode got more than 0.5"),
            ("1 / len(message['content'])", "", "ZeroDivisionError"),
        )
    ):
        file = tmp_path / f"mine{number}.py"
        file.write_text(NOTHING.format(reward=reward, demonstrations=demonstrations))
        found = check_environment(EnvironmentConfig(path=f"{file}:load"), actions=["yes"], tasks=4)
        wrong = [finding for finding in found if not finding.is_fine]
        assert [finding.name for finding in wrong] == (["doing nothing"] if said else []), (reward, wrong)
        assert re.search(said, "".join(finding.detail for finding in wrong)), (reward, wrong)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_reward_that_hangs_is_found_and_named(tmp_path: Path, weight: float) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow(completion):\n    time.sleep(60)\ndef fine(completion):\n    return 1.0\n"
    )
    config = tmp_path / "run.yaml"
    config.write_text(
        "name: x\nmodel: {source: none}\nsteps: 1\nenvironment: {path: 'environments.number_guessing:load'}\n"
        "scoring: {deadline_s: 0.3}\n"
        f"rewards: [{{path: '{tmp_path}/slow.py:slow', weight: {weight}}}, {{path: '{tmp_path}/slow.py:fine'}}]\n"
    )
    result = env("check", config, "--tasks", "4", "--samples", "2")
    assert result.exit_code == 1, result.exception
    assert result.output, result.exception
    said = " ".join(result.output.split())
    if weight:
        assert "1 of 1 could not be scored: slow: no result within 0.3 s" in said
        assert "reply '" in said
    else:  # the others of its group are scored, then it is enough
        assert "observed reward slow failed on 2 of 2: no result within 0.3 s" in said


# Lengths


def test_overlong_tasks_are_refused_or_dropped(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [{"question": "x" * (10 if i % 4 else 300), "answer": i, "n": i} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "question": f"{row['question']}{row['n']}"}) + "\n" for row in rows))
    overrides = ["environment.path=environments.dataset:load", f"environment.args={{source: {file}, heldout: 0.3}}"]
    with pytest.raises(ValueError, match=r"10 of 40 prompts are too long: .*environment\.overlong: drop"):
        launch.train(make_config(*overrides, "steps=2"))
    config = make_config(*overrides, "environment.overlong=drop", "steps=2", "evaluation.tasks=50")
    launch.train(config)
    (event,) = [row for row in read_lines(config.run_dir / "events.jsonl") if row["kind"] == "overlong"]
    assert "left out" in event["message"]
    assert "context of 256" in event["message"]
    seen = {row["prompt"] for step in (1, 2) for row in read_rollouts(config.run_dir, step)}
    assert max(map(len, seen)) < 20
    evaluated = json.loads((config.run_dir / "evals" / "base.json").read_text())
    assert evaluated["accuracy"]["n"] == 30 - len(
        [t for t in load_environment(config.environment).train if len(t.messages[0]["content"]) < 20]
    )


def test_dropping_everything_is_refused() -> None:
    environment = load_environment(EnvironmentConfig(path="environments.countdown:load"))
    with pytest.raises(ValueError, match="drop leaves 0 training and 0 held-out tasks"):
        fit_context(environment, byte_tokenizer(), max_new_tokens=8, context=SMALL, overlong="drop")


SMALL = Context(20, "the model's context of 20")


def test_a_long_start_of_an_episode_is_refused_before_the_run() -> None:
    environment = load_environment(EnvironmentConfig(path="environments.number_guessing:load"))
    with pytest.raises(ValueError, match=r"the episode of task '.*' starts with \d+ tokens"):
        fit_context(environment, byte_tokenizer(), max_new_tokens=8, context=SMALL, overlong="error")


def test_episodes_that_start_too_long_are_dropped(tmp_path: Path) -> None:
    long = 'return [{"role": "user", "content": "x" * 50}] if task.id in ("1", "4") else task.messages'
    find(tmp_path / "long.py", start=long)
    environment = load_environment(EnvironmentConfig(path=f"{tmp_path}/long.py:load"))
    fitted, note = fit_context(environment, byte_tokenizer(), max_new_tokens=8, context=SMALL, overlong="drop")
    assert [task.id for task in fitted.train] == ["0", "2", "3"]
    assert [task.id for task in fitted.heldout] == ["5"]
    assert "left out 1 training and 1 held-out tasks" in note
    assert "the episode of task '4' starts with 53 tokens" in note


def mistral(tmp_path: Path, window: int) -> Path:
    return save_family(tmp_path / f"window-{window}", "MistralConfig", {"sliding_window": window})


def test_the_sliding_window_counts(tmp_path: Path) -> None:
    # A prompt of `letters` is 9 to 11 tokens, and 8 new ones make 17 to 19; the canary's reply has 48.
    folder = mistral(tmp_path, 18)
    config = tiny_config(folder)
    with pytest.raises(ValueError, match=r"8 of 16 prompts are too long: .* exceeds the model's sliding window of 18"):
        context.fit(config, letters(), str(folder))
    config = tiny_config(folder, environment={"overlong": "drop"})
    with pytest.raises(ValueError, match=r"drop leaves 8 training and 0 held-out .* sliding window of 18"):
        context.fit(config, letters(), str(folder))


def test_the_canary_has_to_fit_before_the_run(tmp_path: Path) -> None:
    longest = len(chat.render(byte_tokenizer(), letters().train[0].messages)) + CANARY_TOKENS
    folder = mistral(tmp_path, longest - 1)
    words = f"the canary, .* first training task 'train-0', {longest} tokens in all, .* sliding window of {longest - 1}"
    with pytest.raises(ValueError, match=words):
        launch.train(tiny_config(folder, output_dir=str(tmp_path)))
    assert not (tmp_path / "tiny").exists()
    config = tiny_config(folder)
    assert context.fit(config, letters(), str(folder), is_trained=False)[1] == ""
    folder = mistral(tmp_path, longest)
    assert context.fit(tiny_config(folder), letters(), str(folder))[1] == ""


@pytest.mark.parametrize(
    ("engine", "arguments", "sampling", "is_trained", "expected"),
    [
        ("transformers", {}, {}, True, (32, "the model's sliding window of 32")),
        ("vllm", {}, {}, True, (32, "the model's sliding window of 32")),
        ("vllm", {}, {}, False, (64, "the model's context of 64")),
        ("vllm", {"max_model_len": 20}, {}, True, (20, "rollout.engine_args.max_model_len=20")),
        (
            *("vllm", {"max_model_len": 20}, {"top_k": 5}, True),
            (19, "rollout.engine_args.max_model_len=20, of which vllm keeps one token"),
        ),
        ("vllm", {"max_model_len": 999}, {}, False, (64, "the model's context of 64")),
        ("openai", {"base_url": "u", "model": "m", "context": 40}, {}, False, (40, "rollout.engine_args.context=40")),
    ],
)
def test_each_engine_has_its_bound(
    engine: str, arguments: dict[str, Any], sampling: dict[str, int], is_trained: bool, expected: tuple[int, str]
) -> None:
    config = tiny_config("x", rollout={"engine": engine, "engine_args": arguments}, sampling=sampling)
    model_config = MistralConfig(max_position_embeddings=64, sliding_window=32)
    assert context.run_context(config, model_config, is_trained=is_trained) == Context(*expected)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_stretched_context_counts_up_to_where_it_is_stretched(is_trained: bool) -> None:
    # A sequence beyond it would change what transformers computes for all others of its batch.
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model_config = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    bound = context.run_context(tiny_config("x"), model_config, is_trained=is_trained)
    assert bound == Context(64, "the 64 positions before the model's LongRoPE stretches them")
    plain = Phi3Config(max_position_embeddings=256, original_max_position_embeddings=64)
    assert context.run_context(tiny_config("x"), plain, is_trained=is_trained).tokens == 256


# Measure


def test_difficulty_is_the_share_of_failures() -> None:
    failed = Failed(kind="error", message="", reproduce="")

    def group(name: str, *values: float | Failed) -> Any:
        from rlft.types import Score

        outcomes = [v if isinstance(v, Failed) else Score(value=9 * v, parts={"right": v}) for v in values]
        return made_up_group(outcomes, task_id=name)

    groups = [group("half", 1.0, 0.0), group("all", 0.0, 0.0, failed), group("none", 1.0), group("unknown", failed)]
    assert [(row["id"], row["difficulty"], row["samples"]) for row in difficulties(groups, "right")] == [
        ("none", 0.0, 1),
        ("half", 0.5, 2),
        ("all", 1.0, 2),
    ]
    # From -1 to 1: a mean of 0 is half-way.
    assert difficulties([group("a", -1.0, 1.0)], "right")[0]["difficulty"] == 0.5
    with pytest.raises(ValueError, match="none of the samples has a score of 'right'"):
        difficulties([group("unknown", failed)], "right")


def test_measured_tasks_come_easy_first(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "measured" / "difficulty.jsonl"
    result = env("measure", config_file, "environment.args.num_train=12", "--samples", "3", "--out", out)
    assert result.exit_code == 0, result.exception
    assert f"difficulty_file: {out}" in result.output.replace("\n", "")
    rows = read_lines(out)
    assert len(rows) == 12
    assert {row["samples"] for row in rows} == {3}
    assert [row["difficulty"] for row in rows] == sorted(row["difficulty"] for row in rows)
    again = tmp_path / "again.jsonl"
    env("measure", config_file, "environment.args.num_train=12", "--samples", "3", "--out", again)
    assert again.read_text() == out.read_text()
    options = [f"environment.args={{num_train: 12, difficulty_file: {out}}}", "environment.order=easy_first"]
    config = load(config_file, [*options, "steps=3", "name=easy"])
    launch.train(config)
    known = {row["id"]: row["difficulty"] for row in rows}
    course = [known[row["task_id"]] for step in (1, 2, 3) for row in read_rollouts(config.run_dir, step)]
    steps = [course[i : i + 16] for i in range(0, 48, 16)]
    assert max(steps[0]) <= min(steps[1])
    assert max(steps[1]) <= min(steps[2])


def test_the_metric_of_the_evaluation_tells_solved_from_not(config_file: Path, tmp_path: Path) -> None:
    never = tmp_path / "never.py"
    never.write_text("def never(completion): return {'always': 1.0, 'score': 0.0}")
    rewards = f"rewards=[{{path: '{never}:never'}}]"
    options = ("environment.args.num_train=2", rewards, "--samples", "2", "--out", tmp_path / "out.jsonl")
    first = env("measure", config_file, *options)
    assert "metric: never\n" in first.output, first.exception
    assert "never solved: 2" in first.output
    named = env("measure", config_file, "evaluation.metric=never/always", *options)
    assert "metric: never/always\n" in named.output, named.exception
    assert "always solved: 2" in named.output
    assert "no reward is named 'nevr'" in str(env("measure", config_file, "evaluation.metric=nevr", *options).exception)


def test_easy_first_without_a_measurement_is_refused_before_the_run(make_config: MakeConfig) -> None:
    config = make_config(
        "environment.path=environments.sums:load", "environment.args={high: 30}", "environment.order=easy_first"
    )
    with pytest.raises(ValueError, match="rlft env measure CONFIG"):
        launch.train(config)
    assert not config.run_dir.exists()
