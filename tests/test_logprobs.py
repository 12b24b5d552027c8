"""Log-probs of chosen tokens: values and gradients against torch's own log_softmax, and what must not be touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlft.model.kernels import token_logprobs as module
from rlft.model.layers.logprobs import selected_logprobs


def made_up(rows: int, vocab: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits with a gradient, and targets."""
    generator = torch.Generator().manual_seed(rows * vocab)
    logits = 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(vocab, (rows,), generator=generator)


def by_log_softmax(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_p = (logits / temperature).log_softmax(dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=-1)


def set_rows_per_chunk(monkeypatch: pytest.MonkeyPatch, rows: int, vocab: int) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", rows * vocab + vocab // 2)


def test_by_hand() -> None:
    # Logits 0, log 3 at temperature 1: probabilities 1/4, 3/4. Entropy 1/4 log 4 + 3/4 log(4/3) = 0.562335.
    # At temperature 1/2 the logits double: 1/10, 9/10.
    logits = torch.tensor([[0.0, 1.0986122886681098]], dtype=torch.float64)
    logprob, entropy = selected_logprobs(logits.clone(), torch.tensor([0]), 1.0)
    assert logprob.exp().item() == pytest.approx(0.25, abs=1e-12)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)
    logprob, _ = selected_logprobs(logits.clone(), torch.tensor([1]), 0.5)
    assert logprob.exp().item() == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_values_and_gradients_equal_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, temperature: float, rows_per_chunk: int
) -> None:
    set_rows_per_chunk(monkeypatch, rows_per_chunk, 11)
    logits, targets = made_up(7, 11)
    expected = by_log_softmax(logits, targets, temperature)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad((weights * expected[0] + weights.flip(0) * expected[1]).sum(), logits)

    logprobs, entropy = selected_logprobs(logits, targets, temperature)
    assert torch.allclose(logprobs, expected[0], rtol=0, atol=1e-12)
    assert torch.allclose(entropy, expected[1], rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad((weights * logprobs + weights.flip(0) * entropy).sum(), logits)
    assert torch.allclose(grad, expected_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("part", [0, 1], ids=["logprob", "entropy"])
def test_gradient_of_one_output_alone(part: int, temperature: float) -> None:
    # The policy loss without an entropy bonus, and the bonus without the loss.
    logits, targets = made_up(5, 9)
    (expected,) = torch.autograd.grad(by_log_softmax(logits, targets, temperature)[part].sum(), logits)
    (grad,) = torch.autograd.grad(selected_logprobs(logits, targets, temperature)[part].sum(), logits)
    assert torch.allclose(grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    set_rows_per_chunk(monkeypatch, 2, 6)
    logits, targets = made_up(5, 6)
    assert torch.autograd.gradcheck(lambda x: selected_logprobs(x, targets, temperature), logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_logits_are_left_as_they_were(temperature: float, dtype: torch.dtype) -> None:
    logits, targets = made_up(4, 8, dtype)
    before = logits.detach().clone()
    logprobs, entropy = selected_logprobs(logits, targets, temperature)
    assert torch.equal(logits.detach(), before)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_asked_twice_the_answer_is_the_same(temperature: float) -> None:
    logits, targets = made_up(4, 8, torch.float32)
    first = selected_logprobs(logits, targets, temperature)
    second = selected_logprobs(logits, targets, temperature)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_float32_is_close_to_float64(temperature: float) -> None:
    wide, targets = made_up(16, 300)
    narrow = wide.detach().float().requires_grad_()
    expected = by_log_softmax(wide, targets, temperature)
    (expected_grad,) = torch.autograd.grad(expected[0].sum(), wide)
    logprobs, entropy = selected_logprobs(narrow, targets, temperature)
    (grad,) = torch.autograd.grad(logprobs.sum(), narrow)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logprobs.double(), expected[0], rtol=0, atol=1e-5)
    assert torch.allclose(entropy.double(), expected[1], rtol=0, atol=1e-4)
    assert torch.allclose(grad.double(), expected_grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_bfloat16_logits_are_computed_in_float32(temperature: float) -> None:
    # The same bfloat16 numbers widened first give the same log-probs; only the gradient is rounded to bfloat16 (2^-8).
    narrow, targets = made_up(16, 300, torch.bfloat16)
    wide = narrow.detach().double().requires_grad_()
    expected = by_log_softmax(wide, targets, temperature)
    (expected_grad,) = torch.autograd.grad((expected[0] + expected[1]).sum(), wide)
    logprobs, entropy = selected_logprobs(narrow, targets, temperature)
    (grad,) = torch.autograd.grad((logprobs + entropy).sum(), narrow)
    assert logprobs.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    assert torch.allclose(logprobs.double(), expected[0], rtol=0, atol=1e-5)
    assert torch.allclose(entropy.double(), expected[1], rtol=0, atol=1e-4)
    assert torch.allclose(grad.double(), expected_grad, rtol=2**-8, atol=1e-6)


def test_huge_logits_stay_finite() -> None:
    # exp(1e4) overflows; shifted by the maximum: log-prob 0 and -2e4, entropy 0.
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    logprobs, entropy = selected_logprobs(logits, torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == [0.0, -2e4]
    assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=1e-3)
    logprobs.sum().backward()
    # onehot - p: the first row 0, 0; the second -1, 1.
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0], [-1, 1]]
