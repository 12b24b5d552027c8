"""A head: new layers on the hidden states of a trunk, the folder that holds both, and loading it.

    config.json  model.safetensors   the trunk, with as many layers as it was trained with
    tokenizer files                  with a padding token
    head.json                        task, labels, pooling, what stands in head.safetensors, temperature
    head.safetensors                 layers.N.weight, layers.N.bias, of attention pooling also query

A linear head of a classification at the last token is what transformers calls a sequence classifier: then its layer
stands in model.safetensors, too, as `score`, and plain transformers loads the whole folder. Otherwise `AutoModel` loads
the trunk, and the head is one pooling and one to four matrices (docs/head.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlft.common.by_path import did_you_mean
from rlft.common.files import write_folder
from rlft.model import chat, special_tokens
from rlft.model.base import quiet_libraries
from rlft.model.pretrained import load_classifier, load_config
from rlft.types import Message

HEAD = "head.json"
TENSORS = "head.safetensors"
Pooling = Literal["last", "mean", "max", "attention"]
_TOKENS_PER_PASS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFacts:
    """head.json."""

    task: str
    """classification, multilabel or regression."""
    labels: tuple[str, ...]
    """Names of the outputs; empty for regression."""
    pooling: Pooling
    """How the tokens' hidden states become one."""
    hidden_sizes: tuple[int, ...]
    """Sizes of the hidden layers."""
    temperature: float
    """What logits are divided by before they become probabilities; 1 for regression."""
    conversations: bool
    """Whether it was trained on conversations, as the chat template writes them."""
    dtype: str
    """Type that the trunk computed in."""
    max_length: int
    """Most tokens of a text."""
    source: str
    """The model that the trunk came from."""
    without_padding: bool = False
    """Whether padding tokens at the end of a text were left out; earlier heads were trained on them."""

    @property
    def is_native(self) -> bool:
        """Whether plain transformers has a class for trunk and head together."""
        return is_native(self.task, self.pooling, self.hidden_sizes)


def is_native(task: str, pooling: Pooling, hidden_sizes: Sequence[int]) -> bool:
    """Whether plain transformers has a class for trunk and head together: it has one linear layer without a bias."""
    return pooling == "last" and not hidden_sizes and task != "regression"


class Head(nn.Module):
    """Pooling and layers, in float32: (B, T, hidden_size) hidden states to (B, outputs) logits."""

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], pooling: Pooling, *, bias: bool = True) -> None:
        """Make it; the last layer begins at 0, so that before training all labels are equally likely.

        Args:
            sizes: of the hidden states, of each hidden layer, and the number of outputs.
            bias: whether layers add one.
        """
        super().__init__()
        self.pooling = pooling
        layers = [nn.Linear(m, n, bias=bias) for m, n in pairwise(sizes)]
        nn.init.zeros_(layers[-1].weight)
        if bias:
            nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        self.has_bias = bias
        self.query = nn.Parameter(torch.zeros(sizes[0])) if pooling == "attention" else None
        """Its product with a token's hidden state is that token's weight, before the softmax."""
        self.register_buffer("mean", torch.zeros(sizes[0]), persistent=False)
        self.register_buffer("scale", torch.ones(sizes[0]), persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits of a batch, (B, outputs).

        Args:
            hidden: (B, T, hidden_size), padded at the right.
            mask: (B, T), true on tokens.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            value = (pool(hidden.float(), mask, self.pooling, self._query()) - self.mean) / self.scale
            for layer in self.layers[:-1]:
                value = torch.relu(layer(value))
            return self.layers[-1](value)

    def _query(self) -> Tensor | None:
        return None if self.query is None else self.query / self.scale

    def standardize(self, mean: Tensor, scale: Tensor) -> None:
        """Have the layers see features of this mean and scale as of mean 0 and scale 1, which they learn from faster.

        Without a bias only the scale is taken, as `folded` could not express the mean.
        """
        if self.has_bias:
            self.mean.copy_(mean)
        self.scale.copy_(scale.clamp(min=1e-6))

    @torch.no_grad()
    def folded(self, *, shift: float = 0.0, scale: float = 1.0) -> dict[str, Tensor]:
        """Tensors of a head that computes the same without standardizing, its outputs times `scale` plus `shift`."""
        found = {name: tensor.detach().clone() for name, tensor in self.named_parameters()}
        if self.query is not None:
            found["query"] /= self.scale
        first, last = "layers.0", f"layers.{len(self.layers) - 1}"
        found[f"{first}.weight"] /= self.scale
        if f"{first}.bias" in found:
            found[f"{first}.bias"] -= found[f"{first}.weight"] @ self.mean
        for name in (f"{last}.weight", f"{last}.bias"):
            if name in found:
                found[name] *= scale
        if f"{last}.bias" in found:
            found[f"{last}.bias"] += shift
        return {name: tensor.contiguous() for name, tensor in found.items()}


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling, query: Tensor | None = None) -> Tensor:
    """One vector for each row, (B, hidden_size), from (B, T, hidden_size) and a mask (B, T); padding at the right."""
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if pooling == "max":
        return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
    if pooling == "mean":
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert query is not None
    weights = (hidden @ query).masked_fill(~mask, -torch.inf).softmax(1)
    return (weights[..., None] * hidden).sum(1)


