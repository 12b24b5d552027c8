"""The vLLM engine for real, with the build for CPUs: the learner's log-probs, before and after adapters are swapped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from rlft.config import AdapterConfig, ModelConfig
from rlft.learner.batch import collate, pack, single
from rlft.learner.roles import Role, active, add_policy, read_role, write_role
from rlft.model import base as models
from rlft.model.adapter import BASE_VERSION, POLICY, adapter_hash, bare_base, make_adapter, save_tensors
from rlft.model.chat import load_tokenizer
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.traits import VLLM_TAKEN, VllmArguments
from rlft.rollout.engines.vllm import VllmEngine
from rlft.rollout.weight_proof import CanaryMaker, Prover
from rlft.train.rl import launch
from rlft.types import Adapter, Completion, Group, SamplingParams, Score, Task, Trajectory, Turn
from tests.fakes import letters, read_metrics, save_tiny_model, tiny_config

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LORA = AdapterConfig(rank=4, alpha=8)
SAMPLED = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=12)
GREEDY = replace(SAMPLED, temperature=0.0)
REQUESTS = [
    Request(prompt_ids=(7,), seeds=(1, 2, 3)),
    Request(prompt_ids=(8, 9, 10, 11, 12), seeds=(2**64 - 1,)),
    Request(prompt_ids=(13, 14), seeds=(5, 6, 7, 8)),
    Request(prompt_ids=tuple(range(20, 50)), seeds=(9, 10)),
]
ENDS = tuple(range(0, 260, 8))
ARGUMENTS = {"max_model_len": 128, "max_num_batched_tokens": 128, "kv_cache_memory_bytes": 64 * 2**20}


@pytest.fixture(scope="module")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with heads of a size that vLLM has kernels for, many end tokens and four times its logits."""
    folder = save_tiny_model(tmp_path_factory.mktemp("vllm") / "model", head_dim=32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    model.save_pretrained(folder)
    GenerationConfig(eos_token_id=list(ENDS), pad_token_id=0).save_pretrained(folder)
    return folder


def start(folder: Path, **arguments: object) -> VllmEngine:
    return VllmEngine(
        folder,
        load_tokenizer(folder),
        model=ModelConfig(source=str(folder), dtype="float32"),
        adapter=LORA,
        threads=1,
        engine_args=VllmArguments(**{**ARGUMENTS, **arguments}),
    )


@pytest.fixture(scope="module")
def engine(vllm_model: Path) -> Iterator[VllmEngine]:
    engine = start(vllm_model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def learner(vllm_model: Path) -> PeftModel:
    return add_policy(models.load_base(vllm_model, torch.float32, torch.device("cpu")), LORA, seed=0)


def role(model: PeftModel) -> Role:
    return Role(model=model, adapter=POLICY)


def random_adapter(model: PeftModel, version: int) -> Adapter:
    generator = torch.Generator().manual_seed(version)
    tensors = read_role(role(model))
    return make_adapter(
        version, {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    )


def difference(
    model: PeftModel, requests: Sequence[Request], completions: list[list[Completion]], temperature: float
) -> Tensor:
    """|learner - engine| of the policy's log-prob of every sampled token."""
    task = Task(id="", messages=())
    groups = [
        Group(
            task=task,
            trajectories=tuple(
                Trajectory(
                    task=task,
                    sample_index=index,
                    seed=request.seeds[index],
                    turns=(Turn(prompt_ids=request.prompt_ids, completion=completion),),
                    text="",
                    outcome=Score(value=0.0),
                )
                for index, completion in enumerate(samples)
            ),
        )
        for request, samples in zip(requests, completions, strict=True)
    ]
    batch = collate(groups)
    with torch.no_grad():
        own = models.token_logprobs(model, pack(batch), temperature)[0]
    return (own - (batch.rollout_logprobs if batch.policy_logprobs is None else batch.policy_logprobs)).abs()


def flat(completions: list[list[Completion]]) -> list[Completion]:
    return [completion for samples in completions for completion in samples]


def tokens(completions: list[list[Completion]]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in flat(completions)]


# The learner's log-probs.


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("kind", ["bare", "fresh", "random"])
def test_log_probs_are_the_learners(engine: VllmEngine, learner: PeftModel, kind: str, temperature: float) -> None:
    adapter = {
        "bare": bare_base(),
        "fresh": make_adapter(
            0, {key: value * ("lora_A" in key) for key, value in random_adapter(learner, 0).tensors.items()}
        ),
        "random": random_adapter(learner, 3),
    }[kind]
    engine.load_adapter(adapter)
    completions = engine.generate(REQUESTS, replace(SAMPLED, temperature=temperature), version=adapter.version)
    if adapter.tensors:
        write_role(role(learner), adapter.tensors)
    with active(replace(role(learner), adapter=POLICY if adapter.tensors else None)):
        assert float(difference(learner, REQUESTS, completions, temperature).max()) < 1e-4
    assert {(c.adapter_version, c.adapter_hash) for c in flat(completions)} == {
        (adapter.version, adapter_hash(adapter.tensors))
    }


def test_ten_swaps_leave_nothing_of_the_earlier_adapters(engine: VllmEngine, learner: PeftModel) -> None:
    seen = set()
    for version in range(10, 20):
        adapter = random_adapter(learner, version)
        engine.load_adapter(adapter)
        completions = engine.generate(REQUESTS, SAMPLED, version=version)
        seen.add(tuple(tokens(completions)))
    assert len(seen) == 10
    write_role(role(learner), adapter.tensors)
    assert float(difference(learner, REQUESTS, completions, 1.0).max()) < 1e-4
    assert not list(Path("/dev/shm").glob("rlft-adapter-*"))
    engine.load_adapter(bare_base())
    bare = engine.generate(REQUESTS, SAMPLED, version=BASE_VERSION)
    assert tuple(tokens(bare)) not in seen
    with active(replace(role(learner), adapter=None)):
        assert float(difference(learner, REQUESTS, bare, 1.0).max()) < 1e-4


def test_a_cached_prompt_is_not_used_under_another_adapter(engine: VllmEngine, learner: PeftModel) -> None:
    prompt = Request(prompt_ids=tuple(20 + i % 100 for i in range(100)), seeds=(1,))  # fills blocks of the cache
    first, second = random_adapter(learner, 1), random_adapter(learner, 2)
    for adapter in (first, second, replace(first, version=2)):
        engine.load_adapter(adapter)
        completions = engine.generate([prompt], GREEDY, version=adapter.version)
        write_role(role(learner), adapter.tensors)
        assert float(difference(learner, [prompt], completions, 1.0).max()) < 1e-4


def test_log_probs_of_given_tokens_are_those_of_the_samples(engine: VllmEngine, learner: PeftModel) -> None:
    engine.load_adapter(random_adapter(learner, 3))
    for request, samples in zip(REQUESTS, engine.generate(REQUESTS, SAMPLED, version=3), strict=True):
        own = engine.logprobs(request.prompt_ids, samples[0].token_ids, version=3)
        assert own == pytest.approx(samples[0].logprobs, abs=1e-4)
    with pytest.raises(ValueError, match="asked to generate with adapter version 2 while 3 is loaded"):
        engine.logprobs((1, 2), (3,), version=2)


# The sampled distribution.


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}], ids=str)
def test_log_probs_of_a_truncated_distribution_and_of_the_policy(
    engine: VllmEngine, learner: PeftModel, options: dict[str, float]
) -> None:
    adapter = random_adapter(learner, 3)
    write_role(role(learner), adapter.tensors)
    engine.load_adapter(adapter)
    completions = engine.generate(REQUESTS, replace(SAMPLED, **options), version=3)
    assert float(difference(learner, REQUESTS, completions, 1.0).max()) < 1e-4
    for request, samples in zip(REQUESTS, completions, strict=True):
        for completion in samples:
            with torch.no_grad():
                logits = learner(input_ids=torch.tensor([[*request.prompt_ids, *completion.token_ids]])).logits[0]
            assert completion.policy_logprobs is not None
            for t, token in enumerate(completion.token_ids):
                probabilities = logits[len(request.prompt_ids) - 1 + t].double().softmax(-1)
                kept = float(_kept(probabilities, **options))
                expected = probabilities[token].log() - torch.tensor(kept).log()
                assert completion.logprobs[t] == pytest.approx(float(expected), abs=1e-4)


