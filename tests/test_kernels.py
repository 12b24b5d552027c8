"""The tensor functions of model/kernels against their formulas in float64, and what only compiled kernels promise.

`make test-kernels` runs this file twice: with compiled kernels, whose absence is then an error, and with torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels import elementwise, library, products
from rlft.model.kernels.block_attention import biased_softmax
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.segments import Segment
from rlft.model.kernels.token_logprobs import token_logprobs
from rlft.model.kernels.tree_attention import Tree, attention_behind, tree_attention
from rlft.model.layers.projected_logprobs import projected_logprobs

FLOAT, BFLOAT = torch.float32, torch.bfloat16
needs_kernels = pytest.mark.skipif(not library.operations(), reason=library.description())
both_types = pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=["float32", "bfloat16"])
pytestmark = pytest.mark.usefixtures("no_matrix_unit")


def random(*shape: int, dtype: torch.dtype, seed: int = 0, factor: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul_(factor).to(dtype)


@contextmanager
def called() -> Iterator[set[str]]:
    """The names of the kernels that are called within."""
    names: set[str] = set()
    kernels = library._library().kernels

    def noted(name: str, run: library.Kernel, *arguments: Any) -> None:
        names.add(name)
        run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for (name, dtype), run in kernels.items():
            patch.setitem(kernels, (name, dtype), partial(noted, name, run))
        yield names


@contextmanager
def only_kernels(*names: str) -> Iterator[None]:
    """Within it these kernels compute: so that a test of what only they promise cannot pass by torch's operations."""
    with called() as found:
        yield
    assert found >= set(names)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Trees of a packed row: (length, index of the segment that is continued or -1) of each segment
TREES = {
    1: [(1, -1)],
    170: [(170, -1)],  # several tiles, several panels
    287: [(35, -1), (3, 0), (40, 1), (1, 1), (70, 1), (33, 0), (64, 5), (32, 5), (9, -1)],
    100: [(17, -1), (1, 0), (20, 1), (31, 2), (31, 0)],  # deeper than what prompts make
}


def tree_of(tokens: int, *, known: int = 0) -> Tree:
    """A tree of so many tokens, the first `known` segments of which come before the row."""
    segments: list[Segment] = []
    start = -sum(length for length, _ in TREES[tokens][:known])
    for length, parent in TREES[tokens]:
        before = (*segments[parent].before, segments[parent]) if parent >= 0 else ()
        segments.append(Segment(start=start, length=length, before=before))
        start += length
    return Tree(segments)


def tree_operands(tokens: int, heads: int, key_heads: int, size: int) -> list[Tensor]:
    return normal((tokens, heads + 2 * key_heads, size), (tokens, heads, size))


def attention_along_a_tree(heads: Tensor, grad: Tensor) -> Sequence[Tensor]:
    heads = heads.detach().requires_grad_()
    output = tree_attention(heads, grad.shape[1], tree_of(len(heads)), 0.3)
    return output.detach(), gradient(output, heads, grad)


def attention_along_a_tree_formula(heads: Tensor, grad: Tensor) -> Sequence[Tensor]:
    heads, num_heads = heads.detach().requires_grad_(), grad.shape[1]
    is_seen = torch.zeros(len(heads), len(heads), dtype=torch.bool)
    for segment in tree_of(len(heads)).segments:
        own = slice(segment.start, segment.start + segment.length)
        is_seen[own, own] = torch.ones(segment.length, segment.length).tril().bool()
        for each in segment.before:
            is_seen[own, each.start : each.start + each.length] = True
    shared = 2 * num_heads // (heads.shape[1] - num_heads)
    query = heads[:, :num_heads]
    key, value = (x.repeat_interleave(shared, dim=1) for x in heads[:, num_heads:].chunk(2, dim=1))
    scores = torch.einsum("qhd,khd->hqk", query, key) * 0.3
    softmax = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
    output = torch.einsum("hqk,khd->qhd", softmax, value)
    return output.detach(), gradient(output, heads, grad)


