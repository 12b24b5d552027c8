"""Preferences with tools and completions of several messages: what is shown, and which tokens are trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rewards.reward_model import reward_model as score_as_function
from rlft.config import AdapterConfig, LearnerConfig, ModelConfig
from rlft.learner import reward_model
from rlft.learner.batch import pack
from rlft.learner.core import Roles
from rlft.model import chat, special_tokens
from rlft.train.preference import launch as launch_dpo
from rlft.train.preference.config import PreferenceConfig, PreferenceDataConfig
from rlft.train.preference.data import Example, PreferenceData, load, make_batch
from rlft.train.preference.rows import parse
from rlft.train.reward_model import launch as launch_reward
from tests.chat_templates import QWEN3, QWEN25, tokenizer_of
from tests.fakes import byte_tokenizer, read_metrics, save_tiny_model
from tests.fakes_reward import reward_model_config
from tests.sweeps import swept
from tests.test_preference_data import assistant, user, write

MULTIPLY: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiplies.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
ASK = user("17 * 23?")


def call(**arguments: Any) -> dict[str, Any]:
    function = {"name": "multiply", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def tool(content: str) -> dict[str, str]:
    return {"role": "tool", "name": "multiply", "content": content}


PAIR: dict[str, Any] = {
    "prompt": [ASK],
    "chosen": [call(a=17, b=23), tool("391"), assistant("It is 391.")],
    "rejected": [call(a=17, b=2), tool("34"), call(a=34, b=11), tool("374"), assistant("374")],
    "tools": json.dumps([MULTIPLY]),
}
SINGLE = {"prompt": [ASK], "completion": PAIR["chosen"], "label": True, "tools": PAIR["tools"]}


def read(
    path: Path, tokenizer: PreTrainedTokenizerFast, *, paired: bool = True, is_reward_model: bool = False
) -> PreferenceData:
    settings = PreferenceDataConfig(source=str(path), heldout=0)  # type: ignore[call-arg]
    ends = frozenset([tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|end|>")]) - {None}
    return load(settings, tokenizer, None if is_reward_model else ends, context=4096, paired=paired)


def example_of(row: dict[str, Any], folder: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Example:
    (example,) = read(write(folder / "data.jsonl", [row]), tokenizer, **options).train
    return example


def spans(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], mask: Sequence[bool]) -> list[tuple[bool, str]]:
    """The runs of actions and of what lies between them, as text."""
    runs = groupby(zip(mask, token_ids, strict=True), key=lambda pair: pair[0])
    return [(is_action, tokenizer.decode([token for _, token in run])) for is_action, run in runs]


def called(**arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "multiply", "arguments": {json.dumps(arguments)}}}\n</tool_call><|im_end|>'


def told(content: str) -> str:
    """A tool's answer and the mark that opens the next reply."""
    return f"\n<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


# What is shown, and what is trained on


