"""Held-out values of a run's stored policies: read where an evaluation has them, else made now and kept.

What is made goes to `bisect/` in the run's directory, below a name that follows from the settings, and nothing else is
written there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from rlft.common.files import write_file
from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.curves.reading import read_evals
from rlft.learner import reward_model
from rlft.learner.rl import Learner
from rlft.reward.scoring import LearnerScores
from rlft.reward.stored import StoredTasks, read_samples
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.pool import RolloutPool
from rlft.run.directory import read_config
from rlft.run.records import EVALS
from rlft.run.rollout_table import to_parquet
from rlft.train import provenance
from rlft.train.rl.bisect.metrics import ENTROPY, LENGTH, REWARD, TRUNCATED
from rlft.train.rl.bisect.search import Values
from rlft.train.rl.evaluate import answer_heldout, values_of
from rlft.train.rl.services import make_scorer, services
from rlft.train.rl.verify.material import StoredAdapters, look_around, with_prompt
from rlft.train.rl.verify.samples import make_teacher, teach
from rlft.types import Adapter, Group, SamplingParams

BISECT = "bisect"
"""Folder of a run's directory that keeps what was measured."""
Source: TypeAlias = Literal["stored evaluation", "kept from before", "measured now"]


def group_values(group: Group, name: str) -> list[float]:
    """A metric's value on each of a group's samples that has one; not `policy/entropy`, which needs the model."""
    if name == LENGTH:
        return [float(trajectory.num_actions) for trajectory in group.trajectories]
    if name == TRUNCATED:
        return [float(trajectory.finish_reason == "length") for trajectory in group.trajectories]
    return group.scores if name == REWARD else values_of(group, name)


