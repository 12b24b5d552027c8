"""Episodes of several turns: what the engine was asked with is what the learner gets, and nothing ends unaccounted."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.environment_reward import environment_reward
from rlft.config import AdapterConfig, ModelConfig
from rlft.environment.contract import Environment, Step
from rlft.environment.tools import ToolEpisode, make_tools
from rlft.learner.batch import collate, pack
from rlft.learner.roles import Role, add_policy, read_role, write_role
from rlft.model import base as models
from rlft.model import chat
from rlft.model.adapter import POLICY, make_adapter
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.episodes import run_episodes
from rlft.rollout.generate import run_chunk
from rlft.types import Failed, Group, Message, RewardSpec, SamplingParams, Score, Task, Trajectory
from tests.fakes import byte_tokenizer

TASKS = tuple(Task(id=name, messages=({"role": "user", "content": name},)) for name in ("left", "right"))
TOKENIZER = byte_tokenizer()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


@dataclass
class Countdown:
    """Says numbers down from `turns`, then ends; gives each action the reward of the number."""

    turns: int = 3
    given: float | None = 1.0
    log: list[str] = field(default_factory=list)
    closed: int = 0

    def start(self, task: Task, seed: int) -> list[Message]:
        self.left = self.turns
        return [*task.messages, user(f"start {random.Random(seed).randint(0, 9)}")]

    def step(self, message: Message) -> Step:
        assert message["role"] == "assistant"
        self.log.append(message["content"])
        self.left -= 1
        reward = None if self.given is None else self.given * self.left
        return Step(messages=(user(f"left {self.left}"),), reward=reward, done=self.left == 0)

    def close(self) -> None:
        self.closed += 1


def environment(episode: Callable[[], Any] = Countdown, **changes: Any) -> Environment:
    return Environment(train=TASKS, heldout=(), episode=episode, **changes)


def chunk(*, samples: int = 2, tasks: tuple[Task, ...] = TASKS, **params: Any) -> Chunk:
    sampling = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, **params})
    return Chunk(tasks=tasks, samples_per_task=samples, params=sampling, run_seed=5, stream="train", step=1, version=0)


def run(
    episode: Callable[[], Any] = Countdown,
    say: Callable[[str, int], str] = lambda prompt, index: f"a{index}",
    *,
    context: int = 4096,
    work: Chunk | None = None,
    **changes: Any,
) -> tuple[list[Group], ScriptedEngine]:
    engine = ScriptedEngine(TOKENIZER, lambda prompt, index, seed: say(prompt, index), context=context)
    return run_chunk(engine, TOKENIZER, work or chunk(), environment(episode, **changes)), engine


def samples_of(groups: list[Group]) -> list[Trajectory]:
    return [trajectory for group in groups for trajectory in group.trajectories]


def reasons(groups: list[Group]) -> list[str]:
    return [trajectory.stop_reason for trajectory in samples_of(groups)]


# Tokens


def asked_with(engine: ScriptedEngine) -> list[tuple[tuple[int, ...], int]]:
    return [(request.prompt_ids, seed) for call in engine.calls for request in call for seed in request.seeds]


def test_ids_are_appended_and_are_what_the_engine_was_asked_with() -> None:
    groups, engine = run()
    asked = asked_with(engine)
    assert len(asked) == 4 * 3
    contexts = set()
    for trajectory in samples_of(groups):
        context: tuple[int, ...] = ()
        for turn in trajectory.turns:
            context += turn.prompt_ids
            contexts.add(context)
            assert context in [prompt for prompt, _ in asked]
            context += turn.completion.token_ids
        assert context == (*trajectory.prompt_ids, *trajectory.token_ids)
    assert contexts == {prompt for prompt, _ in asked}
    assert len({seed for _, seed in asked}) == len(asked)  # no two actions share their randomness


def test_what_the_learner_gets_is_consistent() -> None:
    groups, engine = run()
    for trajectory in samples_of(groups):
        ids, mask, logprobs = trajectory.token_ids, trajectory.action_mask, trajectory.logprobs
        assert len(ids) == len(mask) == len(logprobs)
        assert sum(mask) == trajectory.num_actions
        assert [lp for lp, is_action in zip(logprobs, mask, strict=True) if not is_action] == [0.0] * (
            len(mask) - sum(mask)
        )
        sampled = [t for turn in trajectory.turns for t in turn.completion.token_ids]
        assert [t for t, is_action in zip(ids, mask, strict=True) if is_action] == sampled
        scripted = [lp for turn in trajectory.turns for lp in turn.completion.logprobs]
        assert [lp for lp, is_action in zip(logprobs, mask, strict=True) if is_action] == scripted
    assert sum(t.num_actions for t in samples_of(groups)) == engine.num_sampled


def test_the_tokens_are_the_templates_conversation() -> None:
    # The byte tokenizer has one way to write a text, so appending must give what rendering the whole would.
    groups, _ = run()
    for trajectory in samples_of(groups):
        shown = [message for message in trajectory.messages if message is not trajectory.messages[-1]]
        whole = tuple(TOKENIZER.apply_chat_template(shown, return_dict=False))
        assert (*trajectory.prompt_ids, *trajectory.token_ids) == whole
        assert trajectory.text == trajectory.messages[-2]["content"]


def test_a_group_shares_its_first_prompt_and_starts_alike() -> None:
    groups, engine = run(work=chunk(samples=3))
    assert [len(request.seeds) for request in engine.calls[0]] == [3, 3]
    assert [len(request.seeds) for request in engine.calls[1]] == [1] * 6
    for group in groups:
        assert len({t.prompt_ids for t in group.trajectories}) == 1
    # The seed of the environment: another in another step, the same whatever else is in the chunk.
    alone, _ = run(work=chunk(tasks=TASKS[1:]))
    assert alone[0].trajectories[0].prompt_ids == groups[1].trajectories[0].prompt_ids
    starts = {run(work=replace(chunk(), step=step))[0][0].trajectories[0].messages[1]["content"] for step in range(9)}
    assert len(starts) > 1


def test_a_stream_has_an_environment_of_its_own_or_shares_that_of_another() -> None:
    train, other = chunk(), replace(chunk(), stream="other")
    sharing = replace(other, environment_stream="train")
    assert sharing.environment_seed(TASKS[0]) == train.environment_seed(TASKS[0]) != other.environment_seed(TASKS[0])
    assert sharing.seeds(TASKS[0]) == other.seeds(TASKS[0]) != train.seeds(TASKS[0])


def test_tools_stand_in_the_first_prompt() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "description": "Looks.", "parameters": {}}}
    groups, _ = run(tools=(tool,))
    assert '"look_up"' in TOKENIZER.decode(list(groups[0].trajectories[0].prompt_ids))


# Log-probabilities: the proof that what is trained is what was sampled


@pytest.mark.parametrize("stop", [(), ("a", "e", "t")], ids=["end-tokens", "stop-texts"])
def test_learner_and_engine_agree_at_every_action(tiny_model: Path, stop: tuple[str, ...]) -> None:
    tokenizer = chat.load_tokenizer(tiny_model)
    lora = AdapterConfig(rank=4, alpha=8)
    model = add_policy(models.load_base(tiny_model, torch.float32, torch.device("cpu")), lora, seed=0)
    generator = torch.Generator().manual_seed(1)
    role = Role(model=model, adapter=POLICY)
    tensors = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in read_role(role).items()}
    write_role(role, tensors)
    engine = TransformersEngine(
        tiny_model, tokenizer, model=ModelConfig(source=str(tiny_model), dtype="float32"), adapter=lora, threads=1
    )
    engine.load_adapter(make_adapter(0, tensors))
    asked: list[tuple[int, ...]] = []
    generate = engine.generate

    def recording(requests: Any, params: SamplingParams, *, version: int) -> Any:
        asked.extend(request.prompt_ids for request in requests for _ in request.seeds)
        return generate(requests, params, version=version)

    engine.generate = recording  # type: ignore[method-assign]
    work = chunk(samples=3, max_new_tokens=16, temperature=0.8, stop=stop)
    engine._end_ids = frozenset(range(4, 260, 5))  # a random model rarely ends its turn: so it does, at any length
    groups = run_episodes(engine, tokenizer, work, environment())
    trajectories = samples_of(groups)
    assert max(len(t.turns) for t in trajectories) == 3
    assert len({len(turn.completion.token_ids) for t in trajectories for turn in t.turns}) > 2
    assert len(asked) == sum(len(t.turns) for t in trajectories)
    scored = [
        replace(group, trajectories=tuple(replace(t, outcome=Score(value=1.0)) for t in group.trajectories))
        for group in groups
    ]
    batch = collate(scored)
    with torch.no_grad():
        logprobs, _ = models.token_logprobs(model, pack(batch), temperature=0.8)
    assert len(logprobs) == sum(t.num_actions for t in trajectories)
    torch.testing.assert_close(logprobs, batch.rollout_logprobs, atol=1e-5, rtol=0)


# How episodes end


def test_done_ends_an_episode() -> None:
    groups, _ = run(lambda: Countdown(turns=2))
    assert reasons(groups) == ["done"] * 4
    assert [len(t.turns) for t in samples_of(groups)] == [2] * 4
    assert samples_of(groups)[0].messages[-1] == user("left 0")


def test_the_budget_of_turns() -> None:
    groups, engine = run(lambda: Countdown(turns=9), max_turns=2)
    assert reasons(groups) == ["turns"] * 4
    assert len(engine.calls) == 2


def test_the_budget_of_tokens_is_never_exceeded() -> None:
    # An action is "aN" and the end, 3 tokens; an observation "<|user|>left N<|end|><|assistant|>", 9. With at most 12
    # to come, three actions need up to 3 + 9 + 3 + 9 + 12 = 36.
    for budget, turns in ((36, 3), (35, 2), (24, 2), (23, 1), (12, 1)):
        groups, _ = run(lambda: Countdown(turns=9), max_turns=3, max_tokens=budget)
        assert [len(t.turns) for t in samples_of(groups)] == [turns] * 4
        assert reasons(groups) == ["turns" if turns == 3 else "tokens"] * 4
        assert max(len(t.token_ids) for t in samples_of(groups)) <= budget


def test_a_budget_without_room_for_one_action_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_tokens is 11, less than the 12 .* lower sampling\.max_new_tokens"):
        run(max_tokens=11)


def test_the_models_context_is_never_exceeded() -> None:
    first = len(run()[0][0].trajectories[0].prompt_ids)
    groups, engine = run(lambda: Countdown(turns=99), context=first + 60, max_turns=50)
    assert set(reasons(groups)) == {"tokens"}
    assert max(len(prompt) for prompt, _ in asked_with(engine)) + 12 <= first + 60


def test_a_start_beyond_the_context_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the episode of task 'left' starts with \d+ tokens, .* context of 20; shorten"
    ):
        run(context=20)


def test_a_cut_action_ends_the_episode() -> None:
    groups, _ = run(say=lambda prompt, index: "much too long" if "left" in prompt else "b", max_turns=5)
    assert reasons(groups) == ["length"] * 4
    assert [len(t.turns) for t in samples_of(groups)] == [1, 1, 2, 2]  # the prompt of one task holds the word
    cut = samples_of(groups)[2]
    assert (len(cut.turns), cut.finish_reason, cut.turns[-1].reward) == (2, "length", 1.0)


def test_a_stop_text_ends_an_action_and_the_template_goes_on() -> None:
    groups, _ = run(say=lambda prompt, index: "<call>", work=chunk(stop=("</call>", ">")))
    trajectory = samples_of(groups)[0]
    assert trajectory.stop_reason == "done"
    assert trajectory.turns[0].completion.token_ids[-1] != TOKENIZER.eos_token_id
    assert trajectory.turns[1].prompt_ids[0] == TOKENIZER.eos_token_id  # the template's, not an action
    text = TOKENIZER.decode([*trajectory.prompt_ids, *trajectory.token_ids])
    assert "<|assistant|><call><|end|><|user|>left 2<|end|><|assistant|><call>" in text


def test_episodes_that_end_early_leave_the_others_alone() -> None:
    class Unequal(Countdown):
        def step(self, message: Message) -> Step:
            step = super().step(message)
            return replace(step, done=step.done or message["content"] == "a1")

    groups, engine = run(Unequal)
    assert [len(t.turns) for t in samples_of(groups)] == [3, 1, 3, 1]
    assert [sum(len(r.seeds) for r in call) for call in engine.calls] == [4, 2, 2]


# Rewards


def test_rewards_of_turns_are_summed() -> None:
    groups, _ = run()
    trajectory = samples_of(groups)[0]
    assert [turn.reward for turn in trajectory.turns] == [2.0, 1.0, 0.0]
    assert environment_reward(trajectory) == {"turns": [2.0, 1.0, 0.0]}
    assert [turn.observation for turn in trajectory.turns][1] == (user("left 1"),)


def test_rewards_read_the_whole_episode() -> None:
    from rlft.reward.contract import call_arguments, plan_call

    def of_batch(prompts: list[Any], completions: list[Any]) -> list[float]:
        return []

    def of_sample(completion: str, messages: list[Any]) -> float:
        return 0.0

    group = run()[0][0]
    spec = RewardSpec(path="x:y", weight=1.0)
    arguments = call_arguments(plan_call(of_batch, spec), spec, group, None)
    shown = [dict(message) for message in group.trajectories[1].messages]
    assert (arguments["prompts"][1], arguments["completions"][1]) == (shown[:2], shown[2:])
    assert [m["role"] for m in arguments["completions"][0]] == ["assistant", "user"] * 3
    arguments = call_arguments(plan_call(of_sample, spec), spec, group, 1)
    assert (arguments["completion"], arguments["messages"]) == ("a0", shown)


def test_metrics_and_the_stored_table_tell_of_turns() -> None:
    import io
    import json

    import pyarrow.parquet as pq

    from rlft.run.rollout_table import to_parquet
    from rlft.train.rl.metrics import describe

    scored = [
        replace(group, trajectories=tuple(replace(t, outcome=Score(value=1.0)) for t in group.trajectories))
        for group in run()[0]
    ]
    assert describe(scored)["rollout/turns"] == 3
    rows = pq.read_table(io.BytesIO(to_parquet(scored, step=1))).to_pylist()
    trajectory = scored[0].trajectories[0]
    assert json.loads(rows[0]["conversation"]) == list(trajectory.messages)
    assert (rows[0]["turns"], rows[0]["stop_reason"], rows[0]["environment_reward"]) == (3, "done", 3.0)
    assert tuple(rows[0]["action_mask"]) == trajectory.action_mask


def test_no_reward_is_no_zero() -> None:
    groups, _ = run(lambda: Countdown(given=None))
    assert environment_reward(samples_of(groups)[0]) is None
    scorer = Scorer(
        [RewardSpec(path="rewards.environment_reward:environment_reward", weight=1.0)],
        workers=0,
        deadline_s=10,
        log_dir=None,
    )
    with scorer:
        assert scorer.score(groups)[0].scores == []


# Failures


class Fragile(Countdown):
    """Raises in the second turn of the samples that say a1."""

    def step(self, message: Message) -> Step:
        step = super().step(message)
        if self.log[0] == "a1" and len(self.log) == 2:
            raise RuntimeError("the shop is closed")
        return step


class AsyncFragile(Fragile):
    async def step(self, message: Message) -> Step:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().step(message)


@pytest.mark.parametrize("episode", [Fragile, AsyncFragile])
def test_an_environment_that_raises_fails_its_sample_alone(episode: type[Countdown]) -> None:
    made: list[Countdown] = []

    def make() -> Countdown:
        made.append(episode())
        return made[-1]

    groups, _ = run(make)
    assert reasons(groups) == ["done", "error", "done", "error"]
    failed = groups[0].trajectories[1]
    assert isinstance(failed.outcome, Failed)
    assert failed.outcome.kind == "error"
    assert "the environment raised in turn 2" in failed.outcome.message
    assert "RuntimeError: the shop is closed" in failed.outcome.message
    assert "actions = ['a1', 'a0']" in failed.outcome.reproduce
    assert "--task 'left'" in failed.outcome.reproduce
    assert failed.messages[-1] == {"role": "assistant", "content": "a0"}
    scorer = Scorer(
        [RewardSpec(path="rewards.environment_reward:environment_reward", weight=1.0)],
        workers=0,
        deadline_s=10,
        log_dir=None,
    )
    with scorer:
        scored = scorer.score(groups)
    assert [group.scores for group in scored] == [[3.0], [3.0]]  # no baseline sees a zero for the failure
    assert collate(scored).num_sequences == 2
    assert [one.closed for one in made] == [1] * 4


class Hanging(Countdown):
    """Hangs in the second turn of the samples that say a1."""

    def step(self, message: Message) -> Step:
        step = super().step(message)
        if self.log[0] == "a1" and len(self.log) == 2:
            time.sleep(60)
        return step


class AsyncHanging(Countdown):
    async def step(self, message: Message) -> Step:  # type: ignore[override]
        step = super().step(message)
        if self.log[0] == "a1" and len(self.log) == 2:
            await asyncio.sleep(60)
        return step


@pytest.mark.parametrize("episode", [Hanging, AsyncHanging])
def test_a_step_that_hangs_fails_its_sample_alone(episode: type[Countdown]) -> None:
    began = time.monotonic()
    groups, _ = run(episode, step_deadline_s=0.1)
    assert time.monotonic() - began < 20
    assert reasons(groups) == ["done", "error", "done", "error"]
    failed = groups[0].trajectories[1].outcome
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.fault) == ("timeout", "environment")
    assert failed.where.startswith(__file__)
    assert failed.message == (
        f"the environment did not answer in turn 2 within step_deadline_s=0.1, while it was at {failed.where}"
    )
    assert "actions = ['a1', 'a0']" in failed.reproduce


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "step() returned NoneType; return rlft.environment.contract.Step"),
        (Step(messages=(user("x"),), reward=float("nan")), "step() returned the reward nan"),
        (Step(reward=1.0), "step(): the prompt has no messages"),
        (Step(messages=({"content": "x"},)), "message 0 needs the keys 'role' and 'content'"),  # type: ignore[typeddict-item]
    ],
)
def test_an_answer_that_makes_no_sense_fails_the_sample(answer: Any, message: str) -> None:
    class Odd(Countdown):
        def step(self, message: Message) -> Any:
            return answer

    trajectory = samples_of(run(Odd)[0])[0]
    assert isinstance(trajectory.outcome, Failed)
    assert message in trajectory.outcome.message
    assert trajectory.environment_reward is None


@pytest.mark.parametrize("done", [False, True])
def test_half_a_surrogate_pair_in_an_observation_is_spelt_out(done: bool) -> None:
    class Cut(Countdown):
        def step(self, message: Message) -> Step:
            call = {"type": "function", "function": {"name": "f", "arguments": {"\ud83d": ["\ud83d"]}}}
            answer: Message = {"role": "tool", "content": "cut \ud83d", "name": "\ud83d", "tool_calls": [call]}
            return Step(messages=(answer,), reward=1.0, done=done)

    groups, _ = run(Cut, max_turns=2)
    assert reasons(groups) == ["done" if done else "turns"] * 4
    for trajectory in samples_of(groups):
        assert trajectory.turns[0].observation[0]["content"] == "cut \\ud83d"
        json.dumps(trajectory.messages, ensure_ascii=False).encode()  # also names and calls are whole
    if not done:
        assert "cut \\ud83d" in TOKENIZER.decode(list(samples_of(groups)[0].turns[1].prompt_ids))


def test_half_a_surrogate_pair_that_a_tool_was_called_with_stops_nothing() -> None:
    def shout(text: str) -> str:
        """
        Repeats a text.

        Args:
            text: what to repeat
        """
        return text

    tools = make_tools(shout)
    call = '<tool_call>{"name": "%s", "arguments": {"text": "x\\ud83d"}}</tool_call>'
    for name, answer in (("shout", "x\\ud83d"), ("\\ud83d", "error: no tool '\\ud83d'; there is shout.")):
        groups, _ = run(
            lambda: ToolEpisode(tools),
            lambda prompt, index, name=name: call % name,  # type: ignore[misc]
            work=chunk(max_new_tokens=99),
            max_turns=2,
        )
        assert reasons(groups) == ["turns"] * 4
        assert samples_of(groups)[0].messages[2]["content"] == answer


def test_half_a_surrogate_pair_in_a_first_prompt_is_refused() -> None:
    cut = (Task(id="cut", messages=(user("Read this: \ud83d and go on"),)),)
    told = r"task 'cut', sample 0: a text holds half a surrogate pair, .* at the end of 'Read this: \\ud83d'; .* mend"
    with pytest.raises(ValueError, match=told):
        run(work=chunk(tasks=cut))


def test_an_episode_that_cannot_close_is_a_failure() -> None:
    class Stuck(Countdown):
        async def close(self) -> None:  # type: ignore[override]
            raise OSError("the door is stuck")

    outcome = samples_of(run(Stuck)[0])[0].outcome
    assert isinstance(outcome, Failed)
    assert "while it closed" in outcome.message


def test_a_start_that_differs_within_a_group_is_refused() -> None:
    made: list[Countdown] = []

    class Moody(Countdown):
        def start(self, task: Task, seed: int) -> list[Message]:
            made.append(self)
            return [user(f"take {len(made)}")]

    with pytest.raises(ValueError, match=r"task 'left', sample 1: start\(task, seed\) returned other messages"):
        run(Moody)
    assert [one.closed for one in made] == [1, 1]


def test_a_start_that_raises_is_refused() -> None:
    class Broken(Countdown):
        def start(self, task: Task, seed: int) -> list[Message]:
            raise KeyError("board")

    with pytest.raises(ValueError, match=r"(?s)task 'left', sample 0: the episode could not start:.*KeyError: 'board'"):
        run(Broken)


def test_async_steps_wait_together_on_one_loop() -> None:
    running, most, loops = 0, 0, set()

    class Slow(Countdown):
        async def step(self, message: Message) -> Step:  # type: ignore[override]
            nonlocal running, most
            loops.add(asyncio.get_running_loop())
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return super().step(message)

    groups, _ = run(Slow)
    assert (most, len(loops)) == (4, 1)
    assert groups == run()[0]


def test_an_episode_cannot_change_the_stored_conversation() -> None:
    class Vandal(Countdown):
        def step(self, message: Message) -> Step:
            message["content"] = "forged"
            return super().step(message)

    assert samples_of(run(Vandal)[0])[0].text == "a0"
    assert samples_of(run(Vandal)[0])[0].messages[2]["content"] == "a0"