def _kept(probabilities: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Mass of the tokens that can be drawn."""
    ordered = probabilities.sort(descending=True).values
    if top_k:
        return ordered[:top_k].sum()
    if min_p:
        return ordered[ordered >= min_p * ordered[0]].sum()
    return ordered[ordered.cumsum(0) - ordered < top_p].sum()


def test_without_truncation_both_distributions_are_one(engine: VllmEngine) -> None:
    engine.load_adapter(bare_base())
    assert {c.policy_logprobs for c in flat(engine.generate(REQUESTS, SAMPLED, version=-1))} == {None}


def test_a_seed_gives_its_sample_in_any_batch(engine: VllmEngine) -> None:
    engine.load_adapter(bare_base())
    together = engine.generate(REQUESTS, SAMPLED, version=-1)
    alone = [engine.generate([request], SAMPLED, version=-1)[0] for request in reversed(REQUESTS)]
    assert tokens(together) == tokens(list(reversed(alone)))
    again = engine.generate([Request(prompt_ids=(7,), seeds=(1, 1, 2))], SAMPLED, version=-1)
    assert tokens(again)[0] == tokens(again)[1] == tokens(together)[0]
    assert len(set(tokens(together))) > 5


def test_prompts_that_do_not_fit_one_step_together(engine: VllmEngine) -> None:
    # 1,000 tokens where a step takes 128: a prompt that is cut in two must not cost a sample its random numbers.
    requests = [Request(prompt_ids=tuple(range(n, n + 50)), seeds=(n, n + 1)) for n in range(10, 20)]
    engine.load_adapter(bare_base())
    together = engine.generate(requests, SAMPLED, version=-1)
    assert tokens(together) == tokens([engine.generate([request], SAMPLED, version=-1)[0] for request in requests])


def test_greedy_takes_the_most_probable_tokens(engine: VllmEngine, learner: PeftModel) -> None:
    adapter = random_adapter(learner, 3)
    write_role(role(learner), adapter.tensors)
    engine.load_adapter(adapter)
    for request, samples in zip(REQUESTS, engine.generate(REQUESTS, GREEDY, version=3), strict=True):
        ids = samples[0].token_ids
        with torch.no_grad():
            logits = learner(input_ids=torch.tensor([[*request.prompt_ids, *ids]])).logits[0]
        assert ids == tuple(logits[len(request.prompt_ids) - 1 : -1].argmax(-1).tolist())
        assert {c.token_ids for c in samples} == {ids}


# Where completions end.


def test_completions_end_with_an_end_token_or_at_their_bound(engine: VllmEngine) -> None:
    engine.load_adapter(bare_base())
    completions = flat(engine.generate(REQUESTS, SAMPLED, version=-1))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        ends = [t for t, token in enumerate(completion.token_ids) if token in ENDS]
        if completion.finish_reason == "stop":
            assert ends == [len(completion.token_ids) - 1]
        else:
            assert (ends, len(completion.token_ids)) == ([], SAMPLED.max_new_tokens)


def test_a_stop_text_ends_a_completion_with_the_token_that_completed_it(engine: VllmEngine, vllm_model: Path) -> None:
    engine.load_adapter(bare_base())
    tokenizer = load_tokenizer(vllm_model)
    free = flat(engine.generate(REQUESTS, SAMPLED, version=-1))
    letters = [(c, tokenizer.decode(list(c.token_ids[:t]))) for c in free for t in range(2, len(c.token_ids))]
    text = next(text[-2:] for _, text in letters if text[-2:].isascii() and text[-2:].isprintable())
    stopped = flat(engine.generate(REQUESTS, replace(SAMPLED, stop=(text,)), version=-1))
    hits = 0
    for whole, cut in zip(free, stopped, strict=True):
        assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
        assert len(cut.logprobs) == len(cut.token_ids)
        if text in tokenizer.decode(list(whole.token_ids)):
            hits += 1
            assert cut.finish_reason == "stop"
            assert tokenizer.decode(list(cut.token_ids)).endswith(text)
        else:
            assert cut.token_ids == whole.token_ids
    assert hits


# What is refused.


def test_a_stale_version_is_refused(engine: VllmEngine, learner: PeftModel) -> None:
    engine.load_adapter(random_adapter(learner, 4))
    with pytest.raises(ValueError, match="asked to generate with adapter version 3 while 4 is loaded"):
        engine.generate(REQUESTS, SAMPLED, version=3)


@pytest.mark.parametrize("fault", ["none", "stale", "doubled"])
def test_an_engine_that_computes_with_other_weights_is_found_out(
    engine: VllmEngine, learner: PeftModel, vllm_model: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    maker = CanaryMaker(load_tokenizer(vllm_model), letters().train[0], dtype="float32")
    published = []
    for version in (1, 2):
        adapter = random_adapter(learner, version)
        write_role(role(learner), adapter.tensors)
        published.append(maker(adapter, partial(logprobs_of, learner)))
    first, second = published
    engine.load_adapter(first)
    prove = Prover(engine)
    prove(first)
    save = save_tensors

    def faulty(folder: Path, config: AdapterConfig, model: str, tensors: Mapping[str, Tensor]) -> None:
        others = {
            "none": tensors,
            "stale": first.tensors,
            "doubled": {name: t * (2 if "lora_B" in name else 1) for name, t in tensors.items()},
        }
        save(folder, config, model, others[fault])

    monkeypatch.setattr("rlft.rollout.engines.vllm.save_tensors", faulty)
    engine.load_adapter(second)
    if fault == "none":
        prove(second)
        return
    looks = {"stale": "version 1: the new adapter did not take effect", "doubled": "an adapter applied twice"}[fault]
    with pytest.raises(RuntimeError, match=f"does not compute with adapter version 2, .*{looks}"):
        prove(second)


def logprobs_of(model: PeftModel, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        return models.token_logprobs(model, pack(single(prompt_ids, token_ids)), 1.0)[0].tolist()


def test_damaged_and_foreign_tensors_are_refused_and_the_old_adapter_stays(
    engine: VllmEngine, learner: PeftModel
) -> None:
    good = random_adapter(learner, 5)
    engine.load_adapter(good)
    expected = tokens(engine.generate(REQUESTS, SAMPLED, version=5))
    name = min(good.tensors)
    with pytest.raises(ValueError, match="damaged or mixed up on the way"):
        engine.load_adapter(replace(good, version=6, tensors={**good.tensors, name: good.tensors[name] + 1}))
    lacking = {key: tensor for key, tensor in good.tensors.items() if key != name}
    with pytest.raises(ValueError, match="1 differ in name or shape"):
        engine.load_adapter(make_adapter(6, lacking))
    assert tokens(engine.generate(REQUESTS, SAMPLED, version=5)) == expected


def test_requests_that_cannot_be_sampled_are_refused(engine: VllmEngine) -> None:
    engine.load_adapter(bare_base())
    with pytest.raises(ValueError, match="132 tokens exceed the context of 128"):
        engine.generate([Request(prompt_ids=(9,) * 120, seeds=(1,))], SAMPLED, version=-1)
    with pytest.raises(ValueError, match="empty prompt"):
        engine.generate([Request(prompt_ids=(), seeds=(1,))], SAMPLED, version=-1)
    with pytest.raises(ValueError, match=r"temperature must be in \[0, 2\]"):
        engine.generate(REQUESTS, replace(SAMPLED, temperature=3.0), version=-1)
    with pytest.raises(ValueError, match=r"temperatures from 0\.01"):
        engine.generate(REQUESTS, replace(SAMPLED, temperature=0.001), version=-1)
    assert engine.generate([Request(prompt_ids=(9,), seeds=())], SAMPLED, version=-1) == [[]]
    assert len(tokens(engine.generate(REQUESTS, SAMPLED, version=-1))) == 10


def test_the_typed_arguments_are_arguments_of_vllm() -> None:
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    assert set(VllmArguments.model_fields) - known == {"sleep", "extra_args"}
    assert set(VLLM_TAKEN) <= known


def test_arguments_that_vllm_does_not_know_are_refused_in_its_words(vllm_model: Path) -> None:
    with pytest.raises(ValueError, match=r"engine_args: vLLM does not start with them.*max_modle_len"):
        start(vllm_model, extra_args={"max_modle_len": 3})


# The process.


def test_a_process_that_dies_is_named_and_one_whose_worker_dies_ends(vllm_model: Path) -> None:
    program = f"""import os
import sys
from tests.test_vllm import *
engine = start(Path({str(vllm_model)!r}))
print(engine._process.pid, flush=True)
sys.stdin.readline()
os.kill(engine._process.pid, signal.SIGKILL)
try:
    engine.load_adapter(bare_base())
except RuntimeError as error:
    print(error, flush=True)
engine = start(Path({str(vllm_model)!r}))
print(engine._process.pid, flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            int(worker.stdout.readline())
            worker.stdin.write("\n")
            worker.stdin.flush()
            assert worker.stdout.readline().startswith("the process of vLLM was killed by SIGKILL")
            child = psutil.Process(int(next(line for line in worker.stdout if line.strip().isdigit())))
            everyone = [child, *child.children(recursive=True)]
        finally:
            worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everyone):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# A run.


def test_a_run_trains_with_it(vllm_model: Path, tmp_path: Path) -> None:
    config = tiny_config(
        vllm_model,
        steps=2,
        output_dir=str(tmp_path),
        rollout={"engine": "vllm", "engine_args": ARGUMENTS},
        rewards=[{"path": "tests.fakes:share_of_a"}],
        sampling={"max_new_tokens": 8},
        learner={"lr": 0.05},
    )
    launch.train(config)
    rows = read_metrics(config.run_dir)
    assert [row["policy/mismatch"] < 1e-4 for row in rows] == [True, True]
