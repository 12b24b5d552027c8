"""Generation of the same prompts by rlft's engine and by others, in alternating rounds of one run.

    python -m benchmarks.rollout [--rounds 3] [--only 64 256 tail greedy tools turns] [--vllm .venv-vllm/bin/python]

Work: SmolLM2-135M-Instruct at T = 1, natural lengths.
    64, 256     8 prompts x 8 samples, up to so many new tokens
    tail        4 of these prompts, one sample each of up to 256: what a batch is when the others have ended
    greedy      an evaluation: 250 sums of the quickstart, one greedy answer each of up to 16 tokens
    tools       16 prompts of some 40 tokens behind the same 400 of tools' descriptions, x 8 samples of up to 64
    turns       4 turns of such episodes, each answered by an observation; a reply that is cut ends its episode
Systems:
    rlft        the transformers engine with the machine's own type
    unshared    the same engine, which computes every prompt from its beginning (tools and turns)
    generate    model.generate in float32 on 64 left-padded rows, as TRL calls it (and in bfloat16, for the table)
    continuous  transformers' continuous batching
    vllm        vLLM, where an environment with it is named
All compute in bfloat16 where the processor multiplies it, and else in float32.
Each system lives in a process of its own that is stopped while the others work. Tokens are completion tokens up to and
including the end token. Figures are medians over the rounds after one warm-up; the last line is JSON.

The floor of a decode step is max(weight bytes / memory bandwidth, FLOPs / GEMM rate) for the rows that are live in it,
both measured here; the prompts' pass counts with its FLOPs, and what several prompts begin with once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.peers import (
    LAYERS,
    THREADS,
    VOCABULARY,
    Peer,
    answer,
    bandwidth,
    dtype_here,
    gemm_rate,
    types_here,
    wait,
)
from benchmarks.step import TOPICS, question

NAMES = {
    "generate": "",
    "generate-bf16": "bf16_",
    "continuous": "continuous_",
    "vllm": "vllm_",
    "unshared": "unshared_",
}
"""How the ratio to each system is called in the JSON line."""
Round = Callable[[int], tuple[list[int], dict[str, float]]]
"""From the number of a round to the completions' lengths and further figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all systems of a comparison do."""

    prompts: list[list[dict[str, str]]]
    samples: int = 8
    """Of each prompt."""
    new_tokens: int = 64
    temperature: float = 1.0
    turns: int = 1
    peers: tuple[str, ...] = ("generate", "generate-bf16", "continuous", "vllm")
    """What rlft is measured beside; vLLM where there is an environment with it."""


OBSERVATION = "The tool says: 17. Go on with the next step, and say in a sentence what you found."


def asked(text: str) -> list[dict[str, str]]:
    """A prompt that is one message."""
    return [{"role": "user", "content": text}]


def facts() -> list[list[dict[str, str]]]:
    """Eight short prompts."""
    return [asked(question(topic, 3)) for topic in TOPICS]


def sums() -> list[list[dict[str, str]]]:
    """250 prompts, as the quickstart's evaluation has them; written out, as vLLM's environment is without rlft."""
    drawn = random.Random(0).sample([(a, b) for a in range(1, 31) for b in range(1, 31)], 250)
    return [asked(f"What is {a} + {b}? Put the number inside <answer> tags.") for a, b in drawn]


def with_tools() -> list[list[dict[str, str]]]:
    """16 prompts behind the same 400 tokens."""
    told = " ".join(
        f"Tool {name}: takes a text and a number from 1 to {number}, and returns what it found as a list of sentences."
        for number, name in enumerate(("search", "lookup", "weather", "maps", "mail", "notes", "calendar"), 5)
    )
    system = {"role": "system", "content": f"{told} Call a tool by its name in a line of its own. {told}"}
    texts = [
        f"{topic}, {how}: {question(topic, 3)} Look up what you do not know."
        for topic in TOPICS
        for how in ("in a hurry", "with care")
    ]
    return [[system, *asked(text)] for text in texts]


FEW = ("generate-bf16", "vllm")
WORKS = {
    "64": Work(prompts=facts()),
    "256": Work(prompts=facts(), new_tokens=256),
    "tail": Work(prompts=facts()[:4], samples=1, new_tokens=256, peers=FEW),
    "greedy": Work(prompts=sums(), samples=1, new_tokens=16, temperature=0.0, peers=FEW),
    "tools": Work(prompts=with_tools(), peers=("unshared", "vllm")),
    "turns": Work(prompts=with_tools(), turns=4, peers=("unshared",)),
}


