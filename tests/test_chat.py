"""`rlft chat`: replies are those of rollouts, stopped and ended by a person, and only text on the screen."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlft.cli import chat as terminal
from rlft.cli import main
from rlft.cli.run_config import load_run
from rlft.config import RunConfig
from rlft.rollout.chunk import Chunk
from rlft.rollout.worker import RolloutWorker
from rlft.train import talk as talking
from rlft.train.talk import Reply, StopReply, Talk, talk_to_run
from rlft.types import Message, Task


@pytest.fixture
def talk(finished_run: Path) -> Talk:
    return talk_to_run(finished_run, changes={}, seed=3)


def in_rollouts(config: RunConfig, talk: Talk, messages: list[Message], which: int) -> str:
    """What a rollout worker samples with the same seed: the text of a task that has these messages."""
    worker = RolloutWorker(config, str(config.model.source))
    adapter = talk.speakers[which].adapter
    worker.load_adapter(adapter)
    chunk = Chunk(
        tasks=(Task(id="", messages=tuple(messages)),),
        samples_per_task=1,
        params=talk.params,
        run_seed=3,
        stream=talking.STREAM,
        step=1,
        version=adapter.version,
    )
    return worker.run_chunk(chunk)[0].trajectories[0].text


def test_replies_are_sampled_as_in_rollouts(talk: Talk, finished_run: Path) -> None:
    config = load_run(finished_run, None)
    assert talk.params.max_new_tokens == config.sampling.max_new_tokens == 12
    talk.say("hello")
    prompt = list(talk.speakers[0].messages)
    texts = [in_rollouts(config, talk, prompt, which) for which in (0, 1)]
    shown: list[str] = []
    replies = [talk.reply(speaker, shown.append) for speaker in talk.speakers]
    assert [reply.text for reply in replies] == texts
    assert texts[0] != texts[1]
    assert shown[11] == texts[0]
    assert len(shown) == sum(reply.tokens for reply in replies)
    assert [speaker.messages[-1]["content"] for speaker in talk.speakers] == texts


def test_every_speaker_has_a_conversation_of_its_own(finished_run: Path) -> None:
    talk = talk_to_run(finished_run, changes={"max_new_tokens": 2, "temperature": 0.0}, seed=0, system="Be brief.")
    assert [speaker.label for speaker in talk.speakers] == ["base", "trained (v000004)"]
    for text in ("one", "two"):
        talk.say(text)
        for speaker in talk.speakers:
            talk.reply(speaker)
    for speaker in talk.speakers:
        roles = [message["role"] for message in speaker.messages]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
    talk.say("three")
    talk.reply(talk.speakers[0])
    talk.take_back()
    assert {len(speaker.messages) for speaker in talk.speakers} == {5}
    talk.begin()
    assert {len(speaker.messages) for speaker in talk.speakers} == {1}


def test_a_reply_that_is_stopped_counts_as_far_as_it_came(talk: Talk) -> None:
    talk.say("hello")
    whole = talk.reply(talk.speakers[1]).text
    talk.take_back()
    talk.say("hello")
    texts: list[str] = []

    def stop(text: str) -> None:
        texts.append(text)
        if len(texts) == 3:
            raise StopReply

    talk._turn = 1  # the same random numbers
    reply = talk.reply(talk.speakers[1], stop)
    assert (reply.tokens, reply.ended) == (3, "stopped")
    assert reply.text == texts[-1] == talk.speakers[1].messages[-1]["content"]
    assert len(reply.text) < len(whole)


def test_ctrl_c_stops_a_reply_and_not_the_program(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=(file := io.StringIO()), force_terminal=True, width=100)
    columns, drawn = terminal._columns, [0]

    def pressing(shown: dict[str, tuple[str, str]]) -> object:
        drawn[0] += 1
        if drawn[0] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return columns(shown)

    monkeypatch.setattr(terminal, "_columns", pressing)
    before = signal.getsignal(signal.SIGINT)
    with terminal._stopping() as stop:
        terminal._exchange(console, talk, "hello", stop)
        assert "stopped" in file.getvalue()
        assert "12 tokens, cut" in file.getvalue()  # the other one came whole
        with pytest.raises(KeyboardInterrupt):  # at the prompt it is taken as usual
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_what_a_model_says_is_only_text_on_the_screen(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "[bold]no\x1b[2J\x07\u202e"
    monkeypatch.setattr(Talk, "reply", lambda self, speaker, on_text: Reply(text=hostile, tokens=1, ended="stop"))
    for is_terminal in (False, True):
        console = Console(file=(file := io.StringIO()), force_terminal=is_terminal, width=100, color_system=None)
        with terminal._stopping() as stop:
            terminal._exchange(console, talk, "hello", stop)
        out = file.getvalue()
        assert "[bold]no" in out
        assert "\x1b[2J" not in out
        assert "\x07" not in out
        assert "\u202e" not in out


def test_a_task_is_answered_by_both_and_scored(finished_run: Path) -> None:
    result = CliRunner().invoke(main.app, ["chat", str(finished_run), "--task", "heldout-1", "--temperature", "0"])
    assert result.exit_code == 0, result.output
    for words in ("heldout1", "(the task's answer: a)", "base:", "trained (v000004):"):
        assert words in result.output
    assert result.output.count("odd: ") == result.output.count("weighted: ") == 2


def test_lines_of_a_script_are_said_one_after_the_other(finished_run: Path) -> None:
    arguments = ["chat", str(finished_run), "--only", "trained", "--max-new-tokens", "4", "--temperature", "0"]
    result = CliRunner().invoke(main.app, arguments, input="hello\n\n/new\nhello\n" + "long " * 60 + "\n/new\n")
    assert result.exit_code == 0, result.output
    assert "base" not in result.output
    first, second = (part.splitlines()[1] for part in result.output.split("trained (v000004) (")[1:3])
    assert first == second != ""  # a new conversation, greedy
    assert "exceed the model's context of 256; /new begins a new conversation" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--task", "nope"], "no task 'nope'; its held-out tasks begin with heldout-0, heldout-1"),
        (["{run}", "--task", "x", "--prompt", "y"], "give one of them"),
        (["{run}", "--adapter", "v9"], "no adapter 'v9'; there are"),
        (["nowhere"], "unknown model 'nowhere'"),
        (["{model}", "--only", "base"], "no run directory, and --task, --adapter and --only are for runs"),
    ],
)
def test_what_cannot_be_talked_to_is_said(
    arguments: list[str], told: str, finished_run: Path, tiny_model: Path
) -> None:
    filled = [each.format(run=finished_run, model=tiny_model) for each in arguments]
    result = CliRunner().invoke(main.app, ["chat", *filled])
    assert told in str(result.exception)
