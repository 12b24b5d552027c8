"""The warm start's numbers: the mean over the replies' tokens, the same bytes each time, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlft.model import chat
from rlft.train import sft
from rlft.types import Message
from tests.chat_templates import TEMPLATES, tokenizer_of
from tests.fakes import byte_tokenizer, tiny_config

ASK = Message(role="user", content="2+3?")
END = frozenset([0])


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


DEMONSTRATIONS: list[tuple[Message, ...]] = [
    ({"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "a" * (1 + 3 * n)}) for n in range(4)
]


def train(model: Path, **changes: Any) -> tuple[dict[str, Tensor], list[float]]:
    losses: list[float] = []
    config = tiny_config(model, **{"sft": {"examples": 4, "batch_size": 4, "epochs": 3, "lr": 0.01}, **changes})
    tensors = sft.train_sft(config, str(model), DEMONSTRATIONS, lambda done, total, loss: losses.append(loss))
    return tensors, losses


def test_the_loss_is_the_mean_over_all_tokens_of_the_replies(tiny_model: Path) -> None:
    tensors, losses = train(tiny_model)
    tokenizer, model = chat.load_tokenizer(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    total, count = 0.0, 0
    for shown in DEMONSTRATIONS:
        prompt, reply = chat.demonstration(tokenizer, shown, frozenset([tokenizer.eos_token_id]))
        assert (*prompt, *reply) == chat.conversation(tokenizer, shown)
        ids = torch.tensor([[*prompt, *reply]])
        is_reply = torch.arange(ids.shape[1])[None] >= len(prompt)
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        chosen = is_reply[0, 1:]
        total += float(F.cross_entropy(logits[chosen], ids[0, 1:][chosen], reduction="sum"))
        count += int(chosen.sum())
    assert count == sum(1 + 3 * n + 1 for n in range(4))  # the end token is learnt
    assert losses[0] == pytest.approx(total / count, abs=1e-5)
    assert losses[-1] < losses[0]
    assert max(float(tensor.abs().max()) for name, tensor in tensors.items() if "lora_B" in name) > 0


def test_it_is_the_same_each_time_and_however_it_is_split(tiny_model: Path) -> None:
    tensors, losses = train(tiny_model)
    again, same = train(tiny_model)
    assert losses == same
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    _, split = train(tiny_model, learner={"tokens_per_microbatch": 40})
    assert split == pytest.approx(losses, abs=1e-5)


def test_what_does_not_fill_an_update_is_left_out(tiny_model: Path) -> None:
    _, losses = train(tiny_model, sft={"examples": 4, "batch_size": 3, "epochs": 2})
    assert len(losses) == 2
    _, losses = train(tiny_model, sft={"examples": 4, "batch_size": 16})
    assert len(losses) == 1


def test_an_update_that_is_not_finite_ends_it(tiny_model: Path) -> None:
    with pytest.raises(RuntimeError, match=r"of the SFT warm start: .*; lower sft\.lr \(now 1e\+30\)"):
        train(tiny_model, sft={"examples": 4, "batch_size": 2, "epochs": 4, "lr": 1e30})


R1 = """\
{%- for m in messages -%}
{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|><think>\\n' }}{%- endif -%}"""
"""As DeepSeek's distilled models have it: replies lose their thoughts, and rollouts begin with one."""


def test_a_demonstration_that_the_template_cuts_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(R1)
    demonstrations: Any = [(ASK, assistant("<think>add them</think><answer>5</answer>"))]
    told = r"demonstration 0: a reply loses a part of itself: '<think>add them</think><answer>5</answer>' becomes"
    with pytest.raises(ValueError, match=told):
        sft.train_sft(tiny_config(folder, sft={"examples": 1}), str(folder), demonstrations)
    tokenizer = chat.load_tokenizer(folder)
    with pytest.raises(ValueError, match=told):
        chat.check_conversations(tokenizer, demonstrations, END, context=999)


def test_a_demonstration_follows_the_prompt_of_a_rollout() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = R1
    prompt, reply = chat.demonstration(tokenizer, [ASK, assistant("<answer>5</answer>")], END)
    assert prompt == chat.render(tokenizer, [ASK])
    assert tokenizer.decode(list(reply)) == "<answer>5</answer><|end|>"  # with the < that the thought has, too


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen2.5", "qwen3"])
@pytest.mark.parametrize("content", ["<answer>5</answer>", "<think>\nadd\n</think>\n\n5", "5"])
def test_demonstrations_of_ordinary_templates_are_the_conversation_as_it_is_written(name: str, content: str) -> None:
    tokenizer = tokenizer_of(name)
    end_ids = frozenset([tokenizer.convert_tokens_to_ids(TEMPLATES[name][1])])
    for messages in ([ASK, assistant(content)], [ASK, assistant("4"), ASK, assistant(content)]):
        prompt, reply = chat.demonstration(tokenizer, messages, end_ids)
        assert prompt == chat.render(tokenizer, messages[:-1])
        assert (*prompt, *reply) == chat.conversation(tokenizer, messages)  # the kept runs have learnt all of it
