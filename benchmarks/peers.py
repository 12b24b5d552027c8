"""What the comparisons share: systems that take turns, each in a process of its own, and the machine's own rates."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

THREADS = 2
TRL_ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1000,
    "dataloader_pin_memory": False,
}
"""Settings of any of TRL's trainers that nothing but the work is timed with."""
LAYERS, VOCABULARY = 106.2e6, 28.3e6
"""Weights of SmolLM2-135M in its layers and in its output projection."""


def wait() -> None:
    """Until the parent says go."""
    print("READY", flush=True)
    if not sys.stdin.readline():
        sys.exit(0)


def answer(*, seconds: float, tokens: float, parts: dict[str, float]) -> None:
    """Tell the parent how the step went."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("STEP " + json.dumps({"seconds": seconds, "tokens": tokens, "gb": peak, "parts": parts}), flush=True)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent has ended, however that ended."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Peer:
    """A system in its own process."""

    def __init__(
        self,
        script: str,
        name: str,
        *arguments: str,
        python: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start `python -m script --serve arguments`; it reports READY when it waits for the first step.

        Args:
            python: of another environment.
            variables: of its environment, besides this one's.
        """
        self.name = name
        # What rlft set for itself when it was imported here is not for the others.
        environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", script, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # one that is stopped would stay for ever
            env={**environment, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", **(variables or {})},
        )
        self._expect("READY")
        self._signal(signal.SIGSTOP)

    def step(self) -> dict[str, Any]:
        """One step; returns its seconds, tokens and the process's peak memory so far."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        result = json.loads(self._expect("STEP").removeprefix("STEP "))
        self._signal(signal.SIGSTOP)
        shown = {k: round(v, 2) for k, v in result["parts"].items() if k.startswith("time/")}
        print(
            f"{self.name}: {result['seconds']:.1f} s, {result['tokens']:.0f} tokens, {result['gb']:.1f} GB "
            f"{shown or ''}"
        )
        return result

    def stop(self) -> None:
        """End the process and those that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        """To the process and those that it started: some poll while they wait and would disturb the others."""
        os.killpg(self._process.pid, number)

    def _expect(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"{self.name} ended before it said {word}; its error is above")


def dtype_here() -> Any:
    """The type that rlft computes in on this machine: bfloat16 where the processor multiplies it, else float32."""
    from rlft.config import ModelConfig
    from rlft.model.base import resolve_dtype

    return resolve_dtype(ModelConfig(source="smollm2-135m-instruct"))


def types_here() -> list[str]:
    """Types that peers are tried in: float32, and first bfloat16 where the processor multiplies it."""
    import torch

    return [*(["bfloat16"] if dtype_here() == torch.bfloat16 else []), "float32"]


def gemm_rate(rows: int) -> float:
    """Measured GEMM rate for this many rows on the model's layer shapes, FLOP/s: the best of several.

    In `dtype_here`, of torch's products and of the transformers engine's for few rows, whichever is faster.
    """
    import torch

    from rlft.model.kernels.frozen_linear import FrozenLinear

    torch.set_num_threads(THREADS)
    dtype = dtype_here()
    x, w = torch.randn(rows, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    own = FrozenLinear(w)
    best = 0.0
    for product in (lambda: torch.nn.functional.linear(x, w), lambda: own(x)):
        for _ in range(60):
            start = time.perf_counter()
            for _ in range(10):
                product()
            best = max(best, 10 * 2 * rows * 576 * 1536 / (time.perf_counter() - start))
    return best


def bandwidth() -> float:
    """Measured rate of reading memory that no cache holds, bytes/s: the best of several sums over 512 MB."""
    import torch

    torch.set_num_threads(THREADS)
    x = torch.ones(128 * 2**20)  # pages of zeros that nobody wrote are all the same one, which a cache holds
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        x.sum()
        best = max(best, x.numel() * 4 / (time.perf_counter() - start))
    return best


def update_floor(packed_tokens: float, action_tokens: float) -> float:
    """Seconds of the arithmetic that an update cannot do without, at the measured GEMM rate of many rows.

    Forward 2 and backward through frozen weights 2 FLOPs per weight and token; the output projection on actions only.
    """
    return 4 * (LAYERS * packed_tokens + VOCABULARY * action_tokens) / gemm_rate(2048)
