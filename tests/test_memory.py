"""Memory of a process: kept when freed, on large pages where the system gives them, weights its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.model.memory import own_weights

KEEPS = """
import resource
from pathlib import Path
import torch
from rlft.model.memory import keep_freed_memory

def peak():  # ru_maxrss would begin with what the parent had
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

assert keep_freed_memory() and keep_freed_memory()
before = peak()
torch.ones(2**26)  # 256 MB, freed at once
grown = peak()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**26)
print(before, grown, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_taken_back_without_new_pages_and_the_stretched_heap_costs_none() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True, timeout=120)
    before, grown, faults = map(int, done.stdout.split())
    assert before < 1_500_000  # KB: the heap was stretched by gigabytes, and none of it was touched
    assert grown - before < 600_000
    assert faults < 2_000  # anew it would be 20 x 65,536 pages


def test_own_weights_are_the_same_and_tied_ones_stay_tied(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    own_weights(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() != places[name]
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_weights_that_were_converted_are_not_copied_again(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    own_weights(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
