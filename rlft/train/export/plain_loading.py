"""What an exported folder computes in a process that knows nothing of rlft's models: plain transformers and peft.

The parent sends mappings, each a question about a folder, and gets a mapping back for each. Nothing of `rlft.model`,
`rlft.learner` or `rlft.rollout` is imported here: what they would put right has to be right in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

SHOWN = 1024
"""Most characters of an error's text that go back."""


def main(connection: Connection) -> None:
    """Load each folder that is asked about; answer with the prompt's token ids and the reply's log-probs."""
    import peft  # noqa: F401  while the parent is still at work
    import transformers  # noqa: F401

    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            answer = _answer(question)
        except Exception as error:  # whatever a library finds wrong with the folder is the result
            answer = {"error": f"{type(error).__name__}: {error}"[:SHOWN]}
        connection.send(answer)


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    folder = question["folder"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template:
        template = tokenizer.get_chat_template()
        prompt = tokenizer.apply_chat_template(
            question["messages"],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            chat_template=question["clock"] + template if "strftime_now" in template else None,
        )
    else:
        prompt = tokenizer(question["messages"][-1]["content"])["input_ids"]
    model = _model(folder, question["base"], four_bits=question["four_bits"])
    return {
        "prompt_ids": [int(token) for token in prompt],
        "logprobs": _logprobs(model, question["prompt_ids"], question["token_ids"]),
        "modules": sorted(name for name in sys.modules if name.startswith("rlft.")),
    }


def _model(folder: str, base: str, *, four_bits: bool) -> Any:
    """The model in float32, so that what differs is the weights and not the arithmetic."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    if four_bits:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(base or folder, **options)
    if four_bits:  # what the four bits stand for: the kernels for them may compute in bfloat16
        model = model.dequantize().float()
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _logprobs(model: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[float]:
    """Log-prob of each token of the reply behind the prompt, nats."""
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt_ids, *token_ids]], device=device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    targets = torch.tensor(list(token_ids), device=device)[:, None]
    found: list[float] = logits.float().log_softmax(dim=-1).gather(1, targets).squeeze(1).tolist()
    return found
