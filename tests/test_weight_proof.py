"""The weight proof: engines that compute with other weights than they were given are found out before they generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlft.config import AdapterConfig, ModelConfig, RunConfig
from rlft.learner.rl import Learner
from rlft.learner.roles import read_role, write_role
from rlft.model import chat, sources
from rlft.model.adapter import bare_base, make_adapter
from rlft.rollout.engines import merging
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.weight_proof import CanaryMaker, Prover
from rlft.types import Adapter
from tests.fakes import letters, tiny_config


@pytest.fixture
def config(tiny_model: Path) -> RunConfig:
    return tiny_config(tiny_model)


def published(config: RunConfig, folder: Path, *, versions: int, dtype: str = "float32") -> list[Adapter]:
    """Adapters of a learner whose policy moves from version to version, each with its canary."""
    learner = Learner(config, folder)
    maker = CanaryMaker(chat.load_tokenizer(folder), letters().train[0], dtype=dtype)
    result = []
    for version in range(versions):
        generator = torch.Generator().manual_seed(version)
        tensors = read_role(learner.roles.policy)
        moved = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
        write_role(learner.roles.policy, moved)
        result.append(maker(learner.adapter(version), learner.logprobs_of))
    return result


def make_engine(config: RunConfig, folder: Path) -> TransformersEngine:
    return TransformersEngine(
        folder, chat.load_tokenizer(folder), model=config.model, adapter=config.adapter, threads=1
    )


def test_an_engine_that_loads_what_it_is_given_proves_it(config: RunConfig, tiny_model: Path) -> None:
    engine = make_engine(config, tiny_model)
    for adapter in published(config, tiny_model, versions=6):
        engine.load_adapter(adapter)
        Prover(engine)(adapter)
        assert adapter.canary is not None
        assert len(adapter.canary.logprobs) == len(adapter.canary.token_ids) > 10


def test_versions_differ_by_more_than_the_tolerance(config: RunConfig, tiny_model: Path) -> None:
    # So that the proof means something here.
    first, second = (adapter.canary for adapter in published(config, tiny_model, versions=2))
    assert first is not None
    assert second is not None
    assert max(abs(a - b) for a, b in zip(first.logprobs, second.logprobs, strict=True)) > 0.05


def test_a_stale_engine_is_named(config: RunConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = published(config, tiny_model, versions=2)
    engine = make_engine(config, tiny_model)
    engine.load_adapter(one)
    monkeypatch.setattr(merging.MergedWeights, "load", lambda self, adapter: None)  # says yes and does nothing
    engine.load_adapter(two)
    with pytest.raises(RuntimeError, match=r"adapter version 1, though .* look like version 0: the new"):
        Prover(engine)(two)


def double(load: Callable[..., None]) -> Callable[..., None]:
    def loaded(self: Any, adapter: Adapter) -> None:
        load(self, replace(adapter, tensors={n: t * (2 if "lora_B" in n else 1) for n, t in adapter.tensors.items()}))

    return loaded


def test_an_adapter_that_is_applied_twice_is_found_out(
    config: RunConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = published(config, tiny_model, versions=1)[0]
    engine = make_engine(config, tiny_model)
    monkeypatch.setattr(merging.MergedWeights, "load", double(merging.MergedWeights.load))
    engine.load_adapter(adapter)
    with pytest.raises(RuntimeError, match="an adapter applied twice"):
        Prover(engine)(adapter)


@pytest.mark.parametrize("fault", ["stale", "doubled"])
def test_a_run_with_a_faulty_engine_stops(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from rlft.train.rl.launch import train

    load = merging.MergedWeights.load

    loaded: list[Adapter] = []

    def stale(self: Any, adapter: Adapter) -> None:
        loaded.append(adapter if adapter.version < 2 else loaded[-1])
        load(self, loaded[-1])

    monkeypatch.setattr(merging.MergedWeights, "load", stale if fault == "stale" else double(load))
    changed = config.model_copy(
        update={"output_dir": str(tmp_path), "learner": config.learner.model_copy(update={"lr": 0.05})}
    )
    with pytest.raises(RuntimeError, match="does not compute with adapter version"):
        train(changed)


def test_the_bare_base_has_no_proof(config: RunConfig, tiny_model: Path) -> None:
    engine = make_engine(config, tiny_model)
    engine.load_adapter(bare_base())
    Prover(engine)(bare_base())


def test_in_bfloat16_rounding_stays_within_the_tolerance(tiny_model: Path) -> None:
    config = tiny_config(tiny_model, model={"dtype": "bfloat16"})
    engine = TransformersEngine(
        tiny_model,
        chat.load_tokenizer(tiny_model),
        model=ModelConfig(source=str(tiny_model), dtype="bfloat16"),
        adapter=AdapterConfig(rank=4, alpha=8),
        threads=1,
    )
    for adapter in published(config, tiny_model, versions=3, dtype="bfloat16"):
        engine.load_adapter(adapter)
        Prover(engine)(adapter)


def test_the_tolerance_grows_with_how_unlikely_the_text_is(tiny_model: Path) -> None:
    maker = CanaryMaker(chat.load_tokenizer(tiny_model), letters().train[0], dtype="bfloat16")
    bare = bare_base()
    likely = maker(bare, lambda prompt, ids: [-1.0] * len(ids)).canary
    unlikely = maker(bare, lambda prompt, ids: [-20.0] * len(ids)).canary
    assert likely is not None
    assert unlikely is not None
    assert likely.tolerance == 0.5
    assert unlikely.tolerance == pytest.approx(2.4)  # 0.12 * 20


def test_the_first_and_the_last_versions_are_remembered(tiny_model: Path) -> None:
    maker = CanaryMaker(chat.load_tokenizer(tiny_model), letters().train[0], dtype="float32")
    bare = bare_base()
    for version in range(30):
        sent = maker(replace(bare, version=version), lambda prompt, ids: [-1.0] * len(ids)).canary
    assert sent is not None
    assert list(sent.earlier) == [0, *range(14, 29)]


@pytest.mark.slow
def test_a_fault_is_found_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of a real model moves by a little more than the tolerance."""
    folder = sources.resolve("smollm2-135m-instruct")
    config = tiny_config(folder, model={"dtype": "bfloat16"}, adapter={"rank": 4, "alpha": 8})
    learner, engine = Learner(config, folder), make_engine(config, folder)
    maker = CanaryMaker(chat.load_tokenizer(folder), letters().train[0], dtype="bfloat16")
    generator = torch.Generator().manual_seed(1)
    start = read_role(learner.roles.policy)
    way = {n: torch.randn(t.shape, generator=generator) for n, t in start.items() if "lora_B" in n}
    first = maker(learner.adapter(0), learner.logprobs_of)
    factor, move = 1e-4, 0.0
    while move < 0.8:
        factor *= 1.3
        write_role(learner.roles.policy, {**start, **{n: factor * t for n, t in way.items()}})
        second = maker(learner.adapter(1), learner.logprobs_of)
        assert first.canary is not None
        assert second.canary is not None
        pairs = zip(first.canary.logprobs, second.canary.logprobs, strict=True)
        move = sum(abs(a - b) for a, b in pairs) / len(first.canary.logprobs)
    assert move < 1.5
    load = merging.MergedWeights.load
    for found, fault in ((False, load), (True, lambda *arguments: None), (True, double(load))):
        engine.load_adapter(first)
        prove = Prover(engine)
        prove(first)
        with monkeypatch.context() as patch:
            patch.setattr(merging.MergedWeights, "load", fault)
            engine.load_adapter(second)
            if not found:
                prove(second)
                continue
            with pytest.raises(RuntimeError, match="does not compute with adapter version 1"):
                prove(second)


