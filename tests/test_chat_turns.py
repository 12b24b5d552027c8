"""What stands between two actions: behind the policy's own tokens, it is the conversation as the template has it."""

from __future__ import annotations

import pytest

from rlft.model import chat, templates
from rlft.types import Message
from tests.chat_templates import TEMPLATES, tokenizer_of

ASK = Message(role="user", content="What is 2 + 2?")
AGAIN = Message(role="user", content="And 3 + 3?")
TOOL_SAYS = Message(role="tool", content="4", name="calculator")
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Computes.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
FAMILIES = pytest.mark.parametrize("name", TEMPLATES)


def ids_of(tokenizer: object, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[operator]


def reply_ids(name: str, text: str) -> tuple[int, ...]:
    return ids_of(tokenizer_of(name), text + TEMPLATES[name][1])


@FAMILIES
def test_appended_ids_are_those_of_the_whole_conversation(name: str) -> None:
    tokenizer = tokenizer_of(name)
    prompt, action = chat.render(tokenizer, [ASK]), reply_ids(name, "four")
    between = chat.render_observation(tokenizer, [AGAIN], after=action)
    whole = chat.render(tokenizer, [ASK, Message(role="assistant", content="four"), AGAIN])
    assert (*prompt, *action, *between) == whole


@FAMILIES
def test_a_reply_without_end_token_gets_one(name: str) -> None:
    tokenizer = tokenizer_of(name)
    action = ids_of(tokenizer, "four")
    between = chat.render_observation(tokenizer, [AGAIN], after=action)
    assert between[0] == ids_of(tokenizer, TEMPLATES[name][1])[0]
    assert between[1:] == chat.render_observation(tokenizer, [AGAIN], after=reply_ids(name, "four"))


@FAMILIES
def test_the_policys_tokens_are_not_read(name: str) -> None:
    # Thoughts, broken characters, white space: whatever was sampled, what follows is the same.
    tokenizer = tokenizer_of(name)
    plain = chat.render_observation(tokenizer, [AGAIN], after=reply_ids(name, "4"))
    for text in ("<think>\nhm\n</think>\n\n4", "  4  ", "4\n", '<tool_call>{"name": "x"}</tool_call>'):
        assert chat.render_observation(tokenizer, [AGAIN], after=reply_ids(name, text)) == plain


def test_white_space_that_ends_a_reply_is_no_end_token() -> None:
    # The template writes a line break first here; the policy's own, ended by a stop text, is not it.
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    action = ids_of(tokenizer, "four\n")
    assert chat.render_observation(tokenizer, [AGAIN], after=action) == ids_of(
        tokenizer, "\nuser: And 3 + 3?\nassistant: "
    )


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_templates_with_tools_write_them_themselves(name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert templates.takes_tools(tokenizer)
    assert templates.takes_tool_messages(tokenizer)
    prompt = chat.render(tokenizer, [ASK], tools=[CALCULATOR])
    assert "Tools:\n" in tokenizer.decode(list(prompt))
    assert '"calculator"' in tokenizer.decode(list(prompt))
    action = reply_ids(name, '<tool_call>{"name": "calculator"}</tool_call>')
    between = chat.render_observation(tokenizer, [TOOL_SAYS, TOOL_SAYS], after=action, tools=[CALCULATOR])
    assert tokenizer.decode(list(between)) == (
        "\n<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["chatml", "llama3", "strict"])
def test_templates_without_tools_get_words_and_user_messages(name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert not templates.takes_tools(tokenizer)
    assert not templates.takes_tool_messages(tokenizer)
    between = chat.render_observation(tokenizer, [TOOL_SAYS, TOOL_SAYS], after=reply_ids(name, "4"))
    as_user = "<tool_response>\n4\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert between == chat.render_observation(
        tokenizer, [Message(role="user", content=as_user)], after=reply_ids(name, "4")
    )


def test_tools_are_described_in_the_system_message() -> None:
    tokenizer = tokenizer_of("chatml")
    prompt = tokenizer.decode(list(chat.render(tokenizer, [ASK], tools=[CALCULATOR])))
    assert prompt.startswith("<|im_start|>system\nYou can call tools:\n{")
    assert "You are helpful." not in prompt
    with_system = [Message(role="system", content="Be brief."), ASK]
    prompt = tokenizer.decode(list(chat.render(tokenizer, with_system, tools=[CALCULATOR])))
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call tools:\n{")
    assert prompt.count("<|im_start|>system") == 1
    assert '"description": "Computes."' in prompt


def test_an_observation_may_hold_the_stand_in_reply() -> None:
    tokenizer = tokenizer_of("chatml")
    said = Message(role="user", content=f"{chat._REPLY} and {chat._REPLY})")
    between = chat.render_observation(tokenizer, [said], after=reply_ids("chatml", "4"))
    assert f"user\n{said['content']}<|im_end|>" in tokenizer.decode(list(between))


@pytest.mark.parametrize("cut", ["\ud83d", "so \ude42 and on"])
def test_half_a_surrogate_pair_is_refused(cut: str) -> None:
    tokenizer, told = tokenizer_of("chatml"), r"half a surrogate pair, .* at the end of '.*\\ud"
    said = Message(role="user", content=cut)
    reply = Message(role="assistant", content=cut)
    with pytest.raises(ValueError, match=told):
        chat.render(tokenizer, [said])
    with pytest.raises(ValueError, match=told):
        chat.render_completion(tokenizer, [ASK], [reply], frozenset())
    with pytest.raises(ValueError, match=told):
        chat.render_text(tokenizer, "?", cut)
    shown = [[ASK, Message(role="assistant", content="4")], [ASK, reply]]
    with pytest.raises(ValueError, match=f"demonstration 1: .*{told}"):
        chat.check_conversations(tokenizer, shown, frozenset([tokenizer.eos_token_id]), context=999)


def test_a_refusing_template_is_named_kindly() -> None:
    with pytest.raises(ValueError, match=r"refuses a conversation of system, user: roles must alternate"):
        chat.render(tokenizer_of("strict"), [Message(role="system", content="s"), ASK])


def test_a_template_that_changes_replies_is_refused() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="exactly once and as it is"):
        chat.render_observation(tokenizer, [AGAIN], after=(5,))


def test_a_template_that_writes_the_date_writes_the_same_on_every_day() -> None:
    tokenizer = tokenizer_of("llama3.2")
    prompt = tokenizer.decode(list(chat.render(tokenizer, [ASK])))
    assert "Today Date: 26 Jul 2024\n" in prompt
    plain = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    assert "26 Jul 2024" not in plain  # transformers' own clock
    tokenizer.chat_template = (
        "\n  {% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %} {% if strftime_now is defined %}"
        "\n{{ day() }}{% endif %} {{ strftime_now('%A, %B %-d') }}"
    )
    assert templates.write(tokenizer, [ASK]) == "\n 2024-07-26 Friday, July 26"
