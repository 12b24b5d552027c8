"""Preferences from files and the hub: every convention, what each row becomes, and every row that cannot be used."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rlft.learner.batch import num_tokens, pack
from rlft.learner.microbatches import microbatches
from rlft.model import chat, special_tokens
from rlft.train.preference.config import PreferenceDataConfig
from rlft.train.preference.data import Example, PreferenceData, load, make_batch, row_id
from rlft.train.preference.rows import parse
from tests.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = frozenset([0])


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


PAIR: dict[str, Any] = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CHAT_PAIR: dict[str, Any] = {
    "prompt": [user("Sky?")],
    "chosen": [assistant("blue")],
    "rejected": [assistant("green")],
}
SINGLE: dict[str, Any] = {"prompt": "The sky is", "completion": " blue.", "label": True}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """The rows in the format that the file's name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, *, paired: bool = True, context: int = 256, **config: Any) -> PreferenceData:
    settings = PreferenceDataConfig(source=str(path), **{"heldout": 0.0, **config})
    return load(settings, TOKENIZER, END, context=context, paired=paired)


def texts(example: Example) -> tuple[str, ...]:
    """Prompt and completions with their special tokens."""
    return tuple(TOKENIZER.decode(list(ids)) for ids in (example.prompt_ids, *example.completions))


# Conventions

PLAIN = ("The sky is", " blue.<|end|>", " green.<|end|>")
CHAT = ("<|user|>Sky?<|end|><|assistant|>", "blue<|end|>", "green<|end|>")
CONVERSATION = [user("Hi"), assistant("Hello"), user("Sky?")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, PLAIN),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, PLAIN),
        (
            {"chosen": "The sky is black.", "rejected": "The sky is blue."},
            ("The sky is", " black.<|end|>", " blue.<|end|>"),
        ),
        ({"chosen": "Say yes", "rejected": "Say yesterday"}, ("Say", " yes<|end|>", " yesterday<|end|>")),
        (CHAT_PAIR, CHAT),
        ({"chosen": [user("Sky?"), assistant("blue")], "rejected": [user("Sky?"), assistant("green")]}, CHAT),
        (
            {
                "prompt": "Sky?",  # beside whole conversations, as in many data sets
                "chosen": [user("Sky?"), assistant("blue")],
                "rejected": [user("Sky?"), assistant("green")],
                "score_chosen": 7.5,
            },
            CHAT,
        ),
        (
            {"chosen": [*CONVERSATION, assistant("blue")], "rejected": [*CONVERSATION, assistant("green")]},
            ("<|user|>Hi<|end|><|assistant|>Hello<|end|>" + CHAT[0], *CHAT[1:]),
        ),
        (
            {**CHAT_PAIR, "prompt": [{"role": "system", "content": "Be brief"}, user("Sky?")]},
            ("<|system|>Be brief<|end|>" + CHAT[0], *CHAT[1:]),
        ),
        ({**CHAT_PAIR, "prompt": [{**user("Sky?"), "name": None}]}, CHAT),
    ],
    ids=[
        "plain",
        "shared beginning",
        "shared to the word",
        "one begins the other",
        "chat",
        "shared chat",
        "copied prompt",
        "turns",
        "system",
        "empty key",
    ],
)
def test_every_convention_of_a_pair(tmp_path: Path, row: dict[str, Any], expected: tuple[str, ...]) -> None:
    data = read(write(tmp_path / "data.jsonl", [row]))
    assert [texts(example) for example in data.train] == [expected]
    assert data.train[0].labels == (1.0, 0.0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SINGLE, [("The sky is", " blue.<|end|>")]),
        ({"prompt": [user("Sky?")], "completion": [assistant("green")], "label": False}, [(CHAT[0], CHAT[2])]),
        (PAIR, [PLAIN[:2], (PLAIN[0], PLAIN[2])]),
        (CHAT_PAIR, [CHAT[:2], (CHAT[0], CHAT[2])]),
    ],
    ids=["plain", "chat", "plain pair", "chat pair"],
)
def test_every_convention_of_single_completions(tmp_path: Path, row: dict[str, Any], expected: list[Any]) -> None:
    data = read(write(tmp_path / "data.jsonl", [row]), paired=False)
    assert [texts(example) for example in data.train] == expected
    assert [example.labels for example in data.train] == ([(1.0,), (0.0,)] if "chosen" in row else [(row["label"],)])