def rlft(folder: str, work: Work, *, shares: bool = True) -> Round:
    """The transformers engine, with the time that it samples taken apart."""
    from rlft.config import AdapterConfig, ModelConfig
    from rlft.model import chat
    from rlft.model.adapter import bare_base
    from rlft.model.memory import keep_freed_memory
    from rlft.rollout.engines import batching, prefixes
    from rlft.rollout.engines.contract import Request
    from rlft.rollout.engines.transformers import TransformersEngine
    from rlft.types import Message, SamplingParams

    keep_freed_memory()
    tokenizer = chat.load_tokenizer(folder)
    engine = TransformersEngine(
        folder, tokenizer, model=ModelConfig(source=folder), adapter=AdapterConfig(), threads=THREADS
    )
    engine.load_adapter(bare_base())
    prompts = [chat.render(tokenizer, prompt) for prompt in work.prompts]  # type: ignore[arg-type]
    params = SamplingParams(temperature=work.temperature, top_p=1.0, max_new_tokens=work.new_tokens)
    different = float(len({ids[:end] for ids in prompts for end in range(1, len(ids) + 1)}))
    if not shares:
        prefixes.WORTH = 10**9
    spent = [0.0]
    sample = batching.sample

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        drawn = sample(*arguments)
        spent[0] += time.perf_counter() - start
        return drawn

    batching.sample = timed  # type: ignore[assignment]

    def one(number: int) -> tuple[list[int], dict[str, float]]:
        spent[0] = 0.0
        requests = [
            Request(prompt_ids=ids, seeds=tuple(range(first, first + work.samples)))
            for first, ids in zip(itertools.count(1000 * number, work.samples), prompts, strict=False)
        ]
        lengths: list[int] = []
        for turn in range(work.turns):
            going = [replace(request, goes_on=work.turns > 1 and shares) for request in requests]
            completions = engine.generate(going, params, version=-1)
            lengths += [len(c.token_ids) for samples in completions for c in samples]
            requests = [
                Request(
                    prompt_ids=(
                        *request.prompt_ids,
                        *completion.token_ids,
                        *chat.render_observation(
                            tokenizer, [Message(role="user", content=OBSERVATION)], after=completion.token_ids
                        ),
                    ),
                    seeds=(seed + 100_000 * (turn + 1),),
                    continues=shares,
                )
                for request, samples in zip(requests, completions, strict=True)
                for seed, completion in zip(request.seeds, samples, strict=True)
                if completion.finish_reason == "stop"
            ]
        return lengths, {"time/sampling": spent[0], "prompt_tokens": different}

    return one


