"""The transformers engine: the learner's log-probs, whatever else is in the call and whatever was loaded before."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from peft import PeftModel
from tokenizers import Tokenizer, decoders, normalizers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from rlft.config import AdapterConfig, ModelConfig
from rlft.learner.batch import collate, pack
from rlft.learner.roles import Role, add_policy, read_role, write_role
from rlft.model import base as models
from rlft.model.adapter import POLICY, adapter_hash, bare_base, make_adapter
from rlft.model.chat import ends_with, load_tokenizer
from rlft.rollout.engines import batching, by_name
from rlft.rollout.engines import transformers as transformers_engine
from rlft.rollout.engines.by_name import check_engine
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.merging import MergedWeights
from rlft.rollout.engines.traits import TransformersArguments
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.types import Adapter, Completion, Group, SamplingParams, Score, Task, Trajectory, Turn
from tests.fakes import byte_tokenizer, tiny_config

LORA = AdapterConfig(rank=4, alpha=8)
SAMPLED = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=12)
GREEDY = replace(SAMPLED, temperature=0.0)
# Prompts of different lengths, one of them a single token, and different numbers of samples.
REQUESTS = [
    Request(prompt_ids=(7,), seeds=(1, 2, 3)),
    Request(prompt_ids=(8, 9, 10, 11, 12), seeds=(4,)),
    Request(prompt_ids=(13, 14), seeds=(5, 6, 7, 8)),
    Request(prompt_ids=tuple(range(20, 50)), seeds=(9, 10)),
]
ENDS = tuple(range(0, 260, 4))
"""End tokens of `stopping_model`: a quarter of the vocabulary, so that rows end at different times."""


@pytest.fixture(scope="module")
def stopping_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with many end tokens, and with four times its logits: its own are all nearly 0."""
    folder = tmp_path_factory.mktemp("stopping") / "model"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=list(ENDS), pad_token_id=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(stopping_model: Path) -> TransformersEngine:
    return make_engine(stopping_model)


def make_engine(folder: Path | str, **engine_args: Any) -> TransformersEngine:
    return TransformersEngine(
        folder,
        load_tokenizer(folder),
        model=ModelConfig(source=str(folder), dtype="float32"),
        adapter=LORA,
        threads=1,
        engine_args=TransformersArguments(**engine_args),
    )


def make_learner_model(folder: Path) -> PeftModel:
    return add_policy(models.load_base(folder, torch.float32, torch.device("cpu")), LORA, seed=0)