@pytest.mark.parametrize("label", [True, 1, "true", "1", "True", 1.0, "1.0"])
def test_labels_may_be_words(label: Any) -> None:
    assert parse({**SINGLE, "label": label}, paired=False).labels == (1.0,)
    assert parse({**SINGLE, "label": not label if isinstance(label, bool) else 0.0}, paired=False).labels == (0.0,)


@pytest.mark.parametrize("row", [CHAT_PAIR, {"chosen": CONVERSATION[:2], "rejected": [user("Hi"), assistant("Yo")]}])
def test_messages_in_csv_are_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    expected = read(write(tmp_path / "data.jsonl", [row]))
    as_json = {name: json.dumps(value) for name, value in row.items()}
    assert read(write(tmp_path / "data.csv", [as_json])).train == expected.train
    single = {"prompt": [user("Sky?")], "completion": [assistant("blue")], "label": "1.0"}
    cells = {name: json.dumps(value) if isinstance(value, list) else value for name, value in single.items()}
    found = read(write(tmp_path / "single.csv", [cells]), paired=False)
    assert texts(found.train[0]) == CHAT[:2]
    written = {"prompt": "Who?", "chosen": '[{"name": "Ann"}]', "rejected": "[]"}  # lists that are no messages are text
    assert texts(read(write(tmp_path / "text.csv", [written])).train[0])[1] == '[{"name": "Ann"}]<|end|>'


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.csv", "data.parquet"])
def test_every_file_format_gives_the_same(tmp_path: Path, name: str) -> None:
    rows = [PAIR, {"prompt": "2020-01-02", "chosen": "12", "rejected": "NA"}]
    found = read(write(tmp_path / name, rows))
    assert [texts(example) for example in found.train] == [PLAIN, ("2020-01-02", "12<|end|>", "NA<|end|>")]
    single = read(write(tmp_path / name, [SINGLE, {**SINGLE, "label": False}]), paired=False)
    assert [example.labels for example in single.train] == [(1.0,), (0.0,)]


def test_a_folder_and_a_hub_id_go_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "train.jsonl", [CHAT_PAIR])
    assert [texts(example) for example in read(folder).train] == [CHAT]

    asked: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([CHAT_PAIR, CHAT_PAIR])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    data = read(Path("someone/pairs"), subset="clean", split="test[:2]")
    assert [texts(example) for example in data.train] == [CHAT, CHAT]
    assert asked == [(("someone/pairs", "clean"), {"split": "test[:2]"})]


def test_a_hub_id_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' could not be loaded: .*\n.*\.jsonl, \.json, \.csv"):
        read(Path("nobody/nothing"))


