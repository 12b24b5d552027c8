"""Drawing tokens: the right distribution, its edges, and numbers that depend on the seed alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rlft.rollout.engines.sampling import Drawn
from rlft.rollout.engines.sampling import sample as sample_with
from rlft.rollout.seeds import sample_seed, uniforms
from rlft.types import SamplingParams

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""


def drawn(logits: Tensor, uniform: Tensor, **choices: float) -> Drawn:
    """`sampling.sample` with the choices that matter here."""
    params = SamplingParams(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1, **choices})  # type: ignore[arg-type]
    return sample_with(logits, uniform, params)


def sample(logits: Tensor, uniform: Tensor, **choices: float) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs under the distribution that was sampled."""
    return drawn(logits, uniform, **choices)[:2]


def draw(row: Tensor, uniform: list[float], *, temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    """Tokens for one row of logits and many uniform numbers."""
    logits = row.expand(len(uniform), -1)
    return sample(logits, torch.tensor(uniform), temperature=temperature, top_p=top_p)[0].tolist()


def probabilities(values: list[float]) -> Tensor:
    """Logits with these probabilities."""
    return torch.tensor(values, dtype=torch.float64).log().float()


# sample


@pytest.mark.parametrize("vocab", [7, 256, 300, 512, 1000])  # below, at, between and at multiples of the block of 256
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_softmax(temperature: float, vocab: int) -> None:
    count = 20_000
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    expected = (row.double() / temperature).softmax(dim=0).numpy() * count
    uniform = torch.from_numpy(uniforms(np.array([0], dtype=np.uint64), count)[0]).float()
    tokens, _ = sample(row.expand(count, -1), uniform, temperature=temperature, top_p=1.0)
    observed = np.bincount(tokens.numpy(), minlength=vocab)
    # Chi-square wants at least 5 expected draws per class: the rare tokens are one class together.
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    # The numbers are fixed, so this either always passes or never; a wrong distribution gives p < 1e-10.
    assert scipy.stats.chisquare(observed[kept], expected[kept]).pvalue > 0.001


@pytest.mark.parametrize("vocab", [7, 256, 300, 512])
def test_a_token_is_drawn_exactly_where_its_cumulative_interval_lies(vocab: int) -> None:
    # The middle of every token's interval of the cumulative distribution belongs to that token, in vocabulary order.
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(1))
    p = row.double().softmax(dim=0)
    middles = (p.cumsum(dim=0) - p / 2).tolist()
    assert draw(row, middles) == list(range(vocab))


def test_borders_by_hand() -> None:
    # Cumulative 0.25, 0.5, 1: a border belongs to the token after it.
    row = probabilities([0.25, 0.25, 0.5])
    assert draw(row, [0.0, 0.2499, 0.2501, 0.4999, 0.5001, 0.75, BELOW_ONE]) == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("vocab", [256, 300, 512, 1000])