def attention_behind_known(heads: Tensor, grad: Tensor) -> Sequence[Tensor]:
    """Each time with more segments before the row, all rows below each other."""
    num_heads, outputs = grad.shape[1], []
    for known in range(len(TREES[len(heads)])):
        tree = tree_of(len(heads), known=known)
        of_row, before = heads[tree.num_earlier :].contiguous(), heads[: tree.num_earlier, num_heads:]
        keys_values = before.unflatten(1, (2, -1)).permute(1, 2, 0, 3)
        earlier = keys_values.split([segment.length for segment in tree.segments[:known]], dim=2)
        outputs.append(attention_behind(of_row, num_heads, tree, [*earlier] if known else [], 0.3))
    return (torch.cat(outputs),)


def attention_behind_known_formula(heads: Tensor, grad: Tensor) -> Sequence[Tensor]:
    output, _ = attention_along_a_tree_formula(heads, grad)
    starts = [segment.start for segment in tree_of(len(heads)).segments]
    return (torch.cat([output[start:] for start in starts]),)


# The table: operands of a shape, what is computed of them, the same in float64 by the formula


class Operation(NamedTuple):
    kernels: Sequence[str]
    """What computes it where it is compiled."""
    shapes: Sequence[tuple[int, ...]]
    operands: Callable[..., list[Tensor]]
    """From a shape, float32; they are rounded to the type."""
    compute: Callable[..., Sequence[Tensor]]
    formula: Callable[..., Sequence[Tensor]]
    """Of the rounded operands in float64."""
    tolerance: tuple[float, float]
    """Of kernels and of torch, in units of the last place of the result's type, relative to its largest number."""
    types: Sequence[torch.dtype] = (FLOAT, BFLOAT)
    otherwise: Sequence[str] = ()
    """Kernels that take part where those of `kernels` are not compiled."""


def normal(*shapes: tuple[int, ...], factor: float = 1.0) -> list[Tensor]:
    return [random(*shape, dtype=FLOAT, seed=seed, factor=factor) for seed, shape in enumerate(shapes)]


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, FLOAT))


def gradient(result: Tensor, x: Tensor, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(result, x, upstream)[0]


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, residual: Tensor) -> Sequence[Tensor]:
    backward = partial(
        elementwise.rms_norm_backward, grad, x, weight, elementwise.rms_norm_and_scale(x, weight, 1e-5)[1]
    )
    return backward(), backward(residual)


def norm_backward_formula(grad: Tensor, x: Tensor, weight: Tensor, residual: Tensor) -> Sequence[Tensor]:
    x = x.requires_grad_()
    grad_x = gradient(F.rms_norm(x, weight.shape, weight, 1e-5), x, grad)
    return grad_x, grad_x + residual