# Rows that cannot be used


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "chosen": "a"}, "no column rejected; it has prompt, chosen"),
        ({"prompt": "p", "chosen": None, "rejected": "a"}, "no column chosen"),
        ({"text": "p"}, "no column chosen and rejected; it has text"),
        (SINGLE, "no column chosen and rejected.*preference.loss=kto"),
        ({**PAIR, "prompt": "  "}, "prompt is empty; fill it"),
        ({**PAIR, "chosen": ""}, "chosen is empty; fill it"),
        ({**CHAT_PAIR, "rejected": []}, "rejected is empty"),
        ({**CHAT_PAIR, "rejected": [assistant(" ")]}, "a completion is empty"),
        ({"chosen": "The sky ", "rejected": "The sky is"}, "a completion is empty"),
        ({**CHAT_PAIR, "prompt": []}, "prompt is empty"),
        ({**PAIR, "chosen": " green."}, "chosen and rejected are the same.*remove the row"),
        ({**CHAT_PAIR, "chosen": [assistant("green")]}, "chosen and rejected are the same"),
        ({**PAIR, "chosen": 7}, "chosen must be text or a list of messages, found int"),
        ({**PAIR, "chosen": [assistant("blue")]}, "chosen holds messages, rejected holds text; all must be"),
        ({**PAIR, "prompt": [user("Sky?")]}, "prompt holds messages, chosen holds text"),
        ({**CHAT_PAIR, "prompt": "Sky?", "chosen": [user("x")]}, "prompt holds text, chosen holds messages"),
        ({**CHAT_PAIR, "chosen": ["blue"]}, "chosen: a message must have a role and a content.*'?blue"),
        ({**CHAT_PAIR, "chosen": [{"role": "assistant", "content": [{"type": "text"}]}]}, "both text"),
        (
            {**CHAT_PAIR, "chosen": [assistant("x"), user("y")]},
            "last message is of role 'user'; it must be the assistant",
        ),
        ({**CHAT_PAIR, "chosen": [user("y"), assistant("x")]}, "begins with a message of role 'user'; .* into prompt"),
        ({**CHAT_PAIR, "prompt": [user("x"), assistant("y")]}, "end with another's than the assistant's"),
        (
            {"chosen": [user("A?"), assistant("x")], "rejected": [user("B?"), assistant("y")]},
            "different prompts: they differ from message 1 on, of role user, and there is no column prompt",
        ),
        (
            {"chosen": [assistant("x")], "rejected": [assistant("y")]},
            "different prompts: they differ from message 1 on, of role assistant",
        ),
        ({"chosen": "blue", "rejected": "green"}, "different prompts: they have no beginning in common"),
        ({**CHAT_PAIR, "tools": [{"type": "function"}]}, "template does not show the column tools.*system message"),
        ({**CHAT_PAIR, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs is not given to"),
        ([1, 2], "expected an object with columns, found list"),
        ({**PAIR, "prompt": "x" * 300}, "have 3.. tokens, more than the context of the model, 256; .*overlong=drop"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "data.jsonl", [PAIR, CHAT_PAIR, row, PAIR])
    with pytest.raises(ValueError, match=rf"data\.jsonl:3: .*{words}"):
        read(path)


@pytest.mark.parametrize("tools", [None, [], "[]"])
def test_no_tools_are_none(tmp_path: Path, tools: Any) -> None:
    assert read(write(tmp_path / "data.jsonl", [{**CHAT_PAIR, "tools": tools}])).train


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "p", "completion": "a"},
            "no column label; it has prompt, completion.*pairs of chosen and rejected",
        ),
        ({"prompt": "p", "label": True}, "no column completion"),
        ({**SINGLE, "tools": [{"type": "function"}]}, "tools are shown by the chat template, which plain text goes"),
        ({**SINGLE, "label": 0.5}, "label must be true for a good completion or false for a bad one, found 0.5"),
        ({**SINGLE, "completion": " "}, "completion is empty"),
        ({**SINGLE, "prompt": [user("Sky?")]}, "prompt holds messages, completion holds text"),
    ],
)
def test_a_single_completion_that_cannot_be_used_is_named(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "data.json", [SINGLE, row])
    with pytest.raises(ValueError, match=rf"data\.json, row 2: .*{words}"):
        read(path, paired=False)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.jsonl", b'{"prompt": "p"}\n\n{"prompt": \n', "data.jsonl:3: not JSON"),
        (
            "data.json",
            b'{"prompt": "p"}\n{"prompt": "p"}',
            "data.json: not JSON: .*one object a line goes into a .jsonl",
        ),
        ("data.json", b'{"prompt": "p"}', "expected a list of rows, found dict"),
        ("data.parquet", b"junk", "data.parquet: not readable as parquet"),
        ("data.jsonl", b"\xff\xfe", "not UTF-8 text"),
        ("data.jsonl", b"\n", "data.jsonl has no rows"),
        ("data.csv", b"prompt,chosen,rejected\n", "data.csv has no rows"),
        (
            "data.csv",
            b"prompt,chosen,rejected\np,a\n",
            "data.csv, row 1: it has another number of fields than the header, 3",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [PAIR])
    with pytest.raises(ValueError, match=r"no file .*pair\.jsonl\. Did you mean 'pairs\.jsonl'\?"):
        read(tmp_path / "pair.jsonl")
    with pytest.raises(ValueError, match="is read as a whole"):
        read(path, split="test")
    with pytest.raises(ValueError, match=r"data\.max_length is 300, more than the model's context of 256"):
        read(path, max_length=300)
    with pytest.raises(ValueError, match=r"data\.heldout=0\.99 holds out 1 examples and leaves 0 to train on"):
        read(path, heldout=0.99)