@pytest.mark.slow
def test_a_stale_engine_is_found_in_bfloat16_however_small_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sources.resolve("smollm2-135m-instruct")
    config = tiny_config(folder, model={"dtype": "bfloat16"}, adapter={"rank": 4, "alpha": 8})
    learner, engine = Learner(config, folder), make_engine(config, folder)
    maker, prove = CanaryMaker(chat.load_tokenizer(folder), letters().train[0], dtype="bfloat16"), Prover(engine)
    start, generator = read_role(learner.roles.policy), torch.Generator().manual_seed(1)
    way = {n: torch.randn(t.shape, generator=generator) for n, t in start.items() if "lora_B" in n}

    def moved(version: int, factor: float) -> Adapter:
        write_role(learner.roles.policy, {**start, **{n: factor * t for n, t in way.items()}})
        return maker(learner.adapter(version), learner.logprobs_of)

    # An optimizer step moves every parameter by about the learning rate.
    for version, factor in enumerate([0.0, 0.0, 1e-7, 2e-6, 4e-6, 1e-5]):
        adapter = moved(version, factor)
        engine.load_adapter(adapter)
        prove(adapter)  # no false alarm, also where nothing has moved
    monkeypatch.setattr(merging.MergedWeights, "load", lambda *arguments: None)
    adapter = moved(6, 1.2e-5)
    engine.load_adapter(adapter)
    with pytest.raises(RuntimeError, match=r"version 6, .* exactly those that it found under version 5, .* No sample"):
        prove(adapter)