def random_adapter(model: PeftModel, version: int, *, scale: float = 0.2) -> Adapter:
    """An adapter whose both halves are random: sharp distributions, nothing near 0."""
    generator = torch.Generator().manual_seed(version)
    tensors = read_role(Role(model=model, adapter=POLICY))
    return make_adapter(
        version, {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    )


def learner_logprobs(
    model: PeftModel, requests: Sequence[Request], completions: list[list[Completion]], temperature: float
) -> tuple[Tensor, Tensor]:
    """(the learner's log-probs, the engine's) of the same tokens, under the model's active adapter."""
    groups = []
    for number, (request, samples) in enumerate(zip(requests, completions, strict=True)):
        task = Task(id=str(number), messages=())
        trajectories = tuple(
            Trajectory(
                task=task,
                sample_index=index,
                seed=request.seeds[index],
                turns=(Turn(prompt_ids=request.prompt_ids, completion=completion),),
                text="",
                outcome=Score(value=0.0),
            )
            for index, completion in enumerate(samples)
        )
        groups.append(Group(task=task, trajectories=trajectories))
    batch = collate(groups)
    with torch.no_grad():
        return models.token_logprobs(model, pack(batch), temperature)[0], batch.rollout_logprobs


def plain(completions: list[list[Completion]]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Tokens and log-probs only, in order."""
    return [(c.token_ids, c.logprobs) for samples in completions for c in samples]


def assert_same(one: list[list[Completion]], other: list[list[Completion]], *, tolerance: float = 1e-5) -> None:
    for (own_ids, own_logprobs), (ids, logprobs) in zip(plain(one), plain(other), strict=True):
        assert own_ids == ids
        assert own_logprobs == pytest.approx(logprobs, abs=tolerance)


# The learner's log-probs


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("kind", ["bare", "fresh", "random"])
def test_log_probs_are_the_learners(
    engine: TransformersEngine, stopping_model: Path, kind: str, temperature: float
) -> None:
    model = make_learner_model(stopping_model)
    adapter = {
        "bare": bare_base(),
        "fresh": make_adapter(0, read_role(Role(model=model, adapter=POLICY))),
        "random": random_adapter(model, 3),
    }[kind]
    if adapter.tensors:
        write_role(Role(model=model, adapter=POLICY), adapter.tensors)
    engine.load_adapter(adapter)
    params = replace(SAMPLED, temperature=temperature)
    completions = engine.generate(REQUESTS, params, version=adapter.version)
    learner, own = learner_logprobs(model, REQUESTS, completions, temperature)
    assert float((learner - own).abs().max()) < 1e-5
    assert {(c.adapter_version, c.adapter_hash) for samples in completions for c in samples} == {
        (adapter.version, adapter_hash(adapter.tensors))
    }


def test_a_random_adapter_changes_the_distribution(engine: TransformersEngine, stopping_model: Path) -> None:
    # So that the parity above means something: under the bare base the same tokens have quite other log-probs.
    model = make_learner_model(stopping_model)  # its fresh adapter does nothing
    engine.load_adapter(random_adapter(model, 3))
    completions = engine.generate(REQUESTS, SAMPLED, version=3)
    learner, own = learner_logprobs(model, REQUESTS, completions, 1.0)
    assert float((learner - own).abs().mean()) > 0.3


SMALL = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
}


def save_family(folder: Path, config_class: str, changes: dict[str, Any]) -> Path:
    """A random model of another family with the byte tokenizer."""
    config: PretrainedConfig = getattr(transformers, config_class)(**{**SMALL, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}),
        ("PhiConfig", {}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 8}),
        ("MistralConfig", {"sliding_window": 64}),
        ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 64}),
        ("Phi3Config", {}),
        pytest.param(
            "GPT2Config",
            {"n_inner": 48},  # its layers store their weights transposed, which peft notices with a warning
            marks=pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
        ),
    ],
)
def test_log_probs_are_the_learners_in_other_families(
    tmp_path: Path, config_class: str, changes: dict[str, Any]
) -> None:
    folder = save_family(tmp_path / "model", config_class, changes)
    model, engine = make_learner_model(folder), make_engine(folder)
    adapter = random_adapter(model, 1, scale=0.1)
    write_role(Role(model=model, adapter=POLICY), adapter.tensors)
    engine.load_adapter(adapter)
    completions = engine.generate(REQUESTS, SAMPLED, version=1)
    learner, own = learner_logprobs(model, REQUESTS, completions, 1.0)
    assert float((learner - own).abs().max()) < 1e-5


def test_log_probs_of_given_tokens_are_those_of_sampling(engine: TransformersEngine, stopping_model: Path) -> None:
    engine.load_adapter(random_adapter(make_learner_model(stopping_model), 1))
    for request, samples in zip(REQUESTS, engine.generate(REQUESTS, SAMPLED, version=1), strict=True):
        for completion in samples:
            own = engine.logprobs(request.prompt_ids, completion.token_ids, version=1)
            assert own == pytest.approx(completion.logprobs, abs=1e-5)
    with pytest.raises(ValueError, match="version 7 while 1 is loaded"):
        engine.logprobs((7,), (8,), version=7)


# Sampling options


@pytest.mark.parametrize("choices", [{"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.9}])
def test_truncated_sampling_keeps_the_policys_log_probs_too(
    engine: TransformersEngine, stopping_model: Path, choices: dict[str, Any]
) -> None:
    engine.load_adapter(bare_base())
    completions = engine.generate(REQUESTS, replace(SAMPLED, temperature=0.8, **choices), version=-1)
    learner, sampled = learner_logprobs(make_learner_model(stopping_model), REQUESTS, completions, 0.8)
    own = torch.tensor([p for samples in completions for c in samples for p in c.policy_logprobs or ()])
    assert float((learner - own).abs().max()) < 1e-5
    assert bool((sampled > own + 1e-3).any())  # what is kept is renormalised
    assert not bool((sampled < own - 1e-5).any())


def test_a_stop_text_ends_the_completion_with_its_last_token(engine: TransformersEngine, tiny_model: Path) -> None:
    engine.load_adapter(bare_base())
    tokenizer = load_tokenizer(tiny_model)
    requests = [Request(prompt_ids=(7, 9), seeds=tuple(range(200)))]
    free = engine.generate(requests, SAMPLED, version=-1)[0]
    text = next(t for c in free if len(t := tokenizer.decode(c.token_ids[1:3])) == 2 and t.isascii() and t.isalnum())
    params = replace(SAMPLED, stop=("never this", text))
    cut = engine.generate(requests, params, version=-1)[0]
    assert any(len(own.token_ids) < len(whole.token_ids) for own, whole in zip(cut, free, strict=True))
    for own, whole in zip(cut, free, strict=True):
        assert whole.token_ids[: len(own.token_ids)] == own.token_ids
        written = tokenizer.decode(own.token_ids)
        if len(own.token_ids) < len(whole.token_ids):
            assert own.finish_reason == "stop"
            assert written.endswith(text)
        assert text not in tokenizer.decode(own.token_ids[:-1])


@pytest.mark.parametrize("text", ["終わりました。答えは", "🙂🙂🙂🙂"])
def test_a_stop_text_may_have_several_tokens_per_character(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    tokenizer, engine = load_tokenizer(tiny_model), make_engine(tiny_model)
    written = tokenizer(f"はい、{text}5")["input_ids"]

    class Scripted(transformers_engine._Decoder):
        """Its model writes `written`."""

        def step(self, tokens: Tensor) -> Tensor:
            logits = torch.zeros(len(tokens), len(tokenizer))
            logits[:, remaining.pop(0)] = 9.0
            return logits

    remaining = list(written)
    monkeypatch.setattr(transformers_engine, "_Decoder", Scripted)
    engine.load_adapter(bare_base())
    params = replace(GREEDY, max_new_tokens=len(written), stop=(text,))
    completion = engine.generate(REQUESTS[1:2], params, version=-1)[0][0]
    assert completion.token_ids == tuple(written[:-1])
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("before", ["", "a", "é", "漢" * 30, "🙂" * 30])
@pytest.mark.parametrize("text", ["</call>", "終わりました。", "🙃🙃🙃🙃"])
def test_a_stop_text_is_found_whatever_stands_before_it(before: str, text: str) -> None:
    for tokenizer in (byte_tokenizer(), byte_fallback_tokenizer()):
        ids = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        assert [end for end in range(1, len(ids) + 1) if ends_with(tokenizer, ids[:end], ["no", text])] == [len(ids)]


def test_a_stop_text_may_begin_with_a_space() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = tokenizer("b" * 30 + " a", add_special_tokens=False)["input_ids"]
    assert ends_with(tokenizer, ids, [" a"])


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As sentencepiece has it: few characters are tokens, all else is bytes, and a space at the start is dropped."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcl"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_special_token_can_be_a_stop_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert ends_with(tokenizer, [9, 9, user], ["<|user|>"])
    assert not ends_with(tokenizer, [9, 9, 9], ["<|user|>"])


@pytest.mark.slow
def test_a_compiled_model_samples_the_same(engine: TransformersEngine, stopping_model: Path) -> None:
    compiled = make_engine(stopping_model, compile=True)
    for each in (engine, compiled):
        each.load_adapter(bare_base())
    assert_same(compiled.generate(REQUESTS, SAMPLED, version=-1), engine.generate(REQUESTS, SAMPLED, version=-1))


def test_wrong_arguments_are_refused_before_anything_starts(tiny_model: Path) -> None:
    told = r"rollout\.engine_args\.max_row: unknown key\. Did you mean 'max_rows'\? .* has max_rows, cache_mb, compile"
    with pytest.raises(ValueError, match=told):
        check_engine(tiny_config(tiny_model, rollout={"engine_args": {"max_row": 3}}), is_trained=True)
    with pytest.raises(ValueError, match=r"rollout\.engine_args\.cache_mb: Input should be greater than 0"):
        check_engine(tiny_config(tiny_model, rollout={"engine_args": {"cache_mb": 0}}), is_trained=True)
    check_engine(tiny_config(tiny_model, rollout={"engine_args": {"max_rows": 3, "cache_mb": 9}}), is_trained=True)


def test_arguments_reach_the_engine(tiny_model: Path) -> None:
    config = tiny_config(tiny_model, rollout={"engine_args": {"max_rows": 3, "cache_mb": 9}})
    engine = by_name.make_engine(config, str(tiny_model), load_tokenizer(tiny_model))
    assert isinstance(engine, TransformersEngine)
    assert (engine._max_rows, engine._cache_bytes) == (3, 9e6)
    wrong = tiny_config(tiny_model, rollout={"engine_args": {"max_row": 3}})
    with pytest.raises(ValueError, match=r"rollout\.engine_args\.max_row: unknown key"):
        by_name.make_engine(wrong, str(tiny_model), load_tokenizer(tiny_model))


# Loading


def test_nothing_accumulates(engine: TransformersEngine, stopping_model: Path) -> None:
    # Bit for bit: what was loaded before leaves no trace.
    model = make_learner_model(stopping_model)
    one, two, bare = random_adapter(model, 1), random_adapter(model, 2), bare_base()
    results: dict[int, list[object]] = {}
    for adapter in (bare, one, one, two, one, bare, two, bare, one):
        engine.load_adapter(adapter)
        completions = plain(engine.generate(REQUESTS, SAMPLED, version=adapter.version))
        assert results.setdefault(adapter.version, completions) == completions
    assert results[1] != results[2] != results[-1] != results[1]


def test_an_adapter_of_some_modules_resets_the_others(engine: TransformersEngine, stopping_model: Path) -> None:
    # After a whole adapter, one that has only the queries: the same as on a fresh engine.
    model = make_learner_model(stopping_model)
    whole = random_adapter(model, 1)
    part = make_adapter(2, {name: t for name, t in random_adapter(model, 2).tensors.items() if "q_proj" in name})
    fresh = make_engine(stopping_model)
    fresh.load_adapter(part)
    engine.load_adapter(whole)
    engine.load_adapter(part)
    assert plain(engine.generate(REQUESTS, SAMPLED, version=2)) == plain(fresh.generate(REQUESTS, SAMPLED, version=2))


def test_unloaded_weights_are_gone_and_come_back(stopping_model: Path) -> None:
    model, engine, fresh = make_learner_model(stopping_model), make_engine(stopping_model), make_engine(stopping_model)
    whole = random_adapter(model, 1)
    part = make_adapter(2, {name: t for name, t in random_adapter(model, 2).tensors.items() if "q_proj" in name})
    engine.unload()  # there is nothing yet
    engine.load_adapter(whole)
    expected = plain(engine.generate(REQUESTS, SAMPLED, version=1))
    held = [weakref.ref(linear.linear) for linear in engine._forward._linears.all]  # type: ignore[attr-defined]
    engine.unload()
    engine.unload()
    gc.collect()
    assert sum(each() is not None for each in held) == 1 < len(held)  # the vocabulary's has no update
    with pytest.raises(ValueError, match="asked to generate with adapter version 1 while None is loaded"):
        engine.generate(REQUESTS, SAMPLED, version=1)
    for each in (engine, fresh):
        each.load_adapter(part)
    assert plain(engine.generate(REQUESTS, SAMPLED, version=2)) == plain(fresh.generate(REQUESTS, SAMPLED, version=2))
    engine.load_adapter(whole)
    assert plain(engine.generate(REQUESTS, SAMPLED, version=1)) == expected


def test_an_interrupted_load_leaves_no_version_and_no_trace(
    stopping_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = make_learner_model(stopping_model), make_engine(stopping_model)
    part = make_adapter(1, {name: t for name, t in random_adapter(model, 1).tensors.items() if "q_proj" in name})
    engine.load_adapter(part)
    expected, merge, calls = plain(engine.generate(REQUESTS, SAMPLED, version=1)), MergedWeights._weight, []

    def interrupted(self: MergedWeights, *args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return merge(self, *args)

    other = random_adapter(model, 2)
    monkeypatch.setattr(MergedWeights, "_weight", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.load_adapter(other)
    with pytest.raises(ValueError, match="while None is loaded"):
        engine.generate(REQUESTS, SAMPLED, version=1)
    engine.load_adapter(part)
    assert plain(engine.generate(REQUESTS, SAMPLED, version=1)) == expected


def test_loading_does_not_hold_two_adapters_weights(stopping_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine = make_learner_model(stopping_model), make_engine(stopping_model)
    engine.load_adapter(random_adapter(model, 1))
    held = [weakref.ref(linear.linear) for linear in engine._forward._linears.all]  # type: ignore[attr-defined]
    counts, merge = [], MergedWeights._weight

    def counting(self: MergedWeights, *args: Any) -> Tensor:
        counts.append(sum(each() is not None for each in held))
        return merge(self, *args)

    monkeypatch.setattr(MergedWeights, "_weight", counting)
    engine.load_adapter(random_adapter(model, 2))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 2  # the last one, and the vocabulary's


def test_an_adapter_with_a_wrong_hash_is_refused(engine: TransformersEngine, stopping_model: Path) -> None:
    good = random_adapter(make_learner_model(stopping_model), 1)
    engine.load_adapter(good)
    before = engine.generate(REQUESTS, SAMPLED, version=1)
    damaged = {name: tensor.clone() for name, tensor in good.tensors.items()}
    next(iter(damaged.values()))[0, 0] += 2**-20  # one bit or two of one number
    with pytest.raises(ValueError, match="adapter version 2 claims hash"):
        engine.load_adapter(replace(good, version=2, tensors=damaged))
    assert plain(engine.generate(REQUESTS, SAMPLED, version=1)) == plain(before)


def misfit(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of an adapter that belongs to another model; the fault stands at the end, after what would fit."""
    last = max(name for name in tensors if name.endswith("lora_B.weight"))
    if kind == "shape":
        return {**tensors, last: torch.ones(tensors[last].shape[0] + 1, LORA.rank)}
    if kind == "rank":  # it would be scaled by alpha / rank of another rank
        return {name: torch.cat([t, t], dim=0 if "lora_A" in name else 1) for name, t in tensors.items()}
    if kind == "half missing":
        return {name: tensor for name, tensor in tensors.items() if name != last}
    if kind == "unknown module":
        return {name.replace(".1.", ".7."): tensor for name, tensor in tensors.items()}
    return {**tensors, last.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(4)}  # DoRA's


@pytest.mark.parametrize("kind", ["shape", "rank", "half missing", "unknown module", "unknown tensor"])
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    engine: TransformersEngine, stopping_model: Path, kind: str
) -> None:
    model = make_learner_model(stopping_model)
    engine.load_adapter(random_adapter(model, 1))
    before = engine.generate(REQUESTS, SAMPLED, version=1)
    bad = make_adapter(2, misfit(dict(random_adapter(model, 2).tensors), kind))
    with pytest.raises(ValueError, match="adapter"):
        engine.load_adapter(bad)
    # Half merged weights that still call themselves version 1 would be stamped with its hash.
    assert plain(engine.generate(REQUESTS, SAMPLED, version=1)) == plain(before)


def test_another_version_than_the_loaded_one_is_refused(tiny_model: Path) -> None:
    engine = make_engine(tiny_model)
    with pytest.raises(ValueError, match="version 0 while None is loaded"):
        engine.generate(REQUESTS, SAMPLED, version=0)
    engine.load_adapter(bare_base())
    assert engine.version == -1
    with pytest.raises(ValueError, match="version 4 while -1 is loaded"):
        engine.generate(REQUESTS, SAMPLED, version=4)


# Generating


@pytest.mark.parametrize("params", [SAMPLED, GREEDY, replace(SAMPLED, temperature=0.8, top_p=0.9)])
def test_a_completion_does_not_depend_on_the_other_requests(
    engine: TransformersEngine, stopping_model: Path, params: SamplingParams
) -> None:
    engine.load_adapter(random_adapter(make_learner_model(stopping_model), 1))
    together = engine.generate(REQUESTS, params, version=1)
    alone = [engine.generate([request], params, version=1)[0] for request in REQUESTS]
    assert_same(together, alone)
    turned = engine.generate(REQUESTS[::-1], params, version=1)[::-1]
    assert_same(together, turned)
    single_seeds = [
        [engine.generate([Request(prompt_ids=request.prompt_ids, seeds=(seed,))], params, version=1)[0][0]]
        for request in REQUESTS
        for seed in request.seeds
    ]
    assert_same(together, single_seeds)


def test_a_seed_makes_the_sample(engine: TransformersEngine) -> None:
    engine.load_adapter(bare_base())
    twice = engine.generate([Request(prompt_ids=(7, 9), seeds=(1, 2, 1))], SAMPLED, version=-1)[0]
    assert twice[0] == twice[2]
    assert twice[0].token_ids != twice[1].token_ids


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("max_rows", [1, 2, 5, 64])
def test_rows_that_wait_or_leave_change_nothing(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, block: int, max_rows: int
) -> None:
    engine.load_adapter(bare_base())
    expected = engine.generate(REQUESTS, SAMPLED, version=-1)
    lengths = [len(c.token_ids) for samples in expected for c in samples]
    assert len(set(lengths)) > 3  # they end at different times
    monkeypatch.setattr(batching, "ROW_BLOCK", block)
    monkeypatch.setattr(engine, "_max_rows", max_rows)
    assert_same(engine.generate(REQUESTS, SAMPLED, version=-1), expected)


def test_a_batch_that_does_not_fit_the_cache_is_generated_in_turns(
    engine: TransformersEngine, tiny_model: Path
) -> None:
    engine.load_adapter(bare_base())
    expected = engine.generate(REQUESTS, SAMPLED, version=-1)
    # 2 layers x 2 heads x 8 numbers x 4 bytes, keys and values: 256 bytes a token.
    small = make_engine(engine._folder, cache_mb=256 * (2 * 30 + 2 * 12) / 1e6)
    small.load_adapter(bare_base())
    assert_same(small.generate(REQUESTS, SAMPLED, version=-1), expected)
    tiny = make_engine(tiny_model, cache_mb=1e-3)
    tiny.load_adapter(bare_base())
    with pytest.raises(ValueError, match="raise it, or shorten prompts"):
        tiny.generate(REQUESTS, SAMPLED, version=-1)


def test_the_end_token_is_included_and_names_the_finish_reason(engine: TransformersEngine) -> None:
    engine.load_adapter(bare_base())
    requests = [Request(prompt_ids=(7, 9), seeds=tuple(range(200)))]
    completions = engine.generate(requests, replace(SAMPLED, max_new_tokens=4), version=-1)[0]
    for completion in completions:
        *before, last = completion.token_ids
        assert not set(before) & set(ENDS)
        assert completion.finish_reason == ("stop" if last in ENDS else "length")
        assert len(completion.token_ids) == 4 or last in ENDS
        assert len(completion.logprobs) == len(completion.token_ids)
    # All kinds are there: cut, ended early, and ended with the last token that was allowed, which is "stop", too.
    kinds = {(len(c.token_ids) == 4, c.finish_reason) for c in completions}
    assert kinds == {(True, "length"), (False, "stop"), (True, "stop")}


def test_one_token_is_a_completion(engine: TransformersEngine) -> None:
    engine.load_adapter(bare_base())
    completions = engine.generate(REQUESTS, replace(SAMPLED, max_new_tokens=1), version=-1)
    longer = engine.generate(REQUESTS, SAMPLED, version=-1)
    assert [len(ids) for ids, _ in plain(completions)] == [1] * 10
    assert [ids[0] for ids, _ in plain(completions)] == [ids[0] for ids, _ in plain(longer)]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{len(request.prompt_ids)} tokens")
def test_greedy_equals_generate_of_transformers(
    engine: TransformersEngine, stopping_model: Path, request_: Request
) -> None:
    model = make_learner_model(stopping_model)
    adapter = random_adapter(model, 5)
    write_role(Role(model=model, adapter=POLICY), adapter.tensors)
    model.get_base_model().set_attn_implementation("eager")
    prompt = torch.tensor([request_.prompt_ids])
    expected = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=GREEDY.max_new_tokens, eos_token_id=list(ENDS), pad_token_id=0
        ),
    )[0, prompt.shape[1] :].tolist()
    engine.load_adapter(adapter)
    [completions] = engine.generate([request_], GREEDY, version=5)
    assert {completion.token_ids for completion in completions} == {tuple(expected)}