def test_a_template_that_refuses_a_row_names_it(tmp_path: Path) -> None:
    strict = byte_tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    settings = PreferenceDataConfig(source=str(write(tmp_path / "data.jsonl", [PAIR, CHAT_PAIR])))
    with pytest.raises(ValueError, match=r"data\.jsonl:2: .*roles must alternate"):
        load(settings, strict, END, context=256, paired=True)
    strict.chat_template = None
    with pytest.raises(ValueError, match=r"data\.jsonl:2: .*no chat template"):
        load(settings, strict, END, context=256, paired=True)


# Long rows, and what is held out


def test_long_rows_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    # 10 + 8 tokens: "The sky is", and " green." with its end.
    path = write(tmp_path / "data.jsonl", [PAIR, {**PAIR, "rejected": " greener."}])
    assert len(read(path, max_length=20).train) == 2
    assert len(read(path, max_length=18, overlong="drop").train) == 1
    with pytest.raises(ValueError, match=r"data\.jsonl:2: .* 20 tokens, more than data.max_length, 18"):
        read(path, max_length=18)
    assert read(path, max_length=18, overlong="drop").dropped == 1
    with pytest.raises(ValueError, match=r"all 2 rows have more than 17 tokens; raise data\.max_length"):
        read(path, max_length=17, overlong="drop")