class Coarse:
    """An engine that rounds an adapter's only number to tenths, so that a small step is no step to it."""

    def __init__(self, *, ignored: tuple[int, ...] = ()) -> None:
        self.number, self._loads, self._ignored = 0.0, 0, ignored

    def load_adapter(self, adapter: Adapter) -> None:
        self._loads += 1
        if self._loads not in self._ignored:
            self.number = float(adapter.tensors["x"])

    def logprobs(self, prompt_ids: Any, token_ids: Any, *, version: int) -> list[float]:
        return [-2.0 - round(self.number, 1)] * len(token_ids)


@pytest.mark.parametrize(
    ("ignored", "found_under"),
    [((), None), (tuple(range(3, 9)), 0), ((5,), 0)],
    ids=["honest", "stale", "now and then"],
)
def test_an_engine_that_stays_where_the_learner_moves_has_to_take_other_weights(
    tiny_model: Path, ignored: tuple[int, ...], found_under: int | None
) -> None:
    engine = Coarse(ignored=ignored)
    maker = CanaryMaker(chat.load_tokenizer(tiny_model), letters().train[0], dtype="bfloat16")
    prove = Prover(engine)  # type: ignore[arg-type]

    def publish(version: int, number: float) -> None:
        adapter = make_adapter(version, {"x": torch.tensor(number)})
        engine.load_adapter(adapter)
        prove(maker(adapter, lambda prompt, ids: [-2.0 - number] * len(ids)))

    publish(0, 0.0)
    publish(1, 0.009)  # the learner moved by less than 2 % of the 0.5 that are allowed
    if found_under is None:
        publish(2, 0.02)
        assert engine.number == pytest.approx(0.02)  # not what it was put to the test with
        publish(3, 0.2)
    else:
        with pytest.raises(RuntimeError, match=r"found under version 0, while the learner's moved by 0.0200 nats"):
            publish(2, 0.02)


def test_the_same_weights_need_no_other_log_probs(tiny_model: Path) -> None:
    # A learner's log-probs may differ in the last bits between two passes, as on a GPU.
    maker = CanaryMaker(chat.load_tokenizer(tiny_model), letters().train[0], dtype="bfloat16")
    prove = Prover(Coarse(ignored=tuple(range(99))))  # type: ignore[arg-type]
    for version, logprob in enumerate([-2.0, -2.02]):
        bare = replace(bare_base(), version=version)
        prove(maker(bare, lambda prompt, ids, logprob=logprob: [logprob] * len(ids)))  # type: ignore[misc]


def test_an_engine_of_no_numbers_is_refused(tiny_model: Path) -> None:
    engine = Coarse()
    engine.number = float("nan")
    engine.logprobs = lambda prompt, ids, version: [float("nan")] * len(ids)  # type: ignore[assignment, misc]
    maker = CanaryMaker(chat.load_tokenizer(tiny_model), letters().train[0], dtype="bfloat16")
    with pytest.raises(RuntimeError, match="by nan nats per token"):
        Prover(engine)(maker(bare_base(), lambda prompt, ids: [-2.0] * len(ids)))  # type: ignore[arg-type]
