"""The compiled kernels against torch's operations on the same operands, and what happens where there are none."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlft.model.kernels import elementwise, frozen_linear, library, products
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.layers.projected_logprobs import projected_logprobs

needs_kernels = pytest.mark.skipif(not library.available(), reason=library.description())
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def random(*shape: int, dtype: torch.dtype, seed: int = 0, factor: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul_(factor).to(dtype)


@contextmanager
def without_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("elementwise", "token_logprobs", "kv_cache"):
            patch.setattr(f"rlft.model.kernels.{module}.kernel", lambda *operands: None)
        yield


@contextmanager
def only_kernels() -> Iterator[None]:
    """Within it, an operation that is not computed by a kernel is an error."""
    plain = library.kernel

    def required(name: str, *tensors: Tensor) -> library.Kernel:
        run = plain(name, *tensors)
        assert run is not None, name
        return run

    with pytest.MonkeyPatch.context() as patch:
        for module in ("elementwise", "token_logprobs", "kv_cache"):
            patch.setattr(f"rlft.model.kernels.{module}.kernel", required)
        yield


def agree(actual: Tensor, expected: Tensor) -> None:
    """`expected` is computed in float64; kernels round to bfloat16 once or twice on the way, float32 has a few ulp."""
    epsilon = torch.finfo(actual.dtype).eps
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=8 * epsilon if actual.dtype == torch.float32 else 2 * epsilon,
        atol=epsilon * scale,
    )


# Products


needs_products = pytest.mark.skipif(
    library.kernel("linear", torch.zeros(1, dtype=torch.bfloat16)) is None, reason="this processor has no products"
)


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
@pytest.mark.parametrize("rows", [1, 2, 12, 13, 14, 27, 64, 257, 600])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (64, 32), (130, 33), (576, 960), (1536, 47)])
def test_products(rows: int, inputs: int, outputs: int) -> None:
    bf16 = torch.bfloat16
    x, weight = random(rows, inputs, dtype=bf16), random(outputs, inputs, dtype=bf16, seed=1, factor=inputs**-0.5)
    bias, other = random(outputs, dtype=bf16, seed=2), random(rows, outputs, dtype=bf16, seed=3)
    expected = x.double() @ weight.double().T
    # Sums of products of bfloat16 are float32 and rounded once.
    for given in (None, bias):
        product = frozen_linear._in_panels(weight, given)
        assert product is not None
        sums = expected if given is None else expected + given.double()
        agree(product(x, None, "none"), sums)
        agree(product(x, other, "add"), sums + other.double())
        agree(product(x, other, "mul"), sums * other.double())
        agree(product(x, None, "silu"), sums * sums.sigmoid())


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
@pytest.mark.parametrize("rows", [255, 256, 700])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(2, 2), (64, 32), (130, 34), (576, 960), (962, 48), (33, 32), (32, 33)]
)
def test_products_with_many_rows_and_a_plain_weight(
    rows: int, inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bf16 = torch.bfloat16
    x, weight = random(rows, inputs, dtype=bf16), random(outputs, inputs, dtype=bf16, seed=1, factor=inputs**-0.5)
    bias, grad = random(outputs, dtype=bf16, seed=2), random(rows, outputs, dtype=bf16, seed=3)
    by_kernel: list[int] = []
    product = products.product

    def counted(x: Tensor, *arguments: Any) -> Tensor:
        by_kernel.append(len(x))
        return product(x, *arguments)

    monkeypatch.setattr(products, "product", counted)
    agree(products.linear(x, weight), x.double() @ weight.double().T)
    agree(products.linear(x, weight, bias), x.double() @ weight.double().T + bias.double())
    agree(products.times(grad, weight), grad.double() @ weight.double())
    has_panels = not torch.cpu._is_amx_tile_supported() and rows >= 256
    assert len(by_kernel) == has_panels * (2 * (inputs % 2 == 0) + (outputs % 2 == 0))
    # What is not laid out as the kernel wants it is multiplied by torch.
    agree(products.linear(x[:, ::2], weight[:, ::2]), x[:, ::2].double() @ weight[:, ::2].double().T)
    agree(products.times(grad, weight.T.contiguous().T), grad.double() @ weight.double())
    assert products.linear(x.requires_grad_(), weight).requires_grad


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_of_a_product_does_not_depend_on_the_others(threads: int) -> None:
    x, weight = random(64, 576, dtype=torch.bfloat16), random(200, 576, dtype=torch.bfloat16, seed=1)
    product = frozen_linear._in_panels(weight, None)
    assert product is not None
    with_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        whole = product(x, None, "none")
        for rows in (slice(0, 1), slice(5, 18), slice(20, 63)):
            assert torch.equal(product(x[rows], None, "none"), whole[rows])
    finally:
        torch.set_num_threads(with_threads)


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
def test_a_product_keeps_to_its_rows_and_columns() -> None:
    # What lies around the operands is not a number, and stays.
    room = torch.full((7, 40), torch.nan, dtype=torch.bfloat16)
    x, weight = random(5, 66, dtype=torch.bfloat16), random(40, 66, dtype=torch.bfloat16, seed=1)
    run, product = library.kernel("linear", x), frozen_linear._in_panels(weight, None)
    assert run is not None
    assert product is not None
    panels = torch.empty(2, 66, 32, dtype=torch.bfloat16)
    pack = library.kernel("panels_of", weight)
    assert pack is not None
    pack(weight.data_ptr(), panels.data_ptr(), 66, 40)
    run(x.data_ptr(), panels.data_ptr(), None, None, room[1:6].data_ptr(), 5, 66, 40, 0)
    assert room[[0, 6]].isnan().all()
    assert torch.equal(room[1:6], product(x, None, "none"))


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
def test_a_product_carries_what_is_not_finite() -> None:
    x, weight = random(3, 64, dtype=torch.bfloat16), random(40, 64, dtype=torch.bfloat16, seed=1)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    product = frozen_linear._in_panels(weight, None)
    assert product is not None
    y = product(x, None, "none")
    assert y[0].isnan().all()
    assert torch.equal(y[1].float(), torch.inf * weight[:, 5].float().sign())
    assert y[2].isfinite().all()


@needs_products
@pytest.mark.usefixtures("no_matrix_unit")
def test_operands_that_do_not_fit_a_product_are_refused() -> None:
    product = frozen_linear._in_panels(random(40, 64, dtype=torch.bfloat16), None)
    assert product is not None
    x, other = random(3, 64, dtype=torch.bfloat16), random(3, 40, dtype=torch.bfloat16)
    for wrong in ((x[:, :62].contiguous(), other), (x, other[:, :39].contiguous()), (x.float(), other), (x.T, other)):
        with pytest.raises(ValueError, match="this product takes contiguous"):
            product(*wrong, "add")


# Passes

WIDTHS = [1, 33, 64, 576]


@needs_kernels
@both_types
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int, dtype: torch.dtype) -> None:
    x, weight = random(37, width, dtype=dtype, factor=3), random(width, dtype=dtype, seed=1)
    grad, residual = random(37, width, dtype=dtype, seed=2), random(37, width, dtype=dtype, seed=3)
    with only_kernels():
        y, scale = elementwise.rms_norm_and_scale(x, weight, 1e-5)
        assert torch.equal(elementwise.rms_norm(x, weight, 1e-5), y)
        assert torch.equal(elementwise.normed(x, weight, scale), y)
        grad_x = elementwise.rms_norm_backward(grad, x, weight, scale)
        with_residual = elementwise.rms_norm_backward(grad, x, weight, scale, residual)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.rms_norm(exact, (width,), weight.double(), 1e-5)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    agree(y, expected)
    agree(grad_x, expected_grad)
    agree(with_residual, expected_grad + residual.double())


@needs_kernels
@both_types
@pytest.mark.parametrize(("tokens", "heads", "rotated", "size"), [(1, 3, 2, 64), (301, 5, 4, 32), (7, 4, 4, 10)])
def test_rotation(tokens: int, heads: int, rotated: int, size: int, dtype: torch.dtype) -> None:
    x, angle = random(tokens, heads, size, dtype=dtype), random(tokens, 1, size // 2, dtype=dtype, seed=1)
    cos, sin = (torch.cat([f(angle), f(angle)], dim=-1) for f in (torch.cos, torch.sin))
    turn = elementwise.signed_sin_of(sin)

    def exact(y: Tensor) -> Tensor:
        left, right = y[:, :rotated].double().split(size // 2, dim=-1)
        c, s = cos[..., : size // 2].double(), sin[..., : size // 2].double()
        return torch.cat([torch.cat([left * c - right * s, right * c + left * s], -1), y[:, rotated:].double()], 1)

    with only_kernels():
        rotated_x = x.clone()
        elementwise.rotate(rotated_x, rotated, cos, turn)
        grad_x = elementwise.rotate_backward(x, rotated, cos, turn)
    whole = x.double().requires_grad_()
    (expected_grad,) = torch.autograd.grad(exact(whole), whole, x.double())
    agree(rotated_x, exact(x))
    agree(grad_x, expected_grad)
    assert torch.equal(rotated_x[:, rotated:], x[:, rotated:])
    assert torch.equal(grad_x[:, rotated:], x[:, rotated:])


@needs_kernels
@both_types
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (3, 96), (500, 1536)])
def test_gates(rows: int, width: int, dtype: torch.dtype) -> None:
    inner, grad = random(rows, 2 * width, dtype=dtype, factor=4), random(rows, width, dtype=dtype, seed=1)
    with only_kernels():
        y, grad_inner = elementwise.gated_silu(inner), elementwise.gated_silu_backward(grad, inner)
    exact = inner.double().requires_grad_()
    gate, up = exact.split(width, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    agree(y, expected)
    agree(grad_inner, torch.autograd.grad(expected, exact, grad.double())[0])


@needs_kernels
@both_types
def test_gates_of_extreme_values(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -200.0, -88.5, -0.0, 0.0, 88.5, 200.0, 1e4], dtype=dtype).repeat(4)
    inner = torch.cat([gate, torch.ones_like(gate)])[None]
    y, grad = elementwise.gated_silu(inner), elementwise.gated_silu_backward(torch.ones_like(gate)[None], inner)
    torch.testing.assert_close(y[0, :8], gate[:8].clamp(min=0), rtol=0, atol=1e-30)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad[0, :8].float(), torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]), rtol=0, atol=1e-30)


@needs_kernels
@both_types
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    """A learner skips an update that is not finite, so no kernel may hide one."""
    for value in (float("nan"), float("inf")):
        x = random(2, 64, dtype=dtype)
        x[1, 5] = value
        ones = torch.ones(64, dtype=dtype)
        y, scale = elementwise.rms_norm_and_scale(x, ones, 1e-5)
        results = [y, elementwise.rms_norm_backward(x, x, ones, scale), elementwise.gated_silu(x)]
        results += [elementwise.gated_silu_backward(x[:, :32].contiguous(), x)]
        for result in results:
            assert torch.isfinite(result[0]).all()
            assert not torch.isfinite(result[1]).all()


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

    with only_kernels():
        whole, alone = run(slice(None)), run(slice(500, 501))
        with threads(1):
            single = run(slice(None))
    assert torch.equal(whole[500:501], alone)
    assert torch.equal(whole, single)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@needs_kernels
@both_types
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("rows", "size"), [(1, 32), (5, 96), (70, 49152)])
def test_log_probs_of_chosen_tokens(rows: int, size: int, temperature: float, dtype: torch.dtype) -> None:
    """Logits that are computed exactly in any type, since the product with a unit matrix only copies them."""
    width = 32
    hidden = random(rows, width, dtype=dtype, factor=6).requires_grad_()
    weight = torch.eye(width, dtype=dtype).repeat(size // width, 1)
    targets = torch.arange(rows) * 7 % size
    upstream = random(rows, dtype=torch.float32, seed=2)
    with only_kernels():
        logprobs, entropy = projected_logprobs(hidden, weight, targets, temperature, entropy_gradient=False)
        (grad,) = torch.autograd.grad((logprobs * upstream).sum(), hidden)
        with torch.no_grad():
            again = projected_logprobs(hidden, weight, targets, temperature, entropy_gradient=False)
    assert torch.equal(again[0], logprobs)
    assert torch.equal(again[1], entropy)
    exact = hidden.detach().double().requires_grad_()
    distribution = torch.log_softmax(exact @ weight.double().T / temperature, dim=-1)
    expected = distribution.gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs.double(), expected.detach(), rtol=1e-6, atol=2e-6)
    expected_entropy = -(distribution.exp() * distribution).sum(-1)
    torch.testing.assert_close(entropy.double(), expected_entropy.detach(), rtol=1e-6, atol=2e-6)
    (expected_grad,) = torch.autograd.grad((expected * upstream.double()).sum(), exact)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)


@needs_kernels
@both_types
def test_logits_that_are_no_numbers_give_none(dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf")):
        hidden = random(3, 32, dtype=dtype).requires_grad_()
        with torch.no_grad():
            hidden[1, 4] = value
        weight = torch.eye(32, dtype=dtype).repeat(2, 1)
        logprobs, entropy = projected_logprobs(hidden, weight, torch.arange(3), 1.0, entropy_gradient=False)
        assert logprobs.isfinite().tolist() == entropy.isfinite().tolist() == [True, False, True]


@needs_kernels
def test_targets_may_be_of_another_type_and_strided() -> None:
    hidden, weight = random(4, 32, dtype=torch.float32), torch.eye(32)
    expected = projected_logprobs(hidden, weight, torch.tensor([3, 1, 4, 1]), 1.0, entropy_gradient=False)
    for targets in (torch.tensor([3, 1, 4, 1], dtype=torch.int32), torch.tensor([3, 0, 1, 0, 4, 0, 1, 0])[::2]):
        actual = projected_logprobs(hidden, weight, targets, 1.0, entropy_gradient=False)
        assert torch.equal(actual[0], expected[0])


@needs_kernels
@both_types
def test_a_masked_key_has_no_weight_at_all(dtype: torch.dtype) -> None:
    scores, bias = random(2, 3, 5, 24, dtype=dtype), torch.zeros(2, 1, 1, 5, 24, dtype=dtype)
    bias[..., 7:] = float("-inf")
    run = library.kernel("biased_softmax", scores, bias)
    assert run is not None
    expected = torch.softmax(scores.double()[..., :7], dim=-1)
    run(scores.data_ptr(), bias.data_ptr(), 2, 3, 5, 24)
    agree(scores[..., :7], expected)
    assert not scores[..., 7:].any()


@needs_kernels
@pytest.mark.parametrize("target", [-1, 32])
def test_tokens_that_the_model_does_not_have_are_refused(target: int) -> None:
    targets = torch.tensor([0, target])
    with pytest.raises(ValueError, match="from 0 to 31, the model's last token"):
        projected_logprobs(torch.ones(2, 32), torch.eye(32), targets, 1.0, entropy_gradient=False)


# Attention of a step


def filled_cache(dtype: torch.dtype, key_heads: int, size: int) -> KVCache:
    """Five rows behind three prompts, one of them of a single token, with 0 to 40 tokens of their own."""
    lengths, new_tokens = [37, 1, 16], 48
    cache = KVCache(prompts=3, prompt_length=37, rows=5, new_tokens=new_tokens, device=torch.device("cpu"))
    prefill = [tuple(random(3, key_heads, 37, size, dtype=dtype, seed=seed) for seed in (1, 2))]
    cache.enter_prompts([0, 1, 2], lengths, [(keys, values) for keys, values in prefill])
    cache.enter_rows([0, 1, 2, 3, 4], [2, 0, 1, 0, 2])
    cache.age += torch.tensor([0, 40, 3, 15, 16])
    cache.begin(5)
    layer = cache.layers[0]
    layer.rows.copy_(random(*layer.rows.shape, dtype=dtype, seed=3))
    return cache


@needs_kernels
@both_types
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (6, 2), (7, 1), (8, 2), (4, 4)])
def test_attention_of_a_step(heads: int, key_heads: int, size: int, dtype: torch.dtype) -> None:
    joint = random(5, heads + 2 * key_heads, size, dtype=dtype, seed=4)
    outputs = []
    for context in (only_kernels, without_kernels):
        cache = filled_cache(dtype, key_heads, size)
        with context():
            output = cache.attention(0, joint[:, :heads], joint[:, heads:].unflatten(1, (2, -1)), size**-0.5)
        outputs.append((output, cache.layers[0]))
    (actual, layer), (expected, plain) = outputs
    assert torch.equal(layer.rows, plain.rows)  # the fresh keys and values were kept, and nothing else was touched
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    agree_exactly(actual, joint[:, :heads], layer, cache, tolerance / 3)


def agree_exactly(actual: Tensor, query: Tensor, layer: Any, cache: KVCache, atol: float) -> None:
    """Against the definition, row by row in float64."""
    shared = query.shape[1] // layer.rows.shape[2]
    for row in range(5):
        prompt, age = int(cache.prompt_of_row[row]), int(cache.age[row])
        length = int(cache.prompt_length[prompt])
        keys, values = (
            torch.cat([layer.prompts[part, prompt, :, :length], layer.rows[part, row, :, : age + 1]], dim=1)
            .double()
            .repeat_interleave(shared, dim=0)
            for part in (0, 1)
        )
        scores = torch.einsum("hd,hkd->hk", query[row].double(), keys) * query.shape[2] ** -0.5
        expected = torch.einsum("hk,hkd->hd", scores.softmax(-1), values)
        torch.testing.assert_close(actual[row].double(), expected, rtol=0, atol=atol)


@needs_kernels
@both_types
def test_attention_does_not_depend_on_threads_or_on_other_rows(dtype: torch.dtype) -> None:
    joint = random(5, 10, 64, dtype=dtype, seed=4)

    def attend(num_rows: int) -> Tensor:
        cache = filled_cache(dtype, 2, 64)
        cache.begin(num_rows)
        part = joint[:num_rows]
        return cache.attention(0, part[:, :6], part[:, 6:].unflatten(1, (2, -1)), 0.125)

    with only_kernels():
        whole, fewer = attend(5), attend(2)
        with threads(1):
            single = attend(5)
    assert torch.equal(whole[:2], fewer)
    assert torch.equal(whole, single)


@needs_kernels
def test_attention_hides_nothing_that_is_not_a_number() -> None:
    cache = filled_cache(torch.float32, 2, 64)
    joint = random(5, 10, 64, dtype=torch.float32, seed=4)
    joint[3, 6, 0] = float("nan")  # a key of row 3
    with only_kernels():
        output = cache.attention(0, joint[:, :6], joint[:, 6:].unflatten(1, (2, -1)), 0.125)
    assert output[3].isnan().any()
    assert output[[0, 1, 2, 4]].isfinite().all()


@needs_kernels
def test_rows_that_left_and_are_filled_again_read_nothing_that_was_not_written() -> None:
    cache = filled_cache(torch.float32, 2, 64)
    joint = random(5, 10, 64, dtype=torch.float32, seed=4)

    def attend(width: int) -> Tensor:
        cache.begin(width)
        part = joint[:width]
        output = cache.attention(0, part[:, :6], part[:, 6:].unflatten(1, (2, -1)), 0.125)
        cache.advance()
        return output

    with only_kernels():
        attend(5)
        attend(1)  # four rows leave
        layer = cache.layers[0]
        layer.rows[:, 1:] = float("nan")  # as fresh memory may hold
        cache.enter_rows([1, 2], [0, 1])  # two of them are filled, the batch is as wide as before
        assert attend(5).isfinite().all()


# Which operands a kernel takes


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
    with torch.no_grad():
        assert library.kernel("rms_norm", x, weight) is not None


@needs_kernels
@pytest.mark.parametrize("width", [2, 8])
def test_shapes_that_do_not_fit_are_refused_as_torch_does(width: int) -> None:
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


@needs_kernels
def test_one_angle_for_all_tokens_is_left_to_torch() -> None:
    x, angle = random(5, 2, 8, dtype=torch.float32), random(1, 1, 8, dtype=torch.float32, seed=1)
    shared, own = x.clone(), x.clone()
    elementwise.rotate(shared, 2, angle, angle)
    elementwise.rotate(own, 2, angle.repeat(5, 1, 1), angle.repeat(5, 1, 1))
    torch.testing.assert_close(shared, own)


# Without a compiled library


def described(tmp_path: Path, **environment: str) -> str:
    """What a new process says of its kernels after it has computed a norm."""
    code = (
        "import torch; from rlft.model.kernels import elementwise, library; x = torch.ones(2, 4); "
        "assert torch.allclose(elementwise.rms_norm(x, x[0], 0.0), x); print(library.description())"
    )
    environment = {"RLFT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_kernels_can_be_turned_off(tmp_path: Path) -> None:
    assert described(tmp_path, RLFT_KERNELS="0") == "torch (RLFT_KERNELS=0)"
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_torch_computes(tmp_path: Path) -> None:
    assert "no C++ compiler" in described(tmp_path, PATH=str(tmp_path)) or sys.platform != "linux"


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux only")
def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "odd 1.0" && exit 0\necho "no such flag" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    text = described(tmp_path / "cache", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert text.startswith("torch (")
    assert "no such flag" in text
    assert str(compiler) in text
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or shutil.which("c++") is None,
    reason="there is nothing to compile kernels for, or with",
)
def test_a_compiler_that_is_there_builds_them(tmp_path: Path) -> None:
    assert described(tmp_path).startswith("compiled by ")


@needs_kernels
def test_a_library_is_built_once(tmp_path: Path) -> None:
    first = described(tmp_path)
    (library,) = tmp_path.rglob("*.so")
    built = library.stat().st_mtime_ns
    assert described(tmp_path) == first
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")] == [built]


@needs_kernels
def test_a_damaged_library_is_built_again(tmp_path: Path) -> None:
    first = described(tmp_path)
    (library,) = tmp_path.rglob("*.so")
    library.write_bytes(b"")  # as after a power failure
    assert described(tmp_path) == first
    assert library.stat().st_size > 1000


@needs_kernels
def test_code_that_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    described(tmp_path)
    (library,) = tmp_path.rglob("*.so")
    for path in (library, library.parent):
        path.chmod(0o770)
        told = described(tmp_path)
        assert told.startswith("torch (")
        assert f"{path} belongs to another user or can be written by others" in told
        path.chmod(0o700)


@needs_kernels
def test_without_a_home_torch_computes(tmp_path: Path) -> None:
    code = "from rlft.model.kernels import library; print(library.description())"
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": "~nobody-of-this-name/cache"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch (")
