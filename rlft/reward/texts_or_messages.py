"""Whether a function that takes `completions` wants texts, as TRL's documented string style does, and not messages."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from rlft.reward import systems
from rlft.reward.contract import Kind
from rlft.reward.probe import IMPORT_S, Probe
from rlft.reward.source import definition_of
from rlft.types import Failed, RewardSpec, Task

_MOST = 64


def values_as_texts(
    spec: RewardSpec,
    kind: Kind,
    texts: Sequence[tuple[Task, str]],
    *,
    deadline_s: float,
    environment: Collection[str] = (),
    workers: int = 1,
    within_s: float = 10.0,
) -> list[float]:
    """What a function gives where it gets texts; empty where it cannot want them, or one of the texts fails.

    A function that says "content" reads messages. To be asked of one that gave one value for
    everything: what it looks for in a text is never in a list of messages.

    Args:
        kind: how it is called.
        texts: replies; as many of them as there is time for are tried.
    """
    if kind != "batch" or systems.split(spec.path)[0]:
        return []
    defined = definition_of(spec)
    if defined is None or "content" in defined.text:
        return []
    of_texts = replace(spec, path=f"trl:{spec.path}", weight=1.0, role="train", args={**spec.args, "style": "text"})
    ends = time.monotonic() + within_s
    try:
        with Probe(
            [of_texts],
            deadline_s=deadline_s,
            environment=environment,
            workers=workers,
            most_killed=0,
            startup_s=max(IMPORT_S, deadline_s),
        ) as probe:
            asked = [(task, [text]) for task, text in texts[:_MOST]]
            scored = [group[0] for group in probe.trajectories(asked, ends=ends)]
    except (ValueError, RuntimeError):  # it does not work behind trl: either
        return []
    if any(isinstance(each.outcome, Failed) for each in scored):
        return []
    return [value for each in scored if (value := each.parts.get(spec.label)) is not None]


def told(spec: RewardSpec, given: float, values: Sequence[float]) -> tuple[str, str]:
    """What is wrong with a function that wants texts, and what to do.

    Args:
        given: its value for everything.
        values: with texts.
    """
    some = ", ".join(f"{value:g}" for value in sorted(set(values))[:4])
    detail = (
        f"it gave {given:g} for everything, since each of `completions` is a list of messages and not a text; with "
        f"texts it gives {some}"
    )
    return detail, f'name it trl:{spec.path}, which hands over texts, or read completion[-1]["content"]'