def rotation_operands(tokens: int, heads: int, rotated: int, size: int) -> list[Tensor]:
    x, angle = normal((tokens, heads, size), (tokens, 1, size // 2))
    return [x, angle.cos().repeat(1, 1, 2), angle.sin().repeat(1, 1, 2), torch.tensor(float(rotated))]


def rotation(x: Tensor, cos: Tensor, sin: Tensor, rotated: Tensor) -> Sequence[Tensor]:
    signed_sin, result = elementwise.signed_sin_of(sin), x.clone()
    elementwise.rotate(result, int(rotated), cos, signed_sin)
    return result, elementwise.rotate_backward(x, int(rotated), cos, signed_sin)


def rotation_formula(x: Tensor, cos: Tensor, sin: Tensor, rotated: Tensor) -> Sequence[Tensor]:
    x, num, half = x.requires_grad_(), int(rotated), x.shape[-1] // 2
    left, right = x[:, :num].split(half, dim=-1)
    c, s = cos[..., :half], sin[..., :half]
    result = torch.cat([torch.cat([left * c - right * s, right * c + left * s], -1), x[:, num:]], 1)
    return result.detach(), gradient(result, x, x.detach())


def gate_formula(inner: Tensor) -> Sequence[Tensor]:
    gate, up = inner.chunk(2, dim=1)
    return (F.silu(gate) * up,)


def gate_backward_formula(grad: Tensor, inner: Tensor) -> Sequence[Tensor]:
    inner = inner.requires_grad_()
    return (gradient(gate_formula(inner)[0], inner, grad),)


def targets_of(logits: Tensor) -> Tensor:
    return torch.arange(len(logits)) * 7 % logits.shape[1]


def logprobs(logits: Tensor) -> Sequence[Tensor]:
    slopes = logits.clone()
    first = token_logprobs(slopes, targets_of(logits), 0.7, with_slopes=True)
    return *first, slopes, *token_logprobs(logits.clone(), targets_of(logits), 1.0)


def logprobs_formula(logits: Tensor) -> Sequence[Tensor]:
    results: list[Tensor] = []
    for temperature in (0.7, 1.0):
        log_p, chosen = (logits / temperature).log_softmax(dim=-1), targets_of(logits)[:, None]
        results += [log_p.gather(1, chosen).squeeze(1), -(log_p.exp() * log_p).sum(-1)]
        if temperature != 1:
            results.append(log_p.exp().scatter_add(1, chosen, torch.full_like(chosen, -1.0, dtype=torch.float64)))
    return results


def masked(bias: Tensor) -> Tensor:
    return bias.masked_fill(bias < -1, float("-inf"))


def filled_cache(keys: Tensor, values: Tensor, rows: Tensor) -> KVCache:
    """Five rows behind three prompts, one of them of a single token, with 0 to 40 tokens of their own."""
    cache = KVCache(prompts=3, prompt_length=37, rows=5, new_tokens=48, device=torch.device("cpu"))
    enter(cache, keys, values)
    cache.enter_rows([0, 1, 2, 3, 4], [2, 0, 1, 0, 2])
    cache.age += torch.tensor([0, 40, 3, 15, 16])
    cache.begin(5)
    cache.layers[0].rows.copy_(rows)
    return cache


def enter(cache: KVCache, keys: Tensor, values: Tensor) -> None:
    """Enter prompts of 37, 1 and 16 tokens, the first token of each apart."""
    spans = [torch.stack([keys[prompt, :, :n], values[prompt, :, :n]]) for prompt, n in enumerate([37, 1, 16])]
    cache.enter_prompts([0, 1, 2], [[[span[:, :, :1]], [span[:, :, 1:]]] for span in spans])


def cache_operands(heads: int, key_heads: int, size: int) -> list[Tensor]:
    prompts, rows = (3, key_heads, 37, size), (2, 5, key_heads, 48, size)
    return [*normal(prompts, prompts, rows, (5, heads + 2 * key_heads, size)), torch.tensor(float(heads))]


def cached_attention(keys: Tensor, values: Tensor, rows: Tensor, joint: Tensor, heads: Tensor) -> Sequence[Tensor]:
    cache, num = filled_cache(keys, values, rows), int(heads)
    output = cache.attention(0, joint, num, 0.125)
    return output, cache.layers[0].rows


def cached_attention_formula(
    keys: Tensor, values: Tensor, rows: Tensor, joint: Tensor, heads: Tensor
) -> Sequence[Tensor]:
    num, outputs, rows = int(heads), [], rows.clone()
    for row, (prompt, length, age) in enumerate([(2, 16, 0), (0, 37, 40), (1, 1, 3), (0, 37, 15), (2, 16, 16)]):
        rows[:, row, :, age] = joint[row, num:].unflatten(0, (2, -1))
        k, v = (
            torch.cat([of_prompt[prompt, :, :length], own[row, :, : age + 1]], dim=1).repeat_interleave(
                num // keys.shape[1], dim=0
            )
            for of_prompt, own in ((keys, rows[0]), (values, rows[1]))
        )
        weights = (torch.einsum("hd,hkd->hk", joint[row, :num], k) * 0.125).softmax(-1)
        outputs.append(torch.einsum("hk,hkd->hd", weights, v))
    return torch.stack(outputs), rows


def linear_operands(rows: int, inputs: int, outputs: int) -> list[Tensor]:
    x, weight, bias, other = normal((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    return [x, weight * inputs**-0.5, bias, other]


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Sequence[Tensor]:
    results: list[Tensor] = []
    for linear in (FrozenLinear(weight), FrozenLinear(weight, bias)):
        results += [linear(x), linear.plus(x, other), linear.times(x, other), linear.silu(x)]
    return results


def frozen_linear_formula(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Sequence[Tensor]:
    results: list[Tensor] = []
    for y in (x @ weight.T, x @ weight.T + bias):
        results += [y, y + other, y * other, F.silu(y)]
    return results


MANY = [(2, 2), (64, 32), (130, 34), (576, 960), (962, 48)]
OPERATIONS = {
    "norm": Operation(
        ["rms_norm", "normed"],
        [(37, 1), (37, 33), (37, 64), (37, 576)],
        lambda rows, width: normal((rows, width), (width,), factor=3),
        lambda x, weight: [
            elementwise.rms_norm(x, weight, 1e-5),
            (parts := elementwise.rms_norm_and_scale(x, weight, 1e-5))[0],
            parts[1],
            elementwise.normed(x, weight, parts[1]),
        ],
        lambda x, weight: [
            y := F.rms_norm(x, weight.shape, weight, 1e-5),
            y,
            (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
            y,
        ],
        (2, 4),
    ),
    "gradient of a norm": Operation(
        ["rms_norm", "rms_norm_backward"],
        [(37, 3), (37, 33), (37, 64), (37, 576)],  # with one element the gradient is 0, the rest of a cancellation
        lambda rows, width: normal((rows, width), (rows, width), (width,), (rows, width)),
        norm_backward,
        norm_backward_formula,
        (2, 8),
    ),
    "rotation": Operation(
        ["rotate"],
        [(1, 3, 2, 64), (301, 5, 4, 32), (7, 4, 4, 10)],
        rotation_operands,
        rotation,
        rotation_formula,
        (2, 4),
    ),
    "gate": Operation(
        ["gated_silu"],
        [(1, 32), (3, 96), (500, 1536)],
        lambda rows, width: normal((rows, 2 * width), factor=4),
        lambda inner: (elementwise.gated_silu(inner),),
        gate_formula,
        (2, 4),
    ),
    "gradient of a gate": Operation(
        ["gated_silu_backward"],
        [(1, 32), (3, 96), (500, 1536)],
        lambda rows, width: normal((rows, width), (rows, 2 * width), factor=2),
        lambda grad, inner: (elementwise.gated_silu_backward(grad, inner),),
        gate_backward_formula,
        (2, 4),
    ),
    "log-probs": Operation(
        ["selected_logprobs"],
        [(1, 32), (5, 96), (70, 49152)],
        lambda rows, size: normal((rows, size), factor=6),
        logprobs,
        logprobs_formula,
        (8, 16),
    ),
    "softmax": Operation(
        ["biased_softmax"],
        [(2, 3, 5, 24), (1, 1, 1, 1), (3, 2, 8, 40)],
        lambda *shape: normal(shape, (shape[0], 1, *shape[2:])),
        lambda scores, bias: [biased_softmax(scores.clone(), masked(bias))],
        lambda scores, bias: [(scores + masked(bias)).softmax(-1)],
        (2, 4),
    ),
    "attention of a step": Operation(
        ["keep_prompt", "cached_attention"],
        [(h, k, size) for h, k in ((1, 1), (6, 2), (7, 1), (8, 2), (4, 4)) for size in (32, 64, 96, 128)],
        cache_operands,
        cached_attention,
        cached_attention_formula,
        (4, 8),
    ),
    "attention along a tree": Operation(
        ["tree_attention", "tree_attention_backward"],
        [
            (tokens, *shape)
            for tokens in TREES
            for shape in ((1, 1, 32), (9, 3, 64), (4, 4, 64), (6, 2, 96), (8, 1, 128), (71, 1, 32))
        ],
        tree_operands,
        attention_along_a_tree,
        attention_along_a_tree_formula,
        (4, 8),
        [BFLOAT],
        otherwise=["biased_softmax"],
    ),
    "attention behind known keys": Operation(
        ["tree_attention"],
        [(tokens, *shape) for tokens in TREES for shape in ((1, 1, 32), (9, 3, 64), (6, 2, 96), (71, 1, 32))],
        tree_operands,
        attention_behind_known,
        attention_behind_known_formula,
        (4, 8),
        [BFLOAT],
    ),
    "product": Operation(
        ["panels_of", "linear"],
        [
            (rows, *shape)
            for rows in (1, 2, 12, 13, 14, 27, 64, 257, 600)
            for shape in ((2, 1), (64, 32), (130, 33), (576, 960), (1536, 47))
        ],
        linear_operands,
        frozen_linear,
        frozen_linear_formula,
        (2, 8),
        [BFLOAT],
    ),
    "product of many rows": Operation(
        ["panels_of", "linear"],
        [(rows, *shape) for rows in (256, 700) for shape in [*MANY, (32, 33)]],
        linear_operands,
        lambda x, weight, bias, other: [products.linear(x, weight), products.linear(x, weight, bias)],
        lambda x, weight, bias, other: [x @ weight.T, x @ weight.T + bias],
        (2, 8),
        [BFLOAT],
    ),
    "product with a transposed weight": Operation(
        ["panels_of_transposed", "linear"],
        [(rows, *shape) for rows in (256, 700) for shape in [*MANY, (33, 32)]],
        linear_operands,
        lambda x, weight, bias, other: [products.times(other, weight)],
        lambda x, weight, bias, other: [other @ weight],
        (2, 8),
        [BFLOAT],
    ),
}
# Sums of float32, whose every step is rounded as their result is
OPERATIONS |= {
    f"{name} in float32": operation._replace(types=[FLOAT], tolerance=(32, 32))
    for name, operation in OPERATIONS.items()
    if operation.types == [BFLOAT]
}
TABLE = [(name, shape, dtype) for name, each in OPERATIONS.items() for shape in each.shapes for dtype in each.types]


@pytest.mark.parametrize(("name", "shape", "dtype"), TABLE, ids=str)
def test_an_operation_is_its_formula(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    operation = OPERATIONS[name]
    operands = [operand.to(dtype) for operand in operation.operands(*shape)]
    with called() as kernels:
        results = operation.compute(*operands)
    is_compiled = {f"{kernel} {str(dtype).removeprefix('torch.')}" for kernel in operation.kernels}
    is_compiled &= set(library.operations())
    assert {kernel.partition(" ")[0] for kernel in is_compiled} == kernels - set(
        [] if is_compiled else operation.otherwise
    )
    for actual, expected in zip(results, operation.formula(*(operand.double() for operand in operands)), strict=True):
        unit = torch.finfo(actual.dtype).eps * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            actual.double(), expected, rtol=0, atol=unit * operation.tolerance[not is_compiled], equal_nan=False
        )


# What holds for compiled kernels alone


@needs_kernels
@both_types
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_of_a_product_does_not_depend_on_the_others(count: int, dtype: torch.dtype) -> None:
    x, linear = random(64, 576, dtype=dtype), FrozenLinear(random(200, 576, dtype=dtype, seed=1))
    if linear.panels is None:
        pytest.skip("this processor has no products of its own")
    with threads(count):
        whole = linear(x)
        for rows in (slice(0, 1), slice(5, 18), slice(20, 63)):
            assert torch.equal(linear(x[rows]), whole[rows])


@needs_kernels
@both_types
def test_a_product_keeps_to_its_rows_and_columns(dtype: torch.dtype) -> None:
    # What lies around the operands is not a number, and stays.
    surrounding = torch.full((7, 40), torch.nan, dtype=dtype)
    x, weight = random(5, 66, dtype=dtype), random(40, 66, dtype=dtype, seed=1)
    run, panels = library.kernel("linear", x), products.in_panels(weight)
    if run is None or panels is None:
        pytest.skip("this processor has no products of its own")
    run(x.data_ptr(), panels.data_ptr(), None, None, surrounding[1:6].data_ptr(), 5, 66, 40, 0)
    assert surrounding[[0, 6]].isnan().all()
    assert torch.equal(surrounding[1:6], FrozenLinear(weight)(x))


@needs_kernels
@both_types
def test_operands_that_do_not_fit_a_product_are_refused(dtype: torch.dtype) -> None:
    linear = FrozenLinear(random(40, 64, dtype=dtype))
    if linear.panels is None:
        pytest.skip("this processor has no products of its own")
    x, other = random(3, 64, dtype=dtype), random(3, 40, dtype=dtype)
    for wrong in ((x[:, :62].contiguous(), other), (x, other[:, :39].contiguous()), (x.double(), other), (x.T, other)):
        with pytest.raises(ValueError, match="this product takes contiguous"):
            linear.plus(*wrong)


@needs_kernels
@both_types
@pytest.mark.parametrize("operation", ["rms_norm", "gated_silu", "rotate"])
def test_a_row_does_not_depend_on_others_or_on_threads(operation: str, dtype: torch.dtype) -> None:
    x, weight = random(999, 256, dtype=dtype), random(256, dtype=dtype, seed=1)
    turns = random(999, 1, 64, dtype=dtype, seed=2)

    def run(rows: slice) -> Tensor:
        part = x[rows].clone()
        if operation == "rms_norm":
            return elementwise.rms_norm(part, weight, 1e-6)
        if operation == "gated_silu":
            return elementwise.gated_silu(part)
        heads = part.view(-1, 4, 64)
        elementwise.rotate(heads, 3, turns[rows], turns[rows])
        return part

    with only_kernels(operation):
        whole, alone = run(slice(None)), run(slice(500, 501))
        with threads(1):
            single = run(slice(None))
    assert torch.equal(whole[500:501], alone)
    assert torch.equal(whole, single)


def attend(cache: KVCache, joint: Tensor) -> Tensor:
    """Attention of 6 heads over 2 key heads, for as many rows as there are queries."""
    cache.begin(len(joint))
    return cache.attention(0, joint, 6, 0.125)


@needs_kernels
@both_types
def test_attention_does_not_depend_on_threads_or_on_other_rows(dtype: torch.dtype) -> None:
    *of_cache, joint, _ = (operand.to(dtype) for operand in cache_operands(6, 2, 64))
    with only_kernels("keep_prompt", "cached_attention"):
        whole, fewer = attend(filled_cache(*of_cache), joint), attend(filled_cache(*of_cache), joint[:2])
        with threads(1):
            single = attend(filled_cache(*of_cache), joint)
    assert torch.equal(whole[:2], fewer)
    assert torch.equal(whole, single)


@needs_kernels
@both_types
def test_attention_does_not_depend_on_how_many_rows_are_behind_a_prompt(dtype: torch.dtype) -> None:
    rows, length = 40, 70
    span, *steps = (random(*shape, dtype=dtype) for shape in ((2, 2, length, 64), *[(rows, 10, 64)] * 3))

    def outputs(places: Sequence[int]) -> Tensor:
        cache = KVCache(prompts=1, prompt_length=length, rows=rows, new_tokens=4, device=torch.device("cpu"))
        cache.enter_prompts([0], [[[span]]])
        cache.enter_rows(range(len(places)), [0] * len(places))
        found = []
        for joint in steps:
            found.append(attend(cache, joint[list(places)]))
            cache.advance()
        return torch.stack(found)

    with only_kernels("keep_prompt", "cached_attention"):
        whole = outputs(range(rows))
        for places in ([0], [39], [5, 20, 21, 22]):
            assert torch.equal(outputs(places), whole[:, places])


@needs_kernels
@both_types
def test_prompts_that_come_after_the_first_step_are_kept_as_those_before(dtype: torch.dtype) -> None:
    keys, values, rows, joint, _ = (operand.to(dtype) for operand in cache_operands(6, 2, 64))
    with only_kernels("keep_prompt", "cached_attention"):
        expected = attend(filled_cache(keys, values, rows), joint)
        cache = filled_cache(values, keys, rows)
        attend(cache, joint)
        enter(cache, keys, values)
        cache.layers[0].rows.copy_(rows)
        assert torch.equal(attend(cache, joint), expected)


@needs_kernels
@both_types
def test_attention_along_a_tree_does_not_depend_on_threads_or_on_other_branches(dtype: torch.dtype) -> None:
    if ("tree_attention", dtype) not in library._library().kernels:
        pytest.skip("this processor has no products of its own")
    heads, grad = (operand.to(dtype) for operand in tree_operands(287, 6, 2, 64))
    with only_kernels("tree_attention", "tree_attention_backward"):
        output, grad_heads = attention_along_a_tree(heads, grad)
        for count in (1, 3):
            with threads(count):
                single, grad_single = attention_along_a_tree(heads, grad)
            assert torch.equal(output, single)
            assert torch.equal(grad_heads, grad_single)
    tree, tokens = tree_of(287), torch.arange(287)
    for segment in tree.segments:
        parts, before = [], ()
        for part in (*segment.before, segment):
            parts.append(tokens[part.start : part.start + part.length])
            start = before[-1].start + before[-1].length if before else 0
            before = (*before, Segment(start=start, length=part.length, before=before))
        alone = tree_attention(heads[torch.cat(parts)], 6, Tree(before), 0.3)
        assert torch.equal(alone[-segment.length :], output[parts[-1]])


@needs_kernels
def test_rows_that_left_and_are_filled_again_read_nothing_that_was_not_written() -> None:
    *of_cache, joint, _ = cache_operands(6, 2, 64)
    cache = filled_cache(*of_cache)
    with only_kernels("keep_prompt", "cached_attention"):
        for rows in (5, 1):  # four rows leave
            attend(cache, joint[:rows])
            cache.advance()
        cache.layers[0].rows[:, 1:] = float("nan")  # as fresh memory may hold
        cache.enter_rows([1, 2], [0, 1])  # two of them are filled, the batch is as wide as before
        assert attend(cache, joint).isfinite().all()


# Values that are extreme or no numbers


@both_types
def test_gates_of_extreme_values(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -200.0, -88.5, -0.0, 0.0, 88.5, 200.0, 1e4], dtype=dtype).repeat(4)
    inner = torch.cat([gate, torch.ones_like(gate)])[None]
    y, grad = elementwise.gated_silu(inner), elementwise.gated_silu_backward(torch.ones_like(gate)[None], inner)
    torch.testing.assert_close(y[0, :8], gate[:8].clamp(min=0), rtol=0, atol=1e-30)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad[0, :8].float(), torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]), rtol=0, atol=1e-30)


@both_types
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    """A learner skips an update that is not finite, so no operation may hide one."""
    for value in (float("nan"), float("inf")):
        x = random(2, 64, dtype=dtype)
        x[1, 5] = value
        ones = torch.ones(64, dtype=dtype)
        y, scale = elementwise.rms_norm_and_scale(x, ones, 1e-5)
        results = [y, elementwise.rms_norm_backward(x, x, ones, scale), elementwise.gated_silu(x)]
        results += [elementwise.gated_silu_backward(x[:, :32].contiguous(), x)]
        results += [FrozenLinear(random(40, 64, dtype=dtype, seed=1))(x)]
        for result in results:
            assert torch.isfinite(result[0]).all()
            assert not torch.isfinite(result[1]).all()


def test_attention_hides_nothing_that_is_not_a_number() -> None:
    *of_cache, joint, _ = cache_operands(6, 2, 64)
    joint[3, 6, 0] = float("nan")  # a key of row 3
    output = attend(filled_cache(*of_cache), joint)
    assert output[3].isnan().any()
    assert output[[0, 1, 2, 4]].isfinite().all()


@both_types
def test_logits_that_are_no_numbers_give_none(dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf")):
        hidden = random(3, 32, dtype=dtype).requires_grad_()
        with torch.no_grad():
            hidden[1, 4] = value
        weight = torch.eye(32, dtype=dtype).repeat(2, 1)
        logprobs, entropy = projected_logprobs(hidden, weight, torch.arange(3), 1.0, entropy_gradient=False)
        assert logprobs.isfinite().tolist() == entropy.isfinite().tolist() == [True, False, True]


@both_types
def test_a_masked_key_has_no_weight_at_all(dtype: torch.dtype) -> None:
    scores, bias = random(2, 3, 5, 24, dtype=dtype), torch.zeros(2, 1, 5, 24, dtype=dtype)
    bias[..., 7:] = float("-inf")
    assert not biased_softmax(scores, bias)[..., 7:].any()


# Which operands a kernel takes


def test_targets_may_be_of_another_type_and_strided() -> None:
    logits = random(4, 32, dtype=FLOAT)
    expected, _ = token_logprobs(logits, torch.tensor([3, 1, 4, 1]), 1.0)
    strided = torch.tensor([3, 0, 1, 0, 4, 0, 1, 0])[::2]
    assert torch.equal(token_logprobs(logits, strided, 1.0)[0], expected)
    if library.operations():
        assert torch.equal(token_logprobs(logits, strided.int(), 1.0)[0], expected)


@needs_kernels
@pytest.mark.parametrize("target", [-1, 32])
def test_tokens_that_the_model_does_not_have_are_refused(target: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 31, the model's last token"):
        token_logprobs(torch.ones(2, 32), torch.tensor([0, target]), 1.0)


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x.to("meta"),
    ],
)
def test_other_operands_are_left_to_torch(change: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(8, 8)
    assert library.kernel("rms_norm", x, x) is not None
    assert library.kernel("rms_norm", x, change(x)) is None
    assert library.kernel("rms_norm", change(x), x) is None


@needs_kernels
def test_what_is_to_be_differentiated_is_left_to_torch() -> None:
    x, weight = torch.ones(2, 4, requires_grad=True), torch.ones(4)
    assert elementwise.rms_norm(x, weight, 1e-5).requires_grad
    assert products.linear(
        torch.ones(256, 4, dtype=BFLOAT, requires_grad=True), torch.ones(4, 4).bfloat16()
    ).requires_grad
    with torch.no_grad():
        assert library.kernel("rms_norm", x, weight) is not None


def test_products_of_other_layouts_are_left_to_torch() -> None:
    x, weight = random(256, 130, dtype=BFLOAT), random(34, 130, dtype=BFLOAT, seed=1, factor=0.1)
    with called() as kernels:
        y, z = products.linear(x[:, ::2], weight[:, ::2]), products.times(y_like := x[:, :34], weight.T.contiguous().T)
    assert not kernels
    for actual, expected in (
        (y, x[:, ::2].double() @ weight[:, ::2].double().T),
        (z, y_like.double() @ weight.double()),
    ):
        torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("width", [2, 8])
def test_shapes_that_do_not_fit_are_refused(width: int) -> None:
    x, scale = torch.ones(3, 4), torch.ones(3, 1)
    for operation in (
        lambda: elementwise.rms_norm(x, torch.ones(width), 1e-5),
        lambda: elementwise.rms_norm_and_scale(x, torch.ones(width), 1e-5),
        lambda: elementwise.normed(x, torch.ones(width), scale),
        lambda: elementwise.rms_norm_backward(torch.ones(3, width), x, torch.ones(4), scale),
        lambda: elementwise.rms_norm_backward(x, x, torch.ones(4), scale, torch.ones(3, width)),
        lambda: elementwise.gated_silu_backward(torch.ones(3, 16 * width), torch.ones(3, 128)),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            operation()


def test_one_angle_for_all_tokens_rotates_them_alike() -> None:
    x, angle = random(5, 2, 8, dtype=FLOAT), random(1, 1, 8, dtype=FLOAT, seed=1)
    shared, own = x.clone(), x.clone()
    elementwise.rotate(shared, 2, angle, angle)
    elementwise.rotate(own, 2, angle.repeat(5, 1, 1), angle.repeat(5, 1, 1))
    torch.testing.assert_close(shared, own)