# Refusals


def test_an_empty_prompt_is_refused(engine: TransformersEngine) -> None:
    engine.load_adapter(bare_base())
    with pytest.raises(ValueError, match="empty prompt"):
        engine.generate([REQUESTS[0], Request(prompt_ids=(), seeds=(1,))], SAMPLED, version=-1)


def test_what_exceeds_the_context_is_refused(engine: TransformersEngine) -> None:
    # The tiny model's context has 256 tokens: 244 + 12 fit, 245 + 12 do not.
    engine.load_adapter(bare_base())
    fits = Request(prompt_ids=(9,) * 244, seeds=(1,))
    assert len(engine.generate([fits], SAMPLED, version=-1)[0]) == 1
    with pytest.raises(ValueError, match="257 tokens exceed the model's context of 256"):
        engine.generate([Request(prompt_ids=(9,) * 245, seeds=(1,))], SAMPLED, version=-1)


def test_what_exceeds_the_sliding_window_is_refused(tmp_path: Path) -> None:
    engine = make_engine(save_family(tmp_path / "model", "MistralConfig", {"sliding_window": 16}))
    engine.load_adapter(bare_base())
    engine.generate([Request(prompt_ids=(9, 9, 9, 9), seeds=(1,))], SAMPLED, version=-1)
    with pytest.raises(ValueError, match="17 tokens exceed the model's sliding window of 16"):
        engine.generate([Request(prompt_ids=(9,) * 5, seeds=(1,))], SAMPLED, version=-1)
    assert engine.context == 16  # what episodes of several turns keep to
