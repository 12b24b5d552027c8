"""Comparing each compiled kernel with torch on a small case, before it is used.

Every case calls a tensor function twice: on operands of the kernel's type, and on the same ones in float64, which torch
computes. A compiler's mistake then makes rlft slower and not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels import elementwise, products
from rlft.model.kernels.block_attention import biased_softmax
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.library import Kernel, Key
from rlft.model.kernels.segments import Segment
from rlft.model.kernels.token_logprobs import token_logprobs
from rlft.model.kernels.tree_attention import Tree, attention_behind, tree_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}
"""Norm of the difference over the norm of the result, by the type of the result: a few roundings."""

Case: TypeAlias = tuple[Sequence[tuple[int, ...]], Callable[..., Sequence[Tensor]]]
"""Shapes of the operands, and what is computed from them."""


def disagreeing(kernels: dict[Key, Kernel]) -> dict[Key, str]:
    """Why each kernel that torch does not agree with is wrong; empty where all are right.

    Args:
        kernels: what the tensor functions call now; replaced, while each is compared, by one that notes its calls.
    """
    wrong: dict[Key, str] = {}
    # Whoever calls a kernel first may be in inference mode, in which nothing has a gradient.
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        for (name, dtype), run in list(kernels.items()):
            calls: list[str] = []
            kernels[name, dtype] = partial(_counted, run, calls)
            try:
                problem = _difference(CASES[name], dtype)
            except (RuntimeError, ValueError) as error:  # of a tensor function: it did not get a kernel that it needs
                problem = f"failed ({error})"
            finally:
                kernels[name, dtype] = run
            if problem or not calls:
                wrong[name, dtype] = problem or "was not called by its tensor function"
    return wrong


def _counted(run: Kernel, calls: list[str], *arguments: Any) -> None:
    calls.append("")
    run(*arguments)


def _difference(case: Case, dtype: torch.dtype) -> str:
    """How the results of a type differ from torch's in float64, in words; empty where they agree."""
    shapes, compute = case
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes]
    expected = compute(*(operand.double() for operand in operands))
    for actual, exact in zip(compute(*operands), expected, strict=True):
        error = float((actual.double() - exact).norm() / exact.norm())
        if not error <= TOLERANCE[actual.dtype]:  # nan is no agreement
            return f"differs from torch by {error:.1e}"
    return ""


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    return elementwise.rms_norm(x, weight, 1e-5), *elementwise.rms_norm_and_scale(x, weight, 1e-5)


def _normed(x: Tensor, weight: Tensor, scale: Tensor) -> Sequence[Tensor]:
    return (elementwise.normed(x, weight, _wide(scale)),)


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor) -> Sequence[Tensor]:
    gradient = partial(elementwise.rms_norm_backward, grad, x, weight, _wide(scale))
    return gradient(), gradient(residual)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Sequence[Tensor]:
    rotated, signed_sin = heads.clone(), elementwise.signed_sin_of(sin)
    elementwise.rotate(rotated, 3, cos, signed_sin)
    return rotated, elementwise.rotate_backward(heads, 3, cos, signed_sin)


def _logprobs(logits: Tensor) -> Sequence[Tensor]:
    targets, slopes = torch.tensor([5, 0, 63]), logits.clone()
    return *token_logprobs(slopes, targets, 0.7, with_slopes=True), slopes, *token_logprobs(logits, targets, 1.0)


def _softmax(scores: Tensor, bias: Tensor) -> Sequence[Tensor]:
    return (biased_softmax(scores.clone(), bias.masked_fill(bias < -1, float("-inf"))),)


def _filled_cache(keys: Tensor, values: Tensor) -> KVCache:
    """Three rows behind two prompts, with keys and values (2, H_kv, 6, D) in every one of two layers."""
    cache = KVCache(prompts=2, prompt_length=6, rows=3, new_tokens=3, device=keys.device)
    prompts = torch.stack([keys, values])
    # The second one in two spans.
    spans = [[prompts[:, 0]], [prompts[:, 1, :, :3], prompts[:, 1, :, 3:4]]]
    cache.enter_prompts([0, 1], [[[each] * 2 for each in prompt] for prompt in spans])
    cache.enter_rows([0, 1, 2], [1, 0, 1])
    return cache


