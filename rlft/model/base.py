"""The language model: loading it, and its log-probabilities and values over a packed row."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GradientCheckpointingLayer, PreTrainedModel

from rlft.common.private_names import private
from rlft.config import ModelConfig
from rlft.model.kernels.sizes import TOKENS, rounded_up
from rlft.model.layers.logprobs import selected_logprobs
from rlft.model.layers.packed import Packed, PackedGroup
from rlft.model.layers.packed_attention import NAME as PACKED_ATTENTION
from rlft.model.layers.packed_attention import Layout
from rlft.model.layers.projected_logprobs import projected_logprobs
from rlft.model.memory import own_weights
from rlft.model.pretrained import load_causal_lm
from rlft.model.shared_weights import sharing_weights


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(config: ModelConfig) -> torch.dtype:
    """Type of the frozen weights: as configured; `auto` is bfloat16 where the machine computes it natively."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if private("torch.cpu._is_avx512_bf16_supported")() else torch.float32


def load_base(
    folder: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantize: bool = False,
    shares_weights: bool = False,
) -> PreTrainedModel:
    """The frozen base model in inference mode, with attention that understands packed rows.

    Args:
        shares_weights: nobody changes the parameters, which are those of other such models in this process.
        quantize: 4-bit weights (QLoRA's NF4 with double quantization, https://arxiv.org/abs/2305.14314).

    Raises:
        OSError, ValueError: what transformers says of a folder that holds no causal language model; a model whose
            attention does not go through transformers' interface; 4-bit weights without bitsandbytes.
    """
    if shares_weights and not quantize:
        return sharing_weights(folder, dtype, device, lambda: load_base(folder, dtype, device))
    options: dict[str, Any] = {"quantization_config": _four_bits(dtype)} if quantize else {}
    try:
        model = load_causal_lm(folder, dtype=dtype, attn_implementation=PACKED_ATTENTION, **options)
    except KeyError as error:
        if PACKED_ATTENTION not in str(error):
            raise
        raise ValueError(
            f"the model in {folder} has attention code of its own, which cannot take packed rows; use a model whose "
            "layers go through transformers' attention interface"
        ) from None
    if quantize:
        if device.type == "cpu":
            _keep_gradients(model)
        return model.eval().requires_grad_(False)
    if device.type == "cpu":
        own_weights(model)
    return model.to(device).eval().requires_grad_(False)