def generate(folder: str, work: Work, dtype: str) -> Round:
    """`model.generate` on all rows at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompts = [prompt for prompt in work.prompts for _ in range(work.samples)]
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    config = GenerationConfig(
        max_new_tokens=work.new_tokens,
        **({"do_sample": True, "temperature": work.temperature, "top_p": 1.0, "top_k": 0} if work.temperature else {}),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

    def one(number: int) -> tuple[list[int], dict[str, float]]:
        torch.manual_seed(number)
        with torch.no_grad():
            output = model.generate(**inputs, generation_config=config, disable_compile=True)
        ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [_length(row, tokenizer.eos_token_id) for row in ids], {}

    return one


def continuous(folder: str, work: Work, dtype: str) -> Round:
    """transformers' continuous batching."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    prompts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in work.prompts
        for _ in range(work.samples)
    ]
    config = GenerationConfig(
        max_new_tokens=work.new_tokens,
        do_sample=True,
        temperature=work.temperature,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

    def one(number: int) -> tuple[list[int], dict[str, float]]:
        torch.manual_seed(number)
        outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        return [len(output.generated_tokens) for output in outputs.values()], {}

    return one


def vllm(folder: str, work: Work, dtype: str) -> Round:
    """vLLM with its own defaults, one process."""
    from vllm import LLM, SamplingParams

    on_cpu = {"kv_cache_memory_bytes": 2 * 2**30}  # vLLM takes nearly all memory there if not told
    model = LLM(model=folder, dtype=dtype, max_model_len=1024, max_num_seqs=64, **on_cpu)

    def one(number: int) -> tuple[list[int], dict[str, float]]:
        params = SamplingParams(
            n=work.samples, temperature=work.temperature, max_tokens=work.new_tokens, seed=number, logprobs=0
        )
        outputs = model.chat(work.prompts, params, use_tqdm=False)
        return [len(completion.token_ids) for output in outputs for completion in output.outputs], {}

    return one


def _length(ids: list[int], end: int) -> int:
    return ids.index(end) + 1 if end in ids else len(ids)


def serve(name: str, folder: str, work: Work, dtype: str) -> None:
    """A round for every line on standard input; `dtype`: the machine's own."""
    systems: dict[str, Callable[[], Round]] = {
        "rlft": lambda: rlft(folder, work),
        "unshared": lambda: rlft(folder, work, shares=False),
        "generate": lambda: generate(folder, work, "float32"),
        "generate-bf16": lambda: generate(folder, work, "bfloat16"),
        "continuous": lambda: continuous(folder, work, dtype),
        "vllm": lambda: vllm(folder, work, dtype),
    }
    one = systems[name]()
    number = 0
    while True:
        wait()
        number += 1
        start = time.perf_counter()
        lengths, parts = one(number)
        seconds = time.perf_counter() - start
        answer(seconds=seconds, tokens=sum(lengths), parts={**parts, "lengths": lengths})  # type: ignore[dict-item]


def start(system: str, folder: str, work: str, **more: Any) -> Peer:
    """A system that generates `work` for every step, in a process of its own; `more`: what `Peer` takes by name."""
    return Peer("benchmarks.rollout", system, system, folder, work, types_here()[0], **more)


def floor(lengths: list[int], prompt_tokens: float) -> float:
    """Seconds that completions of these lengths cannot do without."""
    weights = LAYERS + VOCABULARY
    by_weights = dtype_here().itemsize * weights / bandwidth()
    rate = gemm_rate(len(lengths))
    steps = [sum(length > t for length in lengths) for t in range(max(lengths))]
    decode = sum(max(by_weights, 2 * weights * live / rate) for live in steps)
    return decode + 2 * LAYERS * prompt_tokens / gemm_rate(2048)


def main() -> None:
    """Start the systems, take turns, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=WORKS, default=list(WORKS), help="which work")
    parser.add_argument("--vllm", default="", help="python of an environment with vLLM")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--serve", nargs=4, metavar=("SYSTEM", "FOLDER", "WORK", "TYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, folder, work, dtype = options.serve
        serve(name, folder, WORKS[work], dtype)
        return
    from rlft.model import sources

    folder = str(sources.resolve(options.model))
    result: dict[str, float] = {}
    for work in options.only:
        rates, ours = _measure(["rlft", *_peers(work, options.vllm)], folder, work, options)
        result |= _summary(rates, ours, work, "" if work == options.only[0] else f"_{work}")
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


def _peers(work: str, has_vllm: str) -> list[str]:
    """What rlft is measured beside on this machine."""
    names = [name for name in WORKS[work].peers if name != "vllm" or has_vllm]
    if "bfloat16" not in types_here():
        names = ["generate" if name == "generate-bf16" else name for name in names]
    return list(dict.fromkeys(names))


def _measure(
    names: list[str], folder: str, work: str, options: argparse.Namespace
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """(tokens per second of each system by round, rlft's answers)"""
    print(work)
    peers = {name: start(name, folder, work, python=options.vllm if name == "vllm" else None) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    ours = []
    try:
        for number in range(1 + options.rounds):
            for name, peer in peers.items():
                got = peer.step()
                if number:
                    rates[name].append(got["tokens"] / got["seconds"])
                    ours += [got] if name == "rlft" else []
    finally:
        for peer in peers.values():
            peer.stop()
    return rates, ours


def _summary(rates: dict[str, list[float]], ours: list[dict[str, Any]], work: str, suffix: str) -> dict[str, float]:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("\n| system | completion tokens/s |\n| --- | --- |")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} ({min(rates[name]):.0f} to {max(rates[name]):.0f}) |")
    found = {
        f"{NAMES[name]}ratio{suffix}": medians["rlft"] / value for name, value in medians.items() if name != "rlft"
    }
    found[f"tokens_per_s{suffix}"] = medians["rlft"]
    if WORKS[work].turns > 1:
        return found  # its prompts grow by what was sampled
    fractions = [floor(got["parts"]["lengths"], got["parts"]["prompt_tokens"]) / got["seconds"] for got in ours]
    return {
        **found,
        f"floor_fraction{suffix}": statistics.median(fractions),
        f"sampling_fraction{suffix}": statistics.median(got["parts"]["time/sampling"] / got["seconds"] for got in ours),
    }


if __name__ == "__main__":
    main()