def _cached_attention(heads: Tensor, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
    cache, outputs = _filled_cache(keys, values), []
    for joint in heads:
        cache.begin(len(joint))
        outputs.append(cache.attention(0, joint, 4, 0.2))
        cache.advance()
    return outputs


def _tree_attention(heads: Tensor, grad: Tensor) -> Sequence[Tensor]:
    """Of two query heads for each of two key heads, along a prefix, a prompt and two completions."""
    prefix = Segment(start=0, length=35)
    prompt = Segment(start=35, length=3, before=(prefix,))
    rest = (Segment(start=38, length=40, before=(prefix, prompt)), Segment(start=78, length=1, before=(prefix, prompt)))
    tree, num_heads = Tree((prefix, prompt, *rest)), 4
    known = Segment(start=-35, length=35)
    behind = Tree((known, Segment(start=0, length=3, before=(known,))))
    keys_values = heads[:35, num_heads:].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
    after = attention_behind(heads[35:38], num_heads, behind, [keys_values], 0.2)
    with torch.enable_grad():
        heads = heads.requires_grad_()
        output = tree_attention(heads, num_heads, tree, 0.2)
        return after, output.detach(), *torch.autograd.grad(output, heads, grad)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Sequence[Tensor]:
    linear, plain = FrozenLinear(weight, bias), FrozenLinear(weight)
    return linear(x), linear.plus(x, other), plain.times(x, other), plain.silu(x)


def _in_rows(weight: Tensor, panels: Tensor | None) -> Sequence[Tensor]:
    """A weight (outputs, inputs), read from its panels by `native/products.h` where there are any, and zeros below."""
    if panels is not None:
        columns, inputs_together = panels.shape[2], 4 // panels.itemsize
        in_steps = panels.view(len(panels), -1, columns, inputs_together)
        weight = in_steps.transpose(1, 2).reshape(-1, weight.shape[1])
    return (F.pad(weight, (0, 0, 0, 64 - len(weight))),)


def _panels(weight: Tensor) -> Sequence[Tensor]:
    return _in_rows(weight, products.in_panels(weight))


def _panels_of_transposed(weight: Tensor) -> Sequence[Tensor]:
    return _in_rows(weight.T, products.in_panels(weight, is_transposed=True))


CASES: dict[str, Case] = {
    "rms_norm": ([(3, 40), (40,)], _norm),
    "normed": ([(3, 40), (40,), (3, 1)], _normed),
    "rms_norm_backward": ([(3, 40), (3, 40), (40,), (3, 1), (3, 40)], _norm_backward),
    "rotate": ([(3, 4, 32), (3, 1, 32), (3, 1, 32)], _rotate),
    "gated_silu": ([(3, 128)], lambda inner: (elementwise.gated_silu(inner),)),
    "gated_silu_backward": (
        [(3, 64), (3, 128)],
        lambda grad, inner: (elementwise.gated_silu_backward(grad, inner),),
    ),
    "selected_logprobs": ([(3, 64)], _logprobs),
    "biased_softmax": ([(2, 3, 5, 24), (2, 1, 5, 24)], _softmax),
    "keep_prompt": ([(3, 3, 8, 32), (2, 2, 6, 32), (2, 2, 6, 32)], _cached_attention),
    "cached_attention": ([(3, 3, 8, 32), (2, 2, 6, 32), (2, 2, 6, 32)], _cached_attention),
    "panels_of": ([(40, 34)], _panels),
    "panels_of_transposed": ([(34, 40)], _panels_of_transposed),
    "linear": ([(15, 34), (40, 34), (40,), (15, 40)], _linear),
    "tree_attention": ([(79, 8, 32), (79, 4, 32)], _tree_attention),
    "tree_attention_backward": ([(79, 8, 32), (79, 4, 32)], _tree_attention),
}
"""A case for each kernel, by its name."""
