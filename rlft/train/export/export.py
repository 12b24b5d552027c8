"""`rlft export`: a trained policy as a folder of its own, with a model card, proven in a fresh process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rlft.common.files import write_folder
from rlft.curves.model_card import Exported, write_card
from rlft.rollout.engines.traits import ENGINES
from rlft.rollout.engines.vllm import RANKS
from rlft.run.manifest import root_hash
from rlft.train.export.base import describe_base
from rlft.train.export.folder import Dtype, refuse_quantized, write_adapter, write_merged
from rlft.train.export.policy import Policy, find_policy
from rlft.train.export.proof import FreshProcess, Proof, ProofError, expect, prove

EXPORTS = "exports"
"""Folder of a run's directory for what is exported without a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was exported."""

    folder: Path
    what: Exported
    """The facts that its model card has."""
    proof: Proof


def export(
    run: Path, *, adapter: str = "", merged: bool = False, to: Path | None = None, dtype: Dtype = "auto"
) -> Done:
    """Write a run's policy as a folder that plain peft, transformers and vLLM load, whole or not at all.

    Args:
        run: directory of a run of RL, SFT or preferences.
        adapter: which of its adapters, see `reading.adapter_of`; its result if empty.
        merged: a whole model instead of an adapter; of a run with `adapter.kind: full` there is only that.
        to: the folder; below the run's own directory if not given.
        dtype: what a merged model is stored in.

    Raises:
        ValueError: there is nothing to export, it is not what the run recorded, or the target is not empty.
        ProofError: the folder does not compute what was trained. It stays beside the target, for a look.
    """
    policy = find_policy(run, adapter)
    is_adapter = not (merged or policy.is_full)
    if is_adapter and dtype != "auto":
        raise ValueError("--dtype is for merged models; an adapter is stored as it was trained, in float32")
    if not is_adapter:
        refuse_quantized(policy)
    target = to or run / EXPORTS / f"{policy.name}{'' if is_adapter else '-merged'}"
    refuse_occupied(target)
    results: list[tuple[Exported, Proof]] = []

    def write(folder: Path) -> None:
        base = describe_base(policy)
        if is_adapter:
            stored = write_adapter(folder, policy, base.reference)
        else:
            stored = write_merged(folder, policy, dtype)
        try:
            proof = prove(folder, policy, expected, fresh, is_adapter=is_adapter, dtype=stored)
        except ProofError as error:
            kept = _set_aside(folder, target)
            raise ProofError(f"{error}.\nWhat was written is in {kept}, and {target} was not made") from error
        exported = Exported(
            name=policy.name,
            title=target.name,
            adapter=policy.folder.name,
            adapter_hash=policy.hash,
            is_adapter=is_adapter,
            kind=policy.config.adapter.kind,
            dtype=stored,
            vllm_rank=_vllm_rank(policy),
            base=base,
            proof=proof.sentence,
            root=root_hash(run),
            is_chat=expected.is_chat,
        )
        write_card(folder, run, exported)
        results.append((exported, proof))

    with closing(FreshProcess()) as fresh:
        expected = expect(policy)
        write_folder(target, write)
    exported, proof = results[0]
    return Done(folder=target, what=exported, proof=proof)


def refuse_occupied(target: Path) -> None:
    """Refuse a target that is there and not an empty folder.

    Raises:
        ValueError: what to do instead.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already and not empty; name another folder with --to, or remove it")


def _vllm_rank(policy: Policy) -> int:
    """See `Exported.vllm_rank`."""
    config = policy.config.adapter
    if config.kind not in ENGINES["vllm"].adapter_kinds:
        return 0
    return next((rank for rank in RANKS if rank >= config.rank), 0)


def _set_aside(folder: Path, target: Path) -> Path:
    """Move a folder that failed its proof beside its target, under a name that is free."""
    number = 0
    while (kept := target.with_name(f"{target.name}.unproven{f'-{number}' if number else ''}")).exists():
        number += 1
    folder.rename(kept)
    return kept