class Measured:
    """The policies of a run, each measured at most once; use it as a context, whose end stops the workers."""

    def __init__(self, run: Path, config: RunConfig, name: str, view: View) -> None:
        """Find what is stored.

        Args:
            config: the run's, perhaps with other settings of its evaluation.
            name: of `metrics.metric_name`.

        Raises:
            ValueError: the model or the tasks are not those of the run; or fewer than two policies are stored.
        """
        self._run, self._config, self._name, self._view = run, config, name, view
        view.stage("looking at the run")
        own = read_config(run, RunConfig)
        self._here = look_around(run, own)
        if missing := [*self._here.missing.values()]:
            raise ValueError(f"{run}: {missing[0]}")
        self._adapters = StoredAdapters(run, config, self._here.model_folder)
        is_own = config.evaluation == own.evaluation and config.sampling == own.sampling
        self._evaluations = {e.adapter_version: e for e in read_evals(run) if is_own and e.adapter_version >= 0}
        folders = self._adapters.folders
        extra = [] if name == ENTROPY else self._evaluations
        start = [0] if self._adapters.has(0) else []
        self.versions: Sequence[int] = sorted({*folders, *start, *extra})
        """Steps behind each stored policy, ascending."""
        if len(self.versions) < 2:
            raise ValueError(f"{run} has {len(self.versions)} stored policies, and a change needs two")
        self._folder = run / BISECT / self._key()
        self._pool: RolloutPool | None = None
        self._teacher: TransformersEngine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def values(self, version: int) -> tuple[Values, Source]:
        """The metric's values by held-out task under a policy, and where they come from.

        Raises:
            ValueError: no sample has the metric; or what is stored is damaged.
        """
        if self._name == ENTROPY:
            return self._entropies(version)
        groups, source = self._groups(version)
        values = {group.task.id: group_values(group, self._name) for group in groups}
        if not any(values.values()):
            parts = sorted({part for group in groups for t in group.trajectories for part in t.parts})
            raise ValueError(f"no held-out sample has the metric {self._name}; there are: {', '.join(parts)}")
        return values, source

    def is_known(self, version: int) -> bool:
        """Whether a policy's values need no generating: an evaluation has them, or an earlier search."""
        if self._name == ENTROPY:
            return self._kept(version, "-entropy.json").is_file()
        return self._evaluated(version) is not None or self._kept(version, ".parquet").is_file()

    def _evaluated(self, version: int) -> tuple[Path, int] | None:
        """File and step of the stored evaluation of a policy, if there is one."""
        evaluation = self._evaluations.get(version)
        if evaluation is None:
            return None
        stored = self._run / EVALS / f"{evaluation.name}.parquet"
        is_same = not self._is_stored(version) or self._adapter(version).hash == evaluation.adapter_hash
        return (stored, evaluation.step) if stored.is_file() and is_same else None

    def _kept(self, version: int, ending: str) -> Path:
        return self._folder / f"v{version:06d}-{self._adapter(version).hash[:12]}{ending}"

    def _groups(self, version: int) -> tuple[Sequence[Group], Source]:
        if evaluated := self._evaluated(version):
            return read_samples(*evaluated, StoredTasks(lines={})).groups, "stored evaluation"
        kept = self._kept(version, ".parquet")
        if kept.is_file():
            return read_samples(kept, version, StoredTasks(lines={})).groups, "kept from before"
        groups = self._measure(self._adapter(version))
        write_file(kept, to_parquet(groups, step=version))
        return groups, "measured now"

    def _is_stored(self, version: int) -> bool:
        return version in self._adapters.folders

    def _adapter(self, version: int) -> Adapter:
        return self._adapters.get(version)

    def _measure(self, adapter: Adapter) -> list[Group]:
        if self._pool is None:
            self._start()
        assert self._pool is not None
        assert self._here.environment is not None
        self._view.stage(f"measuring the policy of step {adapter.version}")
        self._pool.publish(adapter)
        return answer_heldout(
            self._config,
            self._pool,
            self._scorer,
            self._here.environment.heldout,
            version=adapter.version,
            on_chunk=self._view.progress,
        )

    def _start(self) -> None:
        """Start scoring processes and rollout workers."""
        config, folder, environment = self._config, self._here.model_folder, self._here.environment
        assert environment is not None
        learner_scores = LearnerScores()
        self._scorer = make_scorer(config, environment, log_dir=None, learner=learner_scores)
        self._pool = self._stack.enter_context(services(config, folder, self._scorer, None, self._view))
        if config.learner_rewards:
            reward_model.check(config, folder)
            learner_scores.bind(partial(Learner(config, folder).scores, tools=environment.tools))

    def _entropies(self, version: int) -> tuple[Values, Source]:
        """Mean entropy of the next token over each sample's actions."""
        kept = self._kept(version, "-entropy.json")
        if kept.is_file():
            return json.loads(kept.read_text(encoding="utf-8")), "kept from before"
        groups, _ = self._groups(version)
        if self._teacher is None:
            self._teacher = make_teacher(self._config, self._here)
        self._teacher.load_adapter(self._adapter(version))
        self._view.stage(f"entropy of the policy of step {version}")
        params = SamplingParams(temperature=self._config.sampling.temperature, top_p=1.0, max_new_tokens=1)
        values: dict[str, list[float]] = {}
        for done, group in enumerate(groups, start=1):
            prompted = with_prompt(self._here, group)
            means = [teach(self._teacher, each, params).entropies for each in prompted.trajectories if each.num_actions]
            values[group.task.id] = [float(mean.mean()) for mean in means]
            self._view.progress(done, len(groups))
        write_file(kept, json.dumps(values))
        return values, "measured now"

    def _key(self) -> str:
        """Name of what was measured with these settings, tasks and rewards."""
        config, environment = self._config, self._here.environment
        assert environment is not None
        settings = config.model_dump(
            mode="json", include={"seed", "sampling", "rewards", "model", "rollout", "environment"}
        )
        evaluation = config.evaluation.model_dump(mode="json", exclude={"every", "metric"})
        samples = config.samples_per_task  # decides how many tasks are generated together
        tasks = provenance.tasks_sha256(environment)
        text = json.dumps([settings, evaluation, samples, tasks], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
