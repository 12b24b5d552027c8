"""What a checkpoint of an RL run holds, and how a run continues from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rlft.learner.rl import PolicyLearner
from rlft.model.adapter import make_adapter
from rlft.run.checkpoint import Snapshot
from rlft.train.rl.task_choice import TaskChoice
from rlft.types import Adapter, Canary

PUBLISHED = "published/"
"""What the names of earlier adapters' tensors begin with in a checkpoint."""


TASKS = "tasks"
"""Key of what a checkpoint has of `TaskChoice`."""


def snapshot(
    learner: PolicyLearner, step: int, earlier: Sequence[Adapter] = (), tasks: TaskChoice | None = None
) -> Snapshot:
    """Everything that continues after `step`.

    Args:
        earlier: published adapters, besides the step's own, that make the rollouts in flight.
        tasks: what chooses the tasks of each step, where that remembers anything.
    """
    tensors, numbers = learner.state()
    published = {f"{PUBLISHED}{a.version}/{name}": tensor for a in earlier for name, tensor in a.tensors.items()}
    proofs = {str(a.version): {"hash": a.hash, "canary": _canary(a.canary)} for a in earlier}
    state = {"learner": numbers, **({"published": proofs} if earlier else {})}
    if remembered := tasks.state(step) if tasks else {}:
        state[TASKS] = remembered
    return Snapshot(step=step, tensors={**tensors, **published}, state=state)


def restore(learner: PolicyLearner, snapshot: Snapshot, tasks: TaskChoice | None = None) -> list[Adapter]:
    """Continue a learner from a snapshot, and the choice of tasks.

    Returns:
        The earlier adapters, ascending.

    Raises:
        ValueError: the snapshot belongs to another configuration.
    """
    own = {name: tensor for name, tensor in snapshot.tensors.items() if not name.startswith(PUBLISHED)}
    learner.load_state(own, snapshot.state["learner"])
    if tasks and TASKS in snapshot.state:
        tasks.load(snapshot.state[TASKS])
    earlier = []
    for version, proof in snapshot.state.get("published", {}).items():
        prefix = f"{PUBLISHED}{version}/"
        tensors = {n.removeprefix(prefix): t for n, t in snapshot.tensors.items() if n.startswith(prefix)}
        adapter = make_adapter(int(version), tensors)
        if adapter.hash != proof["hash"]:
            raise ValueError(f"the checkpoint of step {snapshot.step} holds another adapter {version} than it names")
        earlier.append(replace(adapter, canary=_read_canary(proof["canary"])))
    return sorted(earlier, key=lambda adapter: adapter.version)


def _canary(canary: Canary | None) -> dict[str, Any] | None:
    """As JSON, without the log-probs of even earlier versions, which a resumed run does not remember."""
    return asdict(replace(canary, earlier={})) if canary else None


def _read_canary(saved: Mapping[str, Any] | None) -> Canary | None:
    if saved is None:
        return None
    return Canary(
        prompt_ids=tuple(saved["prompt_ids"]),
        token_ids=tuple(saved["token_ids"]),
        logprobs=tuple(saved["logprobs"]),
        tolerance=saved["tolerance"],
    )