def load_trunk(folder: str | Path, *, layers: int, dtype: torch.dtype, outputs: int = 2) -> PreTrainedModel:
    """The model as a sequence classifier whose output layer, `score`, is new and all zeros.

    Args:
        layers: how many decoder layers it has, from the first on; 0 is all.
        outputs: of `score`.

    Raises:
        ValueError: the model has fewer layers, or its architecture has no version with an output layer.
    """
    config = load_config(folder)
    text = config.get_text_config()
    have = text.num_hidden_layers
    if layers > have:
        raise ValueError(f"trunk_layers is {layers}, but the model has {have} layers; use at most that, or 0 for all")
    if layers and text is not config:
        raise ValueError("trunk_layers: this model nests the config of its layers; use 0, all of them")
    cut: dict[str, Any] = {"num_hidden_layers": layers} if layers and layers < have else {}
    if cut and getattr(text, "layer_types", None) is not None:
        cut["layer_types"] = text.layer_types[:layers]
    with _quiet():
        try:
            model = load_classifier(folder, num_labels=outputs, dtype=dtype, **cut)
        except ValueError as error:
            raise ValueError(f"{folder} cannot carry a head: {error}") from error
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ValueError(f"{folder} cannot carry a head: {type(model).__name__} has no output layer `score`")
    nn.init.zeros_(model.score.weight)
    return model.eval()


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The layers below the output layer."""
    return getattr(model, model.base_model_prefix)


def hidden_states(trunk: nn.Module, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The last hidden states of rows of token ids, padded at the right: ((B, T, hidden_size), mask (B, T))."""
    device = next(trunk.parameters()).device
    ids = [torch.tensor(row) for row in rows]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True).to(device)
    output = trunk(
        input_ids=pad_sequence(ids, batch_first=True).to(device), attention_mask=mask.long(), use_cache=False
    )
    return output.last_hidden_state, mask