@pytest.mark.parametrize("as_json", [True, False], ids=["JSON", "list"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_tools_are_shown_as_in_rollouts(tmp_path: Path, name: str, as_json: bool) -> None:
    # Beside it a tool with other arguments: a table gives both schemas all keys.
    look_up: dict[str, Any] = {"type": "function", "function": {"name": "look_up", "parameters": {"words": 1}}}
    rows = [
        {"prompt": [ASK], "chosen": [assistant("391")], "rejected": [assistant("1")], "tools": [shown]}
        for shown in (MULTIPLY, look_up)
    ]
    if as_json:
        rows = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
    tokenizer = tokenizer_of("qwen2.5")
    first, second = read(write(tmp_path / name, rows), tokenizer).train
    assert first.prompt_ids == chat.render(tokenizer, [ASK], tools=[MULTIPLY])  # type: ignore[list-item]
    assert second.prompt_ids == chat.render(tokenizer, [ASK], tools=[look_up])  # type: ignore[list-item]
    assert first.id != second.id


EXPECTED = {
    "qwen2.5": [
        [(True, called(a=17, b=23)), (False, told("391")), (True, "It is 391.<|im_end|>")],
        [
            (True, called(a=17, b=2)),
            (False, told("34")),
            (True, called(a=34, b=11)),
            (False, told("374")),
            (True, "374<|im_end|>"),
        ],
    ],
}
THOUGHT = "<think>\n\n</think>\n\n"
EXPECTED["qwen3"] = [[*runs[:-1], (True, THOUGHT + runs[-1][1])] for runs in EXPECTED["qwen2.5"]]


@pytest.mark.parametrize("name", EXPECTED)
def test_only_the_assistants_tokens_are_trained_on(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(name)
    pair = example_of(PAIR, tmp_path, tokenizer)
    assert pair.prompt_ids == chat.render(tokenizer, [ASK], tools=[MULTIPLY])  # type: ignore[list-item]
    found = [spans(tokenizer, ids, mask) for ids, mask in zip(pair.completions, pair.action_mask, strict=True)]
    assert found == EXPECTED[name]
    alone = example_of(SINGLE, tmp_path, tokenizer, paired=False)
    assert (alone.prompt_ids, alone.completions, alone.action_mask) == (
        pair.prompt_ids,
        pair.completions[:1],
        pair.action_mask[:1],
    )
    apart = read(write(tmp_path / "data.jsonl", [PAIR]), tokenizer, paired=False).train
    assert [e.completions[0] for e in apart] == list(pair.completions)
    assert [e.action_mask[0] for e in apart] == list(pair.action_mask)


def test_an_episode_is_that_of_the_driver(tmp_path: Path) -> None:
    # As the driver appends them: the first prompt, an action, what the environment says, an action.
    tokenizer = tokenizer_of("qwen2.5")
    example = example_of(PAIR, tmp_path, tokenizer)
    tools = [MULTIPLY]
    sampled = tuple(tokenizer(called(a=17, b=23), add_special_tokens=False)["input_ids"])
    between = chat.render_observation(tokenizer, [tool("391")], after=sampled, tools=tools)  # type: ignore[list-item]
    answer = tuple(tokenizer("It is 391.<|im_end|>", add_special_tokens=False)["input_ids"])
    assert example.prompt_ids == chat.render(tokenizer, [ASK], tools=tools)  # type: ignore[list-item]
    assert example.completions[0] == (*sampled, *between, *answer)
    assert example.action_mask[0] == (True,) * len(sampled) + (False,) * len(between) + (True,) * len(answer)


@pytest.mark.parametrize("name", ["chatml", "llama3", "strict", "qwen2.5", "qwen3"])
def test_turns_of_the_user_are_not_trained_on(name: str) -> None:
    tokenizer = tokenizer_of(name)
    end = {"llama3": "<|eot_id|>", "strict": "<end_of_turn>"}.get(name, "<|im_end|>")
    turns = [assistant("Hello"), user("Sky?"), assistant("blue")]
    prompt, ids, mask = chat.render_completion(
        tokenizer,
        [user("Hi")],  # type: ignore[list-item]
        turns,  # type: ignore[arg-type]
        frozenset([tokenizer.convert_tokens_to_ids(end)]),
    )
    first, between, last = spans(tokenizer, ids, mask)
    assert first == (True, f"Hello{end}")
    assert last == (True, f"{THOUGHT if name == 'qwen3' else ''}blue{end}")
    assert not between[0]
    assert "Sky?" in between[1]
    history = [user("Hi"), *turns[:2]]
    assert (*prompt, *ids[: len(ids) - mask[::-1].index(False)]) == chat.render(tokenizer, history)  # type: ignore[arg-type]


def test_a_template_that_opens_a_turn_with_more_than_it_keeps() -> None:
    # What the policy is given when it samples stands before every one of its turns.
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|assistant|>{% endif", "<|assistant|>(){% endif")
    turns: Any = [assistant("Hello"), user("Sky?"), assistant("blue")]
    prompt, ids, mask = chat.render_completion(tokenizer, [user("Hi")], turns, frozenset([0]))  # type: ignore[list-item]
    assert tokenizer.decode(list(prompt)) == "<|user|>Hi<|end|><|assistant|>()"
    assert spans(tokenizer, ids, mask) == [
        (True, "Hello<|end|>"),
        (False, "<|user|>Sky?<|end|><|assistant|>()"),
        (True, "blue<|end|>"),
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"content": None, "tool_calls": call(a=1, b=2)["tool_calls"]},
        {"tool_calls": call(a=1, b=2)["tool_calls"]},
        {"content": "", "tool_calls": [{"function": {"name": "multiply", "arguments": '{"a": 1, "b": 2}'}}]},
        {"content": "", "tool_calls": [{"name": "multiply", "arguments": {"a": 1, "b": 2}}]},
    ],
    ids=["null", "no content", "arguments as JSON", "flat"],
)
def test_calls_may_be_written_as_apis_do(tmp_path: Path, given: dict[str, Any]) -> None:
    rows = [{**PAIR, "chosen": [{"role": "assistant", **given}, *PAIR["chosen"][1:]]}]
    (row,) = [parse(row, paired=True) for row in rows]
    assert row.completions[0][0] == call(a=1, b=2)
    example = example_of(rows[0], tmp_path, tokenizer_of("qwen2.5"))
    assert spans(tokenizer_of("qwen2.5"), example.completions[0], example.action_mask[0])[0][1] == called(a=1, b=2)


def test_calls_in_a_table_have_no_keys_of_others(tmp_path: Path) -> None:
    rows = [
        {**PAIR, "chosen": [call(a=1, b=2), *PAIR["chosen"][1:]]},
        {**PAIR, "chosen": [call(c=3), tool("?"), assistant("3")]},
    ]
    tokenizer = tokenizer_of("qwen2.5")
    table, lines = (read(write(tmp_path / name, rows), tokenizer) for name in ("data.parquet", "data.jsonl"))
    assert table.train == lines.train
    assert spans(tokenizer, table.train[1].completions[0], table.train[1].action_mask[0])[0][1] == called(c=3)


# Against TRL


def theirs(trainer: type, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, **attributes: Any) -> dict[str, Any]:
    """The row as TRL's trainer tokenises it."""
    from datasets import Dataset

    stub = SimpleNamespace(_tokenizer=tokenizer, **attributes)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    data = trainer._prepare_dataset(stub, Dataset.from_list([row]), tokenizer, args, "train")  # type: ignore[attr-defined]
    return dict(data[0])


ROWS: dict[str, dict[str, Any]] = {
    "tools": PAIR,
    "implicit": {"chosen": [ASK, *PAIR["chosen"]], "rejected": [ASK, *PAIR["rejected"]], "tools": PAIR["tools"]},
    "one message": {"prompt": [ASK], "chosen": [assistant("391")], "rejected": [assistant("1")], "tools": [MULTIPLY]},
    "turns": {
        "prompt": [ASK],
        "chosen": [assistant("391"), user("Sure?"), assistant("Yes.")],
        "rejected": [assistant("no")],
    },
}


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_tokens_are_those_of_trl(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(name)
    own, other = example_of(row, tmp_path, tokenizer), theirs(trl.DPOTrainer, row, tokenizer)
    assert list(own.prompt_ids) == other["prompt_ids"]
    for ids, column in zip(own.completions, ("chosen_ids", "rejected_ids"), strict=True):
        assert tokenizer.decode(other[column][len(ids) :]) == "\n"  # what the template writes behind the last end token
        assert list(ids) == other[column][: len(ids)]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_tokens_of_single_completions_are_those_of_trl(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(name)
    own = example_of(SINGLE, tmp_path, tokenizer, paired=False)
    other = theirs(trl.KTOTrainer, SINGLE, tokenizer, calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0)
    assert list(own.prompt_ids) == other["prompt_ids"]
    assert list(own.completions[0]) == other["completion_ids"][:-1]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_conversations_of_reward_models_are_those_of_trl(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(name)
    own = example_of(row, tmp_path, tokenizer, is_reward_model=True)
    other = theirs(trl.RewardTrainer, row, tokenizer)
    assert own.prompt_ids == ()
    assert list(map(list, own.completions)) == [other["chosen_ids"], other["rejected_ids"]]
    assert ("multiply" in tokenizer.decode(list(own.completions[1]))) == ("tools" in row)


def test_the_mask_is_that_of_trls_own_template() -> None:
    # transformers' mask of what a template generates: it counts the line breaks around a turn too.
    path = Path(trl.__file__).parent / "chat_templates" / "qwen2_5_training.jinja"
    if not path.is_file():
        pytest.skip("this release of TRL has no such template")
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    for completion in (PAIR["chosen"], PAIR["rejected"]):
        shown = tokenizer.apply_chat_template(
            [ASK, *completion], tools=[MULTIPLY], return_dict=True, return_assistant_tokens_mask=True
        )
        end = frozenset([tokenizer.convert_tokens_to_ids("<|im_end|>")])
        prompt, ids, mask = chat.render_completion(tokenizer, [ASK], completion, end, tools=[MULTIPLY])  # type: ignore[list-item]
        own = [text for is_action, text in spans(tokenizer, ids, mask) if is_action]
        generated = spans(tokenizer, shown["input_ids"], [bool(one) for one in shown["assistant_masks"]])
        assert own == [text.strip("\n") for is_generated, text in generated if is_generated]
        assert [*prompt, *ids] == shown["input_ids"][:-1]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([ASK, assistant("391")], [ASK, assistant("1")]),
        ([ASK, *PAIR["chosen"]], [ASK, *PAIR["rejected"]]),
        ([ASK, assistant("x"), ASK, *PAIR["chosen"]], [ASK, assistant("x"), ASK, assistant("1")]),
        (
            [ASK, call(a=1), tool("1"), assistant("2")],
            [ASK, call(a=1), tool("1"), call(a=2), tool("2"), assistant("3")],
        ),
        ([ASK, assistant("x"), user("?"), assistant("y")], [ASK, assistant("x")]),
        ([ASK, assistant("x")], [ASK, assistant("x"), user("?"), assistant("y")]),
    ],
    ids=["last message", "first reply", "later reply", "within an episode", "rejected ends", "chosen ends"],
)
def test_what_both_begin_with_is_the_prompt(chosen: list[Any], rejected: list[Any]) -> None:
    row = parse({"chosen": chosen, "rejected": rejected}, paired=True)
    other = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
    assert [row.prompt, *row.completions] == [other["prompt"], other["chosen"], other["rejected"]]


# What cannot be used


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": "[{"}, "tools: not JSON: .*; it must be a list of JSON schemas"),
        ({"tools": '{"type": "function"}'}, "tools must be a list of JSON schemas.*found .*type"),
        ({"tools": ["multiply"]}, "tools must be a list of JSON schemas.*found .*multiply"),
        ({"prompt": "17 * 23?", "chosen": "391", "rejected": "1"}, "plain text goes without; make messages"),
        ({"chosen": [{"role": "assistant"}]}, "chosen: a message must have a role and a content.*or tool_calls"),
        ({"chosen": [{**call(), "tool_calls": ["multiply"]}]}, "chosen: a call in tool_calls must be .*found multiply"),
        ({"chosen": [{**call(), "tool_calls": [{"name": "f", "arguments": "{a"}]}]}, "broken on purpose goes into the"),
        ({"chosen": [{**call(), "tool_calls": [{"function": {"arguments": {}}}]}]}, "a call in tool_calls must be"),
        ({"chosen": [assistant(""), user("?"), assistant("x")]}, "a completion is empty, or a reply in it"),
        ({"chosen": PAIR["chosen"][:2]}, "the last message is of role 'tool'; it must be the assistant's"),
        ({"chosen": PAIR["chosen"][1:]}, "begins with a message of role 'tool'; .* put what comes before that into"),
        ({"prompt": [ASK, call(a=1)]}, "the prompt must be messages that end with another's than the assistant's"),
        ({"chosen": PAIR["rejected"]}, "chosen and rejected are the same, so there is nothing to prefer"),
        ({"chosen": [{**call(a=17, b=2), "name": "x"}, *PAIR["rejected"][1:]]}, "chosen and rejected are the same"),
        ({"chosen": [assistant("\ud83d"), user("?"), assistant("x")]}, "half a surrogate pair"),
        ({"chosen": [call(a="\ud83d"), tool("?"), assistant("x")]}, "half a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "data.jsonl", [PAIR, {**PAIR, **change}])
    for is_reward_model in (False, True):
        with pytest.raises(ValueError, match=rf"data\.jsonl:2: .*{words}"):
            read(path, tokenizer_of("qwen2.5"), is_reward_model=is_reward_model)


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        ([call(a=1), tool("1"), assistant("x")], [call(a=1), tool("2"), assistant("y")], "message 3 on, of role tool"),
        ([assistant("x"), user("A?"), assistant("y")], [assistant("x"), user("B?"), assistant("y")], "of role user"),
        ([assistant("x"), user("A?"), assistant("y")], [assistant("x"), assistant("y")], "of role assistant and user"),
        ([assistant("x"), assistant("y")], [assistant("x"), assistant("z")], "end with another's than the assistant's"),
        ([assistant("x"), user("A?")], [assistant("x"), user("A?"), assistant("y")], "message 3 on, of role user"),
        ([assistant("x"), user("A?")], [assistant("y")], "the last message is of role 'user'"),
    ],
)
def test_conversations_that_part_elsewhere_than_at_a_reply(chosen: Any, rejected: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse({"chosen": [ASK, *chosen], "rejected": [ASK, *rejected]}, paired=True)


@pytest.mark.parametrize("is_reward_model", [False, True])
def test_a_template_that_leaves_out_tools_or_calls_is_refused(tmp_path: Path, is_reward_model: bool) -> None:
    def refused(row: dict[str, Any], template: str) -> str:
        tokenizer = tokenizer_of("qwen2.5")
        tokenizer.chat_template = template
        with pytest.raises(ValueError) as caught:
            example_of(row, tmp_path, tokenizer, is_reward_model=is_reward_model)
        return str(caught.value)

    chatml = str(tokenizer_of("chatml").chat_template)
    one = {**PAIR, "chosen": [assistant("391")], "rejected": [assistant("1")]}
    assert "data.jsonl:1: the chat template does not show the column tools" in refused(one, chatml)
    only_with_system = QWEN25.replace("{%- if tools -%}", "{%- if tools and messages | length == 1 -%}")
    assert "does not show the column tools" in refused(one, only_with_system)
    assert "leaves out the tool_calls of message 2 (assistant)" in refused({**PAIR, "tools": None}, chatml)
    silent = QWEN25.replace("m.tool_calls or []", "[]")
    assert "leaves out the tool_calls of message 2 (assistant)" in refused(PAIR, silent)
    thinking = {**PAIR, "chosen": [{**PAIR["chosen"][0], "reasoning_content": "Hm."}, *PAIR["chosen"][1:]]}
    assert "leaves out the tool_calls of message 2" in refused(thinking, QWEN3.replace("m.tool_calls or []", "[]"))
    earlier = {**one, "prompt": [ASK, call(a=1), tool("1")]}
    assert "leaves out the tool_calls of message 2" in refused(earlier, silent)


@pytest.mark.parametrize(
    "thinking",
    [{"role": "assistant", "content": "391", "reasoning_content": "Hm."}, {**call(a=1), "reasoning_content": "Hm."}],
    ids=["reply", "call"],
)
def test_thoughts_that_the_template_takes_back_are_refused(tmp_path: Path, thinking: dict[str, Any]) -> None:
    tokenizer = tokenizer_of("qwen3")
    row = {**PAIR, "chosen": [thinking, user("Sure?"), assistant("Yes.")]}
    with pytest.raises(
        ValueError, match=r"data\.jsonl:1: .* otherwise when other messages follow it: .*Hm\..* becomes"
    ):
        example_of(row, tmp_path, tokenizer)
    last = example_of({**PAIR, "chosen": [assistant("?"), user("!"), thinking]}, tmp_path, tokenizer)
    assert "<think>\nHm.\n</think>\n\n" in spans(tokenizer, last.completions[0], last.action_mask[0])[-1][1]
    assert example_of(row, tmp_path, tokenizer, is_reward_model=True)  # which reads what the template writes


def test_a_template_that_closes_a_thought_only_in_the_last_reply_is_refused() -> None:
    # As Qwen 3.5 does: an earlier reply would stand inside the thought that the turn opens with.
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "'<|im_start|>assistant\\n' }}{%- endif -%}", "'<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}"
    )
    end = frozenset([tokenizer.convert_tokens_to_ids("<|im_end|>")])
    turns: Any = [assistant("Hello"), user("Sky?"), assistant("blue")]
    with pytest.raises(
        ValueError, match=r"otherwise when other messages follow it: '\\n</think>\\n\\nHello.*' becomes"
    ):
        chat.render_completion(tokenizer, [user("Hi")], turns, end)  # type: ignore[list-item]
    prompt, ids, _ = chat.render_completion(tokenizer, [user("Hi")], turns[:1], end)  # type: ignore[list-item]
    assert tokenizer.decode([*prompt, *ids]).endswith("assistant\n<think>\n\n</think>\n\nHello<|im_end|>")


def test_an_end_token_inside_an_earlier_reply_is_refused(tmp_path: Path) -> None:
    row = {**PAIR, "chosen": [assistant("a<|im_end|>b"), user("?"), assistant("x")]}
    tokenizer = tokenizer_of("qwen2.5")
    special_tokens.set_policy(tokenizer, "allow")
    with pytest.raises(ValueError, match=r"'a<\|im_end\|>b' becomes '<\|im_start\|>assistant\\na', .*end token"):
        example_of(row, tmp_path, tokenizer)


def test_a_turn_without_an_end_token_is_refused() -> None:
    tokenizer = tokenizer_of("strict")
    turns: Any = [assistant("Hello"), user("Sky?"), assistant("blue")]
    eos = frozenset([tokenizer.eos_token_id])
    with pytest.raises(ValueError, match=r"none of the model's end tokens behind a reply.*generation_config\.json"):
        chat.render_completion(tokenizer, [user("Hi")], turns, eos)  # type: ignore[list-item]


def test_a_template_that_rewrites_what_came_before_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.chat_template = "{{ messages | length }}" + QWEN25
    with pytest.raises(
        ValueError, match=r"data\.jsonl:1: .*writes the earlier messages otherwise when a reply follows"
    ):
        example_of(PAIR, tmp_path, tokenizer)


def test_tools_answer_calls_in_the_templates_own_form() -> None:
    # A form that only a call makes possible, as that of gpt-oss and Gemma 4; else the user says what the tool did.
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('no call') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function | tojson }}){% endfor %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    said: Any = [assistant("(call)"), tool("391"), assistant("It is 391.")]
    for completion, role in ((PAIR["chosen"], "tool"), (said, "user")):
        _, ids, mask = chat.render_completion(tokenizer, [ASK], completion, frozenset([0]))  # type: ignore[list-item]
        assert f"<|{role}|>" in spans(tokenizer, ids, mask)[1][1]


# Batches, hashes, runs


def test_a_batch_has_the_actions_only(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen2.5")
    examples = read(write(tmp_path / "data.jsonl", [PAIR, ROWS["one message"]]), tokenizer).train
    batch = make_batch(examples)
    assert batch.action_mask == (*examples[0].action_mask, *examples[1].action_mask)
    actions = [
        token
        for e in examples
        for ids, mask in zip(e.completions, e.action_mask, strict=True)
        for token, is_action in zip(ids, mask, strict=True)
        if is_action
    ]
    assert examples[0].num_actions == sum(sum(mask) for mask in examples[0].action_mask)
    assert examples[0].num_actions < sum(map(len, examples[0].completions))
    assert len(actions) == batch.sequence_index.numel() == batch.rollout_logprobs.numel()
    assert torch.bincount(batch.sequence_index).tolist() == [sum(mask) for mask in batch.action_mask]
    assert pack(batch).target_ids.tolist() == actions
    assert "391\n</tool" not in tokenizer.decode(actions)


def test_hashes_tell_tools_and_masks_apart(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("qwen2.5")
    plain = {key: ROWS["one message"][key] for key in ("prompt", "chosen", "rejected")}
    first, same, other = (
        read(write(tmp_path / "data.jsonl", [{**plain, "tools": tools}]), tokenizer)
        for tools in ([MULTIPLY], json.dumps([MULTIPLY]), [])
    )
    assert (first.hash, first.train[0].id) == (same.hash, same.train[0].id)
    assert first.train[0].id != other.train[0].id
    assert len({first.hash, other.hash}) == 2
    assert other.train[0].id == read(write(tmp_path / "data.jsonl", [plain]), tokenizer).train[0].id

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    one, two = (
        read(write(tmp_path / "data.jsonl", [{**plain, "chosen": [assistant("a"), said, assistant("c")]}]), tokenizer)
        for said in (user("b"), assistant("b"))
    )
    assert one.train[0].completions == two.train[0].completions
    assert one.train[0].action_mask != two.train[0].action_mask
    assert one.hash != two.hash


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for tools and a template that writes them, in marks that its vocabulary has."""
    folder = save_tiny_model(tmp_path_factory.mktemp("tools") / "model", context=1024)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = QWEN25.replace("<|im_start|>", "<|assistant|>").replace("<|im_end|>", "<|end|>")
    tokenizer.save_pretrained(folder)
    return folder


def episodes(count: int) -> list[dict[str, Any]]:
    """Calls and replies of the letter `a`, whose tools answer `b`, preferred to those the other way round."""
    return [
        {
            "prompt": [user(f"say {i}")],
            "chosen": [call(x="a" * (3 + i % 3)), tool(f"{i}bb"), assistant("a" * (1 + i % 2))],
            "rejected": [call(x="b" * (3 + i % 3)), tool(f"{i}aa"), assistant("b" * (1 + i % 4))],
            "tools": [MULTIPLY],
        }
        for i in range(count)
    ]


def test_logprobs_are_of_the_actions_in_their_context(tmp_path: Path, tool_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tool_model)
    settings = PreferenceDataConfig(source=str(write(tmp_path / "data.jsonl", episodes(3))), heldout=0)  # type: ignore[call-arg]
    data = load(settings, tokenizer, frozenset([0]), context=1024, paired=True)
    model_config = ModelConfig(source="", dtype="float32")
    roles = Roles(
        str(tool_model), model_config, AdapterConfig(), LearnerConfig(threads=1), seed=0, with_reference=False
    )
    found = roles.logprobs(make_batch(data.train), roles.policy)
    model = AutoModelForCausalLM.from_pretrained(tool_model)
    expected = []
    for example in data.train:
        for ids, mask in zip(example.completions, example.action_mask, strict=True):
            start = len(example.prompt_ids) - 1
            with torch.no_grad():
                logits = model(torch.tensor([[*example.prompt_ids, *ids]])).logits[0, start:-1]
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            expected.append(logprobs[torch.tensor(mask)])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert found.numel() == sum(example.num_actions for example in data.train)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("loss", swept(["sigmoid", "kto", "orpo"], always=lambda loss: loss != "orpo"))
def test_runs_learn_from_episodes_with_tools(tmp_path: Path, tool_model: Path, loss: str) -> None:
    source = write(tmp_path / "pairs.jsonl", episodes(40))

    def config(name: str, reference_logprobs: str) -> PreferenceConfig:
        return PreferenceConfig.model_validate(
            {
                "name": name,
                "output_dir": str(tmp_path / "runs"),
                "model": {"source": str(tool_model), "dtype": "float32"},
                "adapter": {"rank": 4, "alpha": 8},
                "data": {"source": str(source), "heldout": 0.2},
                "preference": {"loss": loss, "beta": 0.3},
                "reference_logprobs": reference_logprobs,
                "epochs": 2,
                "batch_size": 8,
                "learner": {"lr": 1e-2, "threads": 1},
            }
        )

    summary = launch_dpo.train(config("precomputed", "precomputed"))
    assert summary["accuracy_trained"]["mean"] == 1.0
    assert summary["margin_trained"] > summary["margin_base"]
    if loss != "sigmoid":  # test_preference_loop compares the two for other losses; ORPO needs no reference
        return
    launch_dpo.train(config("live", "live"))
    runs = [read_metrics(tmp_path / "runs" / name) for name in ("precomputed", "live")]
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.timeout(120)
def test_a_reward_model_is_trained_on_episodes_with_tools(tmp_path: Path, tool_model: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", episodes(40))
    config = reward_model_config(tmp_path, tool_model, data={"source": str(source)}, epochs=4)
    summary = launch_reward.train(config)
    assert summary["accuracy_after"]["mean"] > 0.9
    folder = config.run_dir / summary["reward_model"]
    assert json.loads((folder / "reward_model.json").read_text())["tools"]
    with pytest.raises(ValueError, match=r"conversations that show tools, .* use it as the reward adapter:FOLDER"):
        score_as_function([[user("x")]], [[assistant("y")]], folder=str(folder))


def test_a_reward_model_in_rl_reads_what_it_was_trained_on(tmp_path: Path, tool_model: Path) -> None:
    tokenizer = chat.load_tokenizer(tool_model)
    rows = episodes(1)
    settings = PreferenceDataConfig(source=str(write(tmp_path / "data.jsonl", rows)), heldout=0)  # type: ignore[call-arg]
    (example,) = load(settings, tokenizer, None, context=1024, paired=True).train
    model: Any = SimpleNamespace(tokenizer=tokenizer, shows_tools=True)
    said = [[[*rows[0]["prompt"], *rows[0][name]] for name in ("chosen", "rejected")]]
    batch = reward_model.conversations(model, said, tools=rows[0]["tools"])
    for prompt, rest, trained in zip(batch.prompt_ids, batch.token_ids, example.completions, strict=True):
        assert (*prompt, *rest) == special_tokens.without_padding(trained, tokenizer.pad_token_id)
    # One that was trained on conversations without tools is not shown any.
    model.shows_tools = False
    (plain,) = load(
        settings.model_copy(update={"source": str(write(tmp_path / "plain.jsonl", [{**rows[0], "tools": None}]))}),
        tokenizer,
        None,
        context=1024,
        paired=True,
    ).train
    batch = reward_model.conversations(model, said, tools=rows[0]["tools"])
    assert (*batch.prompt_ids[0], *batch.token_ids[0]) == special_tokens.without_padding(
        plain.completions[0], tokenizer.pad_token_id
    )
