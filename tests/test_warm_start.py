"""The warm start's numbers: the mean over the replies' tokens, the same bytes each time, and what it refuses."""

from __future__ import annotations

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
from tests.fakes import tiny_config

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
        ids, is_reply = (torch.tensor([each]) for each in chat.demonstration(tokenizer, shown))
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


def test_a_reply_that_the_template_does_not_show_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "demonstration", lambda *args, **kwargs: ((1, 2), (False, False)))
    with pytest.raises(ValueError, match="demonstration 0: the chat template adds no token for its reply"):
        train(tiny_model)
