"""Guards against a policy that has diverged: without them a run that learnt nothing but noise ends as a success."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rlft.curves.live_panel import View
from rlft.curves.reading import read_metrics
from rlft.run.checkpoint import steps_kept
from rlft.run.directory import Run
from rlft.run.records import ADAPTERS, CHECKPOINTS, numbered
from rlft.types import Adapter, Metrics

EVENT = "diverged"


class Guards:
    """Looks at every step's numbers and at the adapter that they led to, before an engine gets it."""

    def __init__(self, run: Run, view: View, *, start: int) -> None:
        """Go on after step `start`, of which the run directory holds the numbers."""
        self._run, self._view = run, view
        self._updates, self._idle = 0.0, 0
        """Updates so far, and steps since the last one, some of them perhaps from before the run was resumed."""
        for row in read_metrics(run.path):
            if row["step"] <= start:
                made = row.get("policy/updates", 0.0)
                self._idle = 0 if made > self._updates or row.get("policy/skipped") else self._idle + 1
                self._updates = made
        self._first = start
        """Version of the first adapter that counts as diverged."""
        self._told = set[str]()

    def check(self, step: int, metrics: Metrics, adapter: Adapter) -> None:
        """Say what has diverged in this step, once while it lasts, and stop where `guards.stop` asks for it.

        Raises:
            RuntimeError: what has diverged, the last adapter from before, and how to go on from it; the step's numbers
                are logged.
        """
        found = self._found(metrics, adapter)
        for name in found.keys() - self._told:
            self._run.event(EVENT, found[name], step=step)
            self._view.note(f"step {step}: {found[name]}")
        if not self._told:
            # A step's numbers are of the policy that its samples come from, which the step before has made.
            self._first = step if found.keys() == {"parameters"} else step - 1
        # What was not measured, as in a step without updates, is neither better nor worse.
        measured = {"kl": "policy/kl_ref", "entropy": "policy/entropy"}
        self._told = {*found, *(name for name in self._told if name in measured and measured[name] not in metrics)}
        stopping = [name for name in found if name == "parameters" or name in self._run.config.guards.stop]
        if stopping:
            self._run.log(step, metrics)
            raise RuntimeError(f"step {step}: {found[stopping[0]]}. {self._way_out(stopping[0])}")

    def _found(self, metrics: Metrics, adapter: Adapter) -> Mapping[str, str]:
        """What has diverged, by the guard's name."""
        guards, found = self._run.config.guards, {}
        kl, entropy = metrics.get("policy/kl_ref"), metrics.get("policy/entropy")
        # A skipped update was made in vain, which is another fault with a limit of its own.
        self._idle = 0 if metrics["policy/updates"] > self._updates or metrics.get("policy/skipped") else self._idle + 1
        self._updates = metrics["policy/updates"]
        if bad := next((name for name, tensor in adapter.tensors.items() if not bool(tensor.isfinite().all())), None):
            found["parameters"] = f"the policy's parameters are not finite, first {bad}"
        if guards.max_kl and kl is not None and kl > guards.max_kl and not self._run.config.reference:
            found["kl"] = (
                f"the policy is {kl:.3g} nats per token away from where RL started, more than guards.max_kl="
                f"{guards.max_kl:g}"
            )
        if entropy is not None and entropy < guards.min_entropy:
            found["entropy"] = (
                f"the policy's entropy is {entropy:.4f} nats per token, less than guards.min_entropy="
                f"{guards.min_entropy:g}: its samples are nearly always the same"
            )
        if guards.steps_without_signal and self._idle >= guards.steps_without_signal:
            found["signal"] = (
                f"no update was made for {self._idle} steps, as all samples of each task had equal rewards: the tasks "
                "are solved or out of reach, or the policy collapsed"
            )
        return found

    def _way_out(self, guard: str) -> str:
        path, config = self._run.path, self._run.config
        healthy = [folder for step, folder in numbered(path / ADAPTERS) if step < self._first]
        steps = [step for step in steps_kept(path / CHECKPOINTS) if step < self._first]
        resume = f"rlft resume {shlex.quote(str(path))}"
        calmer = f"learner.lr={config.learner.lr / 10:g}"
        way = f"The last adapter from before is {healthy[-1]}." if healthy else "No adapter from before was saved."
        if steps:
            way += f" Go on from there with other settings: {resume} --fork NAME --step {steps[-1]} {calmer}"
        else:
            way += f" No checkpoint from before is kept; start over with other settings, such as {calmer}"
        others = ",".join(name for name in config.guards.stop if name != guard)
        return way if guard == "parameters" else f"{way}; or let it go on as it is: {resume} 'guards.stop=[{others}]'"
