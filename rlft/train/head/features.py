"""Features of a frozen trunk: computed once for each text, and kept in rlft's cache for all further runs.

    $RLFT_CACHE/features/KEY/SHARD.safetensors   ids (n, 32) sha256 of the token ids; lengths (n); states (sum, hidden)

KEY is a hash of everything else that decides what a feature is: the model's files (weights and tokenizer), the type
that it computes in, how many layers, and the pooling. Attention pooling is trained, so of it the states of all tokens
are kept. A shard is written after some hundred texts, so that what an interrupted run has computed is not lost.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlft.common.files import cache_root, folder_sha256, write_file
from rlft.model.cache import say
from rlft.model.head import Pooling, batches, hidden_states, pool

_SHARD = 512
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the trunk says of some texts, in their order."""

    states: Sequence[Tensor]
    """Of each text (1, hidden_size), or for attention pooling (tokens, hidden_size)."""
    computed: int
    """Texts that the trunk was run for."""
    kept: int
    """Texts whose features were in the cache."""
    folder: Path
    """Where they are kept."""

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Padded states (B, T, hidden_size) and mask (B, T) of some texts."""
        chosen = [self.states[row] for row in rows]
        masks = [torch.ones(len(state), dtype=torch.bool) for state in chosen]
        return pad_sequence(chosen, batch_first=True), pad_sequence(masks, batch_first=True)


def features_folder(model_folder: str, *, dtype: torch.dtype, layers: int, pooling: Pooling) -> Path:
    """Where the features of a trunk are kept."""
    parts = [str(_VERSION), folder_sha256(Path(model_folder)), str(dtype), str(layers), pooling]
    return cache_root() / "features" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def features_of(
    rows: Sequence[Sequence[int]],
    folder: Path,
    trunk: nn.Module,
    pooling: Pooling,
    on_text: Callable[[int, int], None],
) -> Features:
    """Features of texts, from the cache or else of the trunk.

    Args:
        rows: token ids of each text.
        folder: of `features_folder`.
        trunk: what computes those that are not there.
        on_text: called with (texts done, texts to compute).

    Raises:
        RuntimeError: a feature is not finite.
    """
    ids = [_digest(row) for row in rows]
    found = _read(folder, set(ids))
    kept = len(found)
    missing = [row for row in range(len(rows)) if ids[row] not in found]
    if missing:
        done = 0
        shard: dict[bytes, Tensor] = {}
        for batch in batches([len(rows[row]) for row in missing]):
            chosen = [missing[at] for at in batch]
            with torch.no_grad():
                hidden, mask = hidden_states(trunk, [rows[row] for row in chosen])
                states = hidden if pooling == "attention" else pool(hidden.float(), mask, pooling)[:, None]
            if not bool(torch.isfinite(states).all()):
                raise RuntimeError("the trunk's hidden states are not finite; use model.dtype=float32")
            for row, state in zip(chosen, states.cpu(), strict=True):
                shard[ids[row]] = state[: len(rows[row])].clone()
            done += len(chosen)
            on_text(done, len(missing))
            if len(shard) >= _SHARD:
                _write(folder, shard)
                found |= shard
                shard = {}
        _write(folder, shard)
        found |= shard
    return Features(states=[found[digest].float() for digest in ids], computed=len(missing), kept=kept, folder=folder)


def _digest(row: Sequence[int]) -> bytes:
    numbers = array("q", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return hashlib.sha256(numbers.tobytes()).digest()


def _read(folder: Path, wanted: set[bytes]) -> dict[bytes, Tensor]:
    found: dict[bytes, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shard = load_file(path)
            digests = [bytes(row) for row in shard["ids"].numpy()]
            states = shard["states"].split(shard["lengths"].tolist())
        except (SafetensorError, KeyError, RuntimeError) as error:
            say(f"The cached features {path} are damaged ({error}) and are computed again.")
            path.unlink()
            continue
        found |= {digest: state.clone() for digest, state in zip(digests, states, strict=True) if digest in wanted}
    return found


def _write(folder: Path, shard: dict[bytes, Tensor]) -> None:
    if not shard:
        return
    tensors = {
        "ids": torch.frombuffer(bytearray(b"".join(shard)), dtype=torch.uint8).view(-1, 32),
        "lengths": torch.tensor([len(state) for state in shard.values()]),
        "states": torch.cat(list(shard.values())),
    }
    name = hashlib.sha256(b"".join(shard)).hexdigest()[:16]
    write_file(folder / f"{name}.safetensors", save(tensors))