def numbered(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{i} is", "chosen": " even", "rejected": " odd"} for i in range(count)]


def test_further_rows_move_no_others_between_training_and_held_out(tmp_path: Path) -> None:
    few = read(write(tmp_path / "few.jsonl", numbered(100)), heldout=0.3)
    many = read(write(tmp_path / "many.jsonl", list(reversed(numbered(400)))), heldout=0.3)
    assert 15 < len(few.heldout) < 45
    assert 80 < len(many.heldout) < 160
    assert {e.id for e in few.heldout} <= {e.id for e in many.heldout}
    assert {e.id for e in few.train} <= {e.id for e in many.train}
    assert not {e.id for e in many.train} & {e.id for e in many.heldout}
    assert [e.id for e in few.train] == [e.id for e in many.train if e.id in {e.id for e in few.train}][::-1]


def test_prompts_that_read_the_same_are_one_prompt() -> None:
    def ids(*prompts: Any) -> set[str]:
        chosen, rejected = [assistant("a")], [assistant("b")]
        replies = [("a", "b") if isinstance(prompt, str) else (chosen, rejected) for prompt in prompts]
        rows = [
            {"prompt": prompt, "chosen": one, "rejected": two}
            for prompt, (one, two) in zip(prompts, replies, strict=True)
        ]
        return {row_id(parse(row, paired=True)) for row in rows}

    assert len(ids("Caf\u00e9?", "Caf\u00e9?\n", "Cafe\u0301?  ")) == 1
    assert len(ids([user("Sky?")], [user("Sky? \n")])) == 1
    assert len(ids("Sky?", "Sea?", [user("Sky?")])) == 3
    assert ids("The sky is") == {"4fe1642290e3092d"}  # as ever: rows that say the same keep their side


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    rows = [*numbered(50), *({**row, "rejected": " prime"} for row in numbered(50))]
    for paired in (True, False):
        data = read(write(tmp_path / "data.jsonl", rows), paired=paired, heldout=0.5)
        assert not {e.prompt_ids for e in data.train} & {e.prompt_ids for e in data.heldout}
        assert len(data.train) + len(data.heldout) == (100 if paired else 200)


def test_the_hash_is_of_what_is_trained_on(tmp_path: Path) -> None:
    first = read(write(tmp_path / "a.jsonl", numbered(5)))
    assert read(write(tmp_path / "b.json", [{**row, "note": 1} for row in numbered(5)])).hash == first.hash
    assert read(write(tmp_path / "c.jsonl", numbered(6))).hash != first.hash
    assert read(write(tmp_path / "d.jsonl", list(reversed(numbered(5))))).hash != first.hash


# Batches


def test_a_batch_of_pairs_shares_each_prompt(tmp_path: Path) -> None:
    data = read(write(tmp_path / "data.jsonl", [PAIR, CHAT_PAIR]))
    batch = make_batch(data.train)
    assert batch.rewards.tolist() == [1, 0, 1, 0]
    assert batch.group_index.tolist() == [0, 0, 1, 1]
    assert batch.prompt_ids[0] is batch.prompt_ids[1]
    # " blue.", " green.", "blue", "green" with an end token each.
    assert torch.bincount(batch.sequence_index).tolist() == [7, 8, 5, 6]
    assert batch.rollout_logprobs.tolist() == [0.0] * 26
    assert batch.ref_logprobs is None
    # "The sky is" once, and the marks of the template with "Sky?" once: 10 + (1 + 4 + 1 + 1).
    # The last tokens of the four completions are not read.
    assert num_tokens(batch) == 26 - 4 + 10 + 7
    assert pack(batch).token_ids.shape == (1, 39)
    assert microbatches(batch, 1, whole_groups=True) == [[0, 1], [2, 3]]


def test_a_batch_of_single_completions_is_a_group_each(tmp_path: Path) -> None:
    batch = make_batch(read(write(tmp_path / "data.jsonl", [PAIR, SINGLE]), paired=False).train)
    assert batch.rewards.tolist() == [1, 0, 1]
    assert batch.group_index.tolist() == [0, 1, 2]


# Templates


def sky_is_blue(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a question and of its answer, all of which are actions."""
    prompt, reply, mask = chat.render_completion(tokenizer, [user("Sky?")], [assistant("blue")], END)  # type: ignore[list-item]
    assert mask == (True,) * len(reply)
    return prompt, reply


def test_what_a_template_writes_after_the_turn_is_left_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>{%", "<|end|>\n{%")
    prompt, reply = sky_is_blue(tokenizer)
    assert tokenizer.decode(list(prompt)) == "<|user|>Sky?<|end|>\n<|assistant|>"
    assert tokenizer.decode(list(reply)) == "blue<|end|>"


def test_an_end_token_is_added_where_the_template_writes_none() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    prompt, reply = sky_is_blue(tokenizer)
    assert tokenizer.decode(list(prompt)) == "Sky?|"
    assert tokenizer.decode(list(reply)) == "blue|<|end|>"


def test_a_template_that_opens_the_turn_with_more_than_it_keeps() -> None:
    # As Gemma 4 does with an empty block of thought: the reply follows what the policy is given when it samples.
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>{% endif", "<|assistant|>(){% endif")
    prompt, reply = sky_is_blue(tokenizer)
    assert tokenizer.decode(list(prompt)) == "<|user|>Sky?<|end|><|assistant|>()"
    assert tokenizer.decode(list(reply)) == "blue<|end|>"


@pytest.mark.parametrize("reply", ["  blue", "\nblue", " <b>blue"])
def test_no_token_lies_across_the_border_to_the_reply(reply: str) -> None:
    # A tokenizer of real families merges the line break that opens a turn with white space that a reply begins with.
    texts = ["<|user|>\nSky?<|end|><|assistant|>\n", *["\n  blue", "\n\nblue", "\n <b>blue"] * 9]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    marks = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    turns: Any = [user("Sky?"), assistant(reply), user("Sure?"), assistant(reply)]
    whole = chat.conversation(tokenizer, turns)
    assert chat.render(tokenizer, turns[:1]) != whole[: len(chat.render(tokenizer, turns[:1]))]  # so there is one
    said = tuple(tokenizer(reply + "<|end|>")["input_ids"])
    asked = tuple(tokenizer("<|user|>\nSure?<|end|><|assistant|>\n")["input_ids"])
    prompt, ids, mask = chat.render_completion(tokenizer, turns[:1], turns[1:], END)
    assert prompt == chat.render(tokenizer, turns[:1])
    assert ids == (*said, *asked, *said)
    assert mask == (True,) * len(said) + (False,) * len(asked) + (True,) * len(said)


@pytest.mark.parametrize(
    ("template", "reply", "kept"),
    [
        ("{{ m.content.split('</think>')[-1] }}", "<think>Hm.</think>blue", "<\\|assistant\\|>blue"),
        ("{% for part in m.content if part is mapping %}{{ part.text }}{% endfor %}", "blue", "<\\|assistant\\|>"),
        ("{{ m.content }}", "blue<|end|>green", "<\\|assistant\\|>blue"),
    ],
    ids=["thoughts", "parts", "end token"],
)
def test_a_reply_that_loses_a_part_of_itself_is_refused(template: str, reply: str, kept: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("{{ m.content }}", template)
    assert template in tokenizer.chat_template
    special_tokens.set_policy(tokenizer, "allow")  # else an end token within a reply is text
    with pytest.raises(ValueError, match=rf"loses a part of itself: '.*' becomes '{kept}', .*take out of the reply"):
        chat.render_completion(tokenizer, [user("Sky?")], [assistant(reply)], END)  # type: ignore[list-item]


@pytest.mark.parametrize("reply", ["<think>\n\n</think>\n\nblue", " blue "])
def test_a_reply_may_lose_white_space_and_an_empty_thought(reply: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "{{ m.content }}", "{{ m.content.split('</think>')[-1] | trim }}"
    )
    _, ids, _ = chat.render_completion(tokenizer, [user("Sky?")], [assistant(reply)], END)  # type: ignore[list-item]
    assert tokenizer.decode(list(ids)) == "blue<|end|>"


def test_a_reply_ends_at_the_first_end_token() -> None:
    # As Phi-3's template writes another one behind the whole conversation.
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    tokenizer.chat_template = str(tokenizer.chat_template) + "{% if not add_generation_prompt %}\n<|stop|>{% endif %}"
    unknown = 99_999  # as some generation configs name
    ends = frozenset([0, tokenizer.convert_tokens_to_ids("<|stop|>"), unknown])
    _, ids, _ = chat.render_completion(tokenizer, [user("Sky?")], [assistant("blue")], ends)  # type: ignore[list-item]
    assert tokenizer.decode(list(ids)) == "blue<|end|>"


def test_plain_text_ends_at_its_end_token() -> None:
    tokenizer = byte_tokenizer()
    assert chat.render_text(tokenizer, "Sky?", " blue<|end|>\n") == chat.render_text(tokenizer, "Sky?", " blue")
    with pytest.raises(ValueError, match=r"goes on after the end token '<\|end\|>', with 'green'"):
        chat.render_text(tokenizer, "Sky?", " blue<|end|>green")


def test_text_without_a_prompt_is_learnt_behind_end_tokens_too() -> None:
    tokenizer = byte_tokenizer()
    turns = "<|user|>Sky?<|end|>\n<|assistant|>blue<|end|>"
    for text in (turns, f"{turns}\n"):
        prompt, ids = chat.render_text(tokenizer, "", text)
        assert (prompt, tokenizer.decode(list(ids))) == ((), turns)
    assert tokenizer.decode(list(chat.render_text(tokenizer, "", f"{turns}more\n")[1])) == f"{turns}more\n<|end|>"


def test_a_text_that_brings_its_beginning_gets_no_second_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|user|>"
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", begin)]
    )
    assert chat.render_text(tokenizer, "", "<|user|>Sky") == chat.render_text(tokenizer, "", "Sky")
    with_its_own = chat.render_text(tokenizer, "<|user|>Sky?", " blue")
    assert with_its_own == chat.render_text(tokenizer, "Sky?", " blue")
    assert (with_its_own[0][0], with_its_own[0].count(begin)) == (begin, 1)


def test_a_prompt_of_text_is_the_users_message(tmp_path: Path) -> None:
    episode = [assistant("Which?"), user("That."), assistant("blue")]
    for chosen in (CHAT_PAIR["chosen"], episode):
        own = {**CHAT_PAIR, "chosen": chosen}
        text = {**own, "prompt": "Sky?"}
        assert read(write(tmp_path / "data.jsonl", [text])).train == read(write(tmp_path / "data.jsonl", [own])).train
    single = {"prompt": "Sky?", "completion": episode, "label": True}
    (example,) = read(write(tmp_path / "data.jsonl", [single]), paired=False).train
    assert not all(example.action_mask[0])


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + str(tokenizer.chat_template)
    with pytest.raises(ValueError, match="writes the earlier messages otherwise when a reply follows"):
        sky_is_blue(tokenizer)


def test_plain_text_needs_an_end_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        chat.render_text(tokenizer, "The sky is", " blue")