def batches(lengths: Sequence[int], most: int = 64) -> Iterator[list[int]]:
    """Numbers of rows that are forwarded together: of similar length, so that they need little padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[row] > _TOKENS_PER_PASS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Mapping[str, Tensor],
    facts: HeadFacts,
) -> None:
    """Write a head's folder, whole or not at all.

    Args:
        model: as `load_trunk` made it; its trunk may have been trained.
        tensors: the head's, as `Head.folded` gives them.
    """
    config = model.config
    names = facts.labels or ("value",)
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    kinds = {"classification": "single_label_classification", "multilabel": "multi_label_classification"}
    config.problem_type = kinds.get(facts.task, "regression")
    config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id

    def write(temporary: Path) -> None:
        written: Any = trunk_of(model)
        if facts.is_native:
            weight = tensors["layers.0.weight"]
            model.score = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            model.score.weight.data.copy_(weight)
            written = model
        save_file(dict(tensors), temporary / TENSORS)
        with quiet_libraries():
            written.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / HEAD).write_text(json.dumps(asdict(facts), indent=1) + "\n")

    write_folder(folder, write)


class Classifier:
    """A saved head with its trunk, ready to be asked."""

    def __init__(self, folder: str | Path, *, device: str = "") -> None:
        """Load it from a folder that `rlft head` wrote.

        Args:
            device: where it computes; empty is the first GPU, or the CPU.

        Raises:
            ValueError: there is no such folder, or no head in it.
        """
        path = Path(folder)
        if not (path / HEAD).is_file():
            inner = f"; did you mean {path / 'head'}?" if (path / "head" / HEAD).is_file() else ""
            raise ValueError(f"no {HEAD} in {folder}; `rlft head` writes such a folder{inner}")
        told: dict[str, Any] = json.loads((path / HEAD).read_text())
        told |= {key: tuple(told[key]) for key in ("labels", "hidden_sizes")}
        self.facts = HeadFacts(**told)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        outputs = len(self.facts.labels) or 1
        transformers_logging.disable_progress_bar()
        with _quiet():
            model = load_classifier(path, num_labels=outputs, dtype=getattr(torch, self.facts.dtype))
        sizes = [model.config.get_text_config().hidden_size, *self.facts.hidden_sizes, outputs]
        self.head = Head(sizes, self.facts.pooling, bias=not self.facts.is_native)
        self.head.load_state_dict(load_file(path / TENSORS))
        self.head.to(self.device).eval()
        self.trunk = trunk_of(model).to(self.device).eval()
        self.tokenizer = chat.load_tokenizer(path, for_chat=self.facts.conversations)

    @staticmethod
    @cache
    def load(folder: str, device: str = "") -> Classifier:
        """Load a folder once for each process; see the class."""
        return Classifier(folder, device=device)

    def token_ids(self, content: str | Sequence[Message]) -> tuple[int, ...]:
        """Tokens of a text, or of a conversation, as in training.

        Raises:
            ValueError: it is of the other kind than what was trained on, or too long.
        """
        if isinstance(content, str) == self.facts.conversations:
            kind = ("texts", "conversations")[self.facts.conversations]
            raise ValueError(f"this head was trained on {kind}; ask it about one")
        if isinstance(content, str):
            ids = tuple(self.tokenizer(content)["input_ids"])
        else:
            ids = chat.conversation(self.tokenizer, content)
        if self.facts.without_padding:
            ids = special_tokens.without_padding(ids, self.tokenizer.pad_token_id)
        if not 0 < len(ids) <= self.facts.max_length:
            raise ValueError(f"a text of {len(ids)} tokens; this head reads 1 to {self.facts.max_length}")
        return ids

    def column(self, label: str) -> int:
        """Which output is that of a label; 0 for the only one, of a regression.

        Raises:
            ValueError: there is no such label.
        """
        labels = self.facts.labels
        if not labels and not label:
            return 0
        if label not in labels:
            there = f"it has {', '.join(labels)}" if labels else "it is a regression, which has none; leave label out"
            raise ValueError(f"this head has no label {label!r}; {there}.{did_you_mean(label, labels)}")
        return labels.index(label)

    @torch.no_grad()
    def logits(self, contents: Sequence[str | Sequence[Message]]) -> Tensor:
        """Raw outputs for each text or conversation, (len(contents), outputs) float32 on the CPU."""
        rows = [self.token_ids(content) for content in contents]
        found = torch.zeros(len(rows), len(self.facts.labels) or 1)
        for batch in batches([len(row) for row in rows]):
            found[batch] = self.head(*hidden_states(self.trunk, [rows[row] for row in batch])).float().cpu()
        return found

    def predict(self, contents: Sequence[str | Sequence[Message]]) -> Tensor:
        """Probability of each label, (len(contents), labels), or of a regression its value, (len(contents), 1)."""
        logits = self.logits(contents) / self.facts.temperature
        if self.facts.task == "regression":
            return logits
        return logits.softmax(1) if self.facts.task == "classification" else logits.sigmoid()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the output layer is a new one and that further layers are left out."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with quiet_libraries():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