def _four_bits(dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "adapter.kind: qlora needs the package bitsandbytes (pip install 'rlft[qlora]'); without it use "
            "adapter.kind: lora"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _keep_gradients(model: PreTrainedModel) -> None:
    """Let gradients through 4-bit layers on a CPU after passes without them.

    bitsandbytes lays a weight out anew in the first pass that needs no gradient, where the processor has bfloat16
    products, and from then on the layer's output has no gradient, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the deprecation notices that transformers gives to peft and trl, which a user of rlft cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|trl")
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random state inside and restore it afterwards, for libraries that take no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def token_logprobs(
    model: nn.Module, packed: Packed, temperature: float, *, entropy_gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-prob of every action of the row and entropy of its distribution, under the active adapter.

    Only the positions that predict an action are projected to the vocabulary.

    Args:
        entropy_gradient: False where no loss depends on the entropy; it may then come without gradient.

    Returns:
        (logprobs (A,), entropy (A,)), float32, with gradient where the model has one.
    """
    device = next(model.parameters()).device
    index, targets = packed.predictor_index.to(device), packed.target_ids.to(device)
    layout, inputs = _model_inputs(packed, device)
    if (head := _plain_head(model)) is not None:
        hidden = causal_lm(model).base_model(**inputs).last_hidden_state[0, index]
        layout.check_layout_used(_num_layers(model))
        return projected_logprobs(hidden, head, targets, temperature, entropy_gradient=entropy_gradient)
    if "logits_to_keep" in inspect.signature(causal_lm(model).forward).parameters:
        logits = model(**inputs, logits_to_keep=index).logits[0]
    else:
        logits = model(**inputs).logits[0, index]
    layout.check_layout_used(_num_layers(model))
    return selected_logprobs(logits, targets, temperature)


def _plain_head(model: nn.Module) -> Tensor | None:
    """Weight of the output projection where it is frozen and all that stands between hidden states and logits.

    Models that scale, cap or bias their logits are found out by comparing, once per model.
    """
    lm: Any = causal_lm(model)
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or "bias" in dict(head.named_parameters()) or head.weight.requires_grad:
        return None
    if head.weight.shape != (head.out_features, head.in_features):
        return None  # packed, as 4-bit weights are
    if getattr(lm.config.get_text_config(), "final_logit_softcapping", None):
        return None  # small logits hardly show it
    if "rlft_has_plain_head" not in lm.__dict__:
        ids = torch.arange(2, device=head.weight.device)[None]
        with torch.no_grad():
            hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = lm(input_ids=ids, use_cache=False).logits
        rtol, atol = (1e-4, 1e-5) if logits.dtype.itemsize >= 4 else (1e-2, 1e-3)
        lm.__dict__["rlft_has_plain_head"] = torch.allclose(hidden @ head.weight.T, logits, rtol=rtol, atol=atol)
    return head.weight if lm.__dict__["rlft_has_plain_head"] else None


def token_values(model: nn.Module, head: nn.Linear, packed: Packed) -> Tensor:
    """The critic's value of the state before every action of the row, (A,) float32, under the active adapter."""
    hidden = _hidden_states(model, packed)
    return head(hidden[packed.predictor_index.to(hidden.device)].to(head.weight.dtype)).squeeze(-1)


def sequence_scores(model: nn.Module, head: nn.Linear, packed: Packed) -> Tensor:
    """A reward model's score of every sequence of the row, at its end, (S,) float32, under the active adapter."""
    ends = [g.start + g.prompt_length + length - 1 for g in packed.groups for length in accumulate(g.lengths)]
    return head(_hidden_states(model, packed)[ends].float()).squeeze(-1)


def _hidden_states(model: nn.Module, packed: Packed) -> Tensor:
    """(T, hidden_size) of the row's tokens."""
    layout, inputs = _model_inputs(packed, next(model.parameters()).device)
    hidden = causal_lm(model).base_model(**inputs).last_hidden_state[0]
    layout.check_layout_used(_num_layers(model))
    return hidden


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def hidden_size(model: nn.Module) -> int:
    """Width of the last hidden state."""
    return causal_lm(model).config.get_text_config().hidden_size


def recompute_layers(model: nn.Module) -> None:
    """Keep only every decoder layer's input for the backward pass, and compute the layer again in it.

    https://arxiv.org/abs/1604.06174. Not transformers' own switch, which works in training mode only and so brings the
    model's dropout with it.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _model_inputs(packed: Packed, device: torch.device) -> tuple[Layout, dict[str, Any]]:
    """(the row's layout, what the model is called with); on a CPU the row is filled up to a usual length."""
    token_ids, position_ids, groups = packed.token_ids, packed.position_ids, packed.groups
    length = token_ids.shape[1]
    if device.type == "cpu" and (fill := rounded_up(length, TOKENS) - length):
        positions = torch.arange(fill)[None]
        token_ids = torch.cat([token_ids, torch.zeros_like(positions)], dim=1)
        position_ids = torch.cat([position_ids, positions], dim=1)
        groups = (*groups, PackedGroup(start=length, prompt_length=fill, lengths=()))
    layout = Layout(groups)
    return layout, {
        "input_ids": token_ids.to(device),
        "position_ids": position_ids.to(device),
        "packed_layout": layout,
        "use_cache": False,
    }


def _num_layers(model: nn.Module) -> int:
    return causal_lm(model).config.get_text_config().num_hidden_layers