def test_tokens_without_probability_are_never_drawn(vocab: int) -> None:
    # Only three tokens have any; they stand in several blocks, and blocks without any lie before, between and after.
    allowed = [vocab // 3, vocab // 2, vocab // 2 + 1]
    row = torch.full((vocab,), float("-inf"))
    row[allowed] = torch.tensor([0.1, 2.0, -1.0])
    edge = [0.0, 2**-24, 0.5, 1 - 2**-23, BELOW_ONE]
    uniform = edge + torch.linspace(0, BELOW_ONE, 1000).tolist()
    tokens = draw(row, uniform)
    assert set(tokens) == set(allowed)
    assert tokens[0] == allowed[0]
    assert tokens[4] == allowed[-1]


@pytest.mark.parametrize("only", [0, 255, 256, 299])
@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
def test_a_certain_token_is_drawn_whatever_the_number(uniform: float, only: int) -> None:
    row = torch.full((1, 300), float("-inf"))
    row[0, only] = -3.0
    tokens, logprobs = sample(row, torch.tensor([uniform]), temperature=1.0, top_p=1.0)
    assert tokens.tolist() == [only]
    assert logprobs.tolist() == [0.0]


@pytest.mark.parametrize("seed", range(5))
def test_edges_of_the_unit_interval_give_the_first_and_the_last_token(seed: int) -> None:
    # 50,000 tokens of nearly equal probability: 2e-5 each, more than the 6e-8 that BELOW_ONE leaves.
    row = 0.1 * torch.randn(50_000, generator=torch.Generator().manual_seed(seed))
    assert draw(row, [0.0, BELOW_ONE]) == [0, 49_999]


@pytest.mark.parametrize("vocab", [256, 300])
def test_a_target_that_rounding_carries_past_the_end_is_the_last_token_with_probability(vocab: int) -> None:
    # 1.0 stands for such a target; behind the last token there are the block's padding and three impossible tokens.
    row = torch.zeros(vocab)
    row[-3:] = float("-inf")
    assert draw(row, [1.0]) == [vocab - 4]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_those_of_the_drawn_tokens(temperature: float, dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(64, 300, generator=torch.Generator().manual_seed(0))).to(dtype)
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = sample(logits, uniform, temperature=temperature, top_p=1.0)
    expected = (logits.double() / temperature).log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
    assert torch.allclose(logprobs.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_logprobs_add_up_to_one(top_p: float) -> None:
    # Every kept token is drawn once, in the middle of its interval: the probabilities that come back sum to 1.
    row = torch.randn(40, generator=torch.Generator().manual_seed(2))
    uniform = torch.linspace(0, BELOW_ONE, 20_000)
    tokens, logprobs = sample(row.expand(20_000, -1), uniform, temperature=1.0, top_p=top_p)
    seen = {int(token): float(logprob) for token, logprob in zip(tokens, logprobs, strict=True)}
    assert sum(np.exp(list(seen.values()))) == pytest.approx(1.0, abs=1e-5)
    assert (len(seen) == 40) == (top_p == 1.0)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        # Probabilities 0.5, 0.3, 0.15, 0.05 in the order 2, 0, 3, 1: sums 0.5, 0.8, 0.95, 1.
        (0.4, {2}),
        (0.6, {2, 0}),
        (0.9, {2, 0, 3}),
        (0.96, {2, 0, 3, 1}),
        (1e-6, {2}),  # the most probable token is always kept
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p: float, kept: set[int]) -> None:
    row = probabilities([0.3, 0.05, 0.5, 0.15])
    uniform = torch.linspace(0, BELOW_ONE, 1000)
    tokens, logprobs = sample(row.expand(1000, -1), uniform, temperature=1.0, top_p=top_p)
    assert set(tokens.tolist()) == kept
    # What is kept is renormalised: token 2 has 0.5 / mass.
    mass = sum([0.3, 0.05, 0.5, 0.15][token] for token in kept)
    assert logprobs[tokens == 2][0].item() == pytest.approx(np.log(0.5 / mass), abs=1e-5)


def test_temperature_comes_before_top_p() -> None:
    # At temperature 1/2 the probabilities 0.5, 0.3, 0.2 become 25 : 9 : 4 = 0.658, 0.237, 0.105: the first is enough.
    row = probabilities([0.5, 0.3, 0.2])
    uniform = torch.linspace(0, BELOW_ONE, 100).tolist()
    assert set(draw(row, uniform, temperature=0.5, top_p=0.6)) == {0}
    assert set(draw(row, uniform, temperature=1.0, top_p=0.6)) == {0, 1}


@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
def test_greedy_takes_the_most_probable_token(uniform: float) -> None:
    logits = torch.randn(16, 300, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = sample(logits, torch.full((16,), uniform), temperature=0, top_p=0.5)
    assert torch.equal(tokens, logits.argmax(dim=-1))
    assert torch.allclose(logprobs, logits.log_softmax(dim=-1).amax(dim=-1), atol=1e-6)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (0.0, 1.0)])
def test_a_row_does_not_depend_on_the_others(temperature: float, top_p: float) -> None:
    logits = torch.randn(9, 300, generator=torch.Generator().manual_seed(4))
    uniform = torch.rand(9, generator=torch.Generator().manual_seed(5))
    tokens, logprobs = sample(logits, uniform, temperature=temperature, top_p=top_p)
    for row in range(9):
        token, logprob = sample(logits[row : row + 1], uniform[row : row + 1], temperature=temperature, top_p=top_p)
        assert token.item() == tokens[row].item()
        assert logprob.item() == pytest.approx(logprobs[row].item(), abs=1e-6)


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(3, 300)
    before = logits.clone()
    for temperature, top_p in [(1.0, 1.0), (0.7, 0.9), (0.0, 1.0)]:
        sample(logits, torch.tensor([0.1, 0.5, 0.9]), temperature=temperature, top_p=top_p)
        assert torch.equal(logits, before)


# uniforms and seeds


@pytest.mark.parametrize(
    ("seed", "outputs"),
    [
        # First outputs of Vigna's splitmix64.c, whose state is incremented before it is mixed.
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_uniforms_are_the_top_53_bits_of_splitmix64(seed: int, outputs: list[int]) -> None:
    expected = [(output >> 11) / 2**53 for output in outputs]
    assert uniforms(np.array([seed], dtype=np.uint64), 3)[0].tolist() == expected


def splitmix64(seed: int, count: int) -> list[float]:
    """The same in whole numbers of Python."""
    mask, result, state = 2**64 - 1, [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        result.append(((z ^ (z >> 31)) >> 11) / 2**53)
    return result


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_uniforms_equal_splitmix64_in_whole_numbers(seed: int) -> None:
    assert uniforms(np.array([seed], dtype=np.uint64), 50)[0].tolist() == splitmix64(seed, 50)


def test_a_row_of_uniforms_depends_on_its_seed_alone() -> None:
    seeds = np.array([sample_seed(0, "train", 1, f"task-{i}", i) for i in range(20)], dtype=np.uint64)
    together = uniforms(seeds, 12)
    assert together.shape == (20, 12)
    for row, seed in enumerate(seeds):
        assert uniforms(np.array([seed], dtype=np.uint64), 12)[0].tolist() == together[row].tolist()
    # A longer stream begins with the shorter one.
    assert uniforms(seeds, 30)[:, :12].tolist() == together.tolist()


def test_uniforms_are_uniform() -> None:
    values = uniforms(np.arange(100, dtype=np.uint64), 200)
    assert values.min() >= 0
    assert values.max() < 1
    assert scipy.stats.kstest(values.ravel(), "uniform").pvalue > 0.001
    # Neighbouring seeds are not alike: the first numbers of 100 seeds in a row are uniform, too.
    assert scipy.stats.kstest(values[:, 0], "uniform").pvalue > 0.001


def test_every_field_makes_another_seed() -> None:
    fields = itertools.product((0, 1), ("train", "evaluate"), (1, 11), ("1", "11", "a"), (1, 11))
    seeds = [sample_seed(*field) for field in fields]
    assert len(set(seeds)) == len(seeds) == 48
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_seed_is_the_same_tomorrow() -> None:
    # Written down once: another value would change every run that is resumed with a newer version.
    assert sample_seed(0, "train", 1, "sum-17-25", 3) == 10247065310296083240


# Truncation


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        # Probabilities 0.3, 0.05, 0.5, 0.15 of the tokens 0 to 3.
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {2, 0, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.5}, {2, 0}),  # 0.3 / 0.5 = 0.6, 0.15 / 0.5 = 0.3
        ({"min_p": 0.05}, {0, 1, 2, 3}),
        (
            {"top_k": 3, "top_p": 0.85},
            {2, 0, 3},
        ),  # of the 0.95 that top-k leaves 0.8075 is asked for: 0.8 is too little
        ({"top_k": 3, "top_p": 0.84}, {2, 0}),  # 0.798
        ({"top_p": 0.9, "min_p": 0.5}, {2, 0}),
    ],
)
def test_truncation_keeps_the_right_tokens(choices: dict[str, float], kept: set[int]) -> None:
    p = [0.3, 0.05, 0.5, 0.15]
    uniform = torch.linspace(0, BELOW_ONE, 2000)
    result = drawn(probabilities(p).expand(2000, -1), uniform, **choices)
    assert set(result.tokens.tolist()) == kept
    mass = sum(p[token] for token in kept)
    expected = torch.tensor([np.log(p[token] / mass) for token in result.tokens.tolist()]).float()
    assert torch.allclose(result.logprobs, expected, atol=1e-5)
    # The policy's own log-probs do not know of the truncation.
    policy = torch.tensor([np.log(p[token]) for token in result.tokens.tolist()]).float()
    assert result.policy_logprobs is not None
    assert torch.allclose(result.policy_logprobs, policy, atol=1e-5)


def test_without_truncation_there_is_one_distribution() -> None:
    assert drawn(torch.zeros(1, 9), torch.tensor([0.5]), temperature=0.7).policy_logprobs is None
    assert drawn(torch.zeros(1, 9), torch.tensor([0.5]), temperature=0.0, top_k=3).policy_logprobs is None


def test_equally_probable_tokens_are_kept_together() -> None:
    # Two tokens share the second place: with top_k = 2 neither is preferred.
    row = probabilities([0.4, 0.2, 0.2, 0.1, 0.1])
    assert set(draw_with(row, top_k=2)) == {0, 1, 2}
    assert set(draw_with(row, top_p=0.5)) == {0, 1, 2}


def draw_with(row: Tensor, **choices: float) -> list[int]:
    return drawn(row.expand(1000, -1), torch.linspace(0, BELOW_ONE, 1000), **choices).tokens.tolist()


@pytest.mark.parametrize("vocab", [1500, 2500])
def test_a_nucleus_larger_than_the_candidates_is_found_exactly(vocab: int) -> None:
    # Nearly flat: 0.95 of the mass needs more tokens than are sorted at first; a peaked row beside it does not.
    generator = torch.Generator().manual_seed(0)
    logits = torch.stack([0.1 * torch.randn(vocab, generator=generator), 9 * torch.randn(vocab, generator=generator)])
    for row in logits:
        ordered, order = row.double().softmax(dim=0).sort(descending=True)
        size = int((ordered.cumsum(0) - ordered < 0.95).sum())
        kept = set(order[:size].tolist())
        middles = torch.linspace(0, BELOW_ONE, 4 * size)
        seen = set(drawn(row.expand(4 * size, -1), middles, top_p=0.95).tokens.tolist())
        assert seen <= kept
        assert (size > 1024) == torch.equal(row, logits[0])
        assert len(seen) > 0.8 * size
