"""`rlft verify`: all checks of a run in order, cheap ones whole, expensive ones of a random share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from rlft.config import CheckpointConfig, RunConfig
from rlft.curves.live_panel import View
from rlft.model.adapter import adapter_hash, bare_base, read_folder
from rlft.reward.stored import read_greedy, read_samples
from rlft.run import logs, manifest
from rlft.run.checkpoint import steps_kept
from rlft.run.checkpoint import verify as verify_checkpoint
from rlft.run.records import CHECKPOINTS, ROLLOUTS, Evaluation, evaluations_folder, step_name
from rlft.train.rl.task_choice import TaskChoice
from rlft.train.rl.verify import arithmetic, stamps
from rlft.train.rl.verify.findings import Check, Verification
from rlft.train.rl.verify.material import ELSEWHERE, Here, Material, StoredAdapters, look_around, read_material
from rlft.train.rl.verify.odds import Coverage, choose, odds_of
from rlft.train.rl.verify.samples import Regenerator
from rlft.train.rl.verify.scores import Place, Rescorer, asking_nobody
from rlft.train.rl.verify.sets import SetHere, all_tasks, sets_here
from rlft.train.rl.verify.stamps import Stamps, Unit
from rlft.types import Group


@dataclass(slots=True)
class _Checks:
    """One of each kind."""

    manifest: Check = field(default_factory=lambda: Check(what="hashes in the manifest", unit="files", is_needed=False))
    tasks: Check = field(default_factory=lambda: Check(what="tasks are the environment's", unit="tasks"))
    stamps: Check = field(
        default_factory=lambda: Check(what="tasks, seeds, adapter versions of all samples", unit="samples")
    )
    adapters: Check = field(
        default_factory=lambda: Check(what="stored adapters are those that samples name", unit="adapters")
    )
    advantages: Check = field(default_factory=lambda: Check(what="advantages computed again", unit="samples"))
    metrics: Check = field(default_factory=lambda: Check(what="metrics that follow from rollouts", unit="numbers"))
    evaluations: Check = field(default_factory=lambda: Check(what="evaluations computed again", unit="numbers"))
    rewards: Check = field(default_factory=lambda: Check(what="samples scored again", unit="samples"))
    samples: Check = field(default_factory=lambda: Check(what="samples generated again", unit="samples"))

    def all(self) -> list[Check]:
        """In the order in which they are shown."""
        return [getattr(self, name) for name in self.__slots__]


@dataclass(slots=True)
class _Found:
    """What the pass over all records gathers for the checks of a share."""

    units: list[Unit] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    asked: dict[str, dict[str, tuple[str, Any]]] = field(default_factory=dict)
    stamps: Stamps = field(default_factory=Stamps)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    samples: int = 0

    def add(
        self, file: str, step: int, groups: Sequence[Group], *, is_heldout: bool = False, set_name: str = ""
    ) -> None:
        """Enter the groups of a file, which are of an evaluation, or set, as `Place` has it."""
        asked = self.asked.setdefault(set_name, {})
        for index, group in enumerate(groups):
            place = Place(
                file=file,
                step=step,
                is_heldout=is_heldout,
                set_name=set_name,
                index=index,
                samples=len(group.trajectories),
            )
            self.places.append(place)
            asked.setdefault(group.task.id, (file, group.task.messages))
            self.samples += len(group.trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the checks share."""

    material: Material
    here: Here
    sets: Mapping[str, SetHere]
    adapters: StoredAdapters
    checks: _Checks
    found: _Found
    share: float
    seed: int
    view: View


def verify(run: Path, config: RunConfig, *, share: float, seed: int, root: str = "", workers: int = 1) -> Verification:
    """Check a run's records against each other, and against the model, the tasks and the rewards that are here.

    Args:
        share: of the chunks that are generated again, and of the groups that are scored again, at least one of each.
        seed: chooses them.
        root: sha256 that the manifest has to have, as somebody signed it; empty asks for none.
        workers: scoring processes; 0 scores in this process.

    Raises:
        ValueError: `run` has no rollouts, or a log, the config or the manifest cannot be read.
    """
    checks, found = _Checks(), _Found()
    transformers_logging.disable_progress_bar()
    with View(f"verify {config.name}", steps=0) as view:
        view.stage("hashes")
        notes = check_manifest(run, config.checkpoint, root, checks.manifest)
        material = read_material(run, config)
        here = look_around(run, config)
        adapters = StoredAdapters(run, config, here.model_folder)
        work = _Work(
            material=material,
            here=here,
            sets=sets_here(material, here),
            adapters=adapters,
            checks=checks,
            found=found,
            share=share,
            seed=seed,
            view=view,
        )
        _check_records(work)
        _check_adapters(work)
        scored = _check_rewards(work, workers)
        checkable = [unit for unit in found.units if adapters.has(unit.chunk.version)]
        generated = _check_samples(work, checkable)
    learners = arithmetic.learners_numbers(material)
    if learners:
        checks.metrics.skip("numbers of the metrics that only the learner knows (policy/..., critic/...)", learners)
    coverage = Coverage(
        groups=len(found.places),
        scored=scored,
        samples=found.samples,
        checkable=[(unit.chunk.version, unit.samples) for unit in checkable] if generated else [],
        generated=generated,
        adapters=list(adapters.folders),
        named=list(found.stamps.named),
        lines=sum(step in material.metrics for step in material.steps) / len(material.steps),
        learners=learners,
        repeats_updates=False,
        is_exact=not here.inexact,
    )
    actual = manifest.root_hash(run)
    return Verification(
        run=str(run),
        share=share,
        seed=seed,
        root=actual,
        is_signed=bool(root) and root == actual,
        is_exact=not here.inexact,
        checks=checks.all(),
        odds=odds_of(coverage),
        notes=[*notes, *_coverage_told(work, checkable)],
    )


def check_manifest(run: Path, checkpoint: CheckpointConfig, root: str, check: Check) -> list[str]:
    """Compare the files of any kind of run with its manifest; what is to be known of it."""
    found = manifest.compare(run, keeps_adapters=checkpoint.adapters == "all")
    if found is None:
        if root:
            check.differ("manifest.json", f"it is missing, and its root should be {root[:12]}")
        check.skip(
            "the run has no manifest.json: it was stopped before its first checkpoint or the first one after it was "
            "resumed, or made by an older rlft",
            0,
        )
        return ["There are no hashes to compare with, so everything below rests on computing it again."]
    if root and (actual := manifest.root_hash(run)) != root:
        check.differ("manifest.json", f"its sha256 is {actual}, not the given {root}")
    check.agree(found.checked - len(found.problems))
    for problem in found.problems:
        name, _, what = problem.partition(" ")
        check.differ(name, what)
    for step in steps_kept(run / CHECKPOINTS):
        if problem := verify_checkpoint(run / CHECKPOINTS / step_name(step)):
            check.differ(f"{CHECKPOINTS}/{step_name(step)}", problem)
    if found.gone:
        check.skip("files that the run itself has removed since", len(found.gone))
    if found.newer:
        check.skip(f"files that are newer than the manifest, which is of step {found.step}", len(found.newer))
    signed = (
        "" if root else " Whoever changes files can write another manifest: only a root that was signed proves more."
    )
    return [f"Root of the manifest (sha256): {manifest.root_hash(run)}.{signed}"]


def _check_records(work: _Work) -> None:
    """Everything that follows from the records by arithmetic, file by file."""
    material, checks, found = work.material, work.checks, work.found
    run, config, tasks = material.run, material.config, material.tasks
    environment = work.here.environment
    choice = None if environment is None else TaskChoice(config, environment.train)
    work.view.stage("arithmetic of all records", total=len(material.steps))
    for done, step in enumerate(material.steps, start=1):
        file, greedy_file = f"{ROLLOUTS}/{step_name(step)}.parquet", f"{ROLLOUTS}/greedy-{step:06d}.parquet"
        try:
            stored = read_samples(run / file, step, tasks)
            greedy = read_greedy(run, step, tasks)
        except ValueError as error:
            checks.stamps.differ(file, str(error))
            continue
        if is_own := step > material.made_elsewhere:
            arithmetic.check_advantages(material, work.here, file, stored, greedy, checks.advantages)
            arithmetic.check_metrics(material, file, stored, checks.metrics)
        else:
            for check in (checks.stamps, checks.advantages, checks.metrics, checks.rewards, checks.samples):
                check.skip(ELSEWHERE, sum(map(len, stored.rows)))
        for name, groups, is_greedy in ((file, stored.groups, False), (greedy_file, greedy, True)) if is_own else ():
            found.add(name, step, groups)
            found.units += stamps.check_step_stamps(
                config,
                choice,
                file=name,
                step=step,
                groups=groups,
                is_greedy=is_greedy,
                check=checks.stamps,
                stamps=found.stamps,
            )
        if choice is not None:
            choice.observe(step, stored.groups)
        work.view.progress(done, len(material.steps))
    arithmetic.check_lines(material, checks.metrics)
    for name in work.sets:
        for path in sorted((run / evaluations_folder(name)).glob("[!.]*.json")):
            _check_evaluation(work, path, name)
    try:
        arithmetic.check_summary(run, config, found.evaluations, checks.evaluations)
    except ValueError as error:
        checks.evaluations.differ("summary.json", str(error))
    found.stamps.check(checks.stamps)
    for name, asked in found.asked.items():
        of_set = work.sets[name]
        if of_set.here.environment is None:
            checks.tasks.skip(of_set.here.missing["environment"], len(asked))
        else:
            arithmetic.check_tasks(of_set.here.environment, of_set.tasks, asked, checks.tasks)


def _check_evaluation(work: _Work, path: Path, set_name: str) -> None:
    material, check, found, of_set = work.material, work.checks.evaluations, work.found, work.sets[set_name]
    folder, samples = evaluations_folder(set_name), path.with_suffix(".parquet")
    file, config = f"{folder}/{path.name}", of_set.config
    if not samples.is_file():
        check.skip("evaluations whose samples are not stored")
        return
    try:
        evaluation = logs.read_evaluation(path)
        if material.is_measured_elsewhere and evaluation.step <= material.made_elsewhere:
            check.skip(ELSEWHERE)
            found.evaluations |= {} if set_name else {path.stem: evaluation}
            return
        groups = read_samples(samples, evaluation.step, of_set.tasks).groups
        arithmetic.check_evaluation(config, path, file, groups, check, set_name=set_name)
    except ValueError as error:
        check.differ(file, str(error))
        return
    found.stamps.add(evaluation.adapter_version, evaluation.adapter_hash, file)
    if not set_name:
        found.evaluations[path.stem] = evaluation
    found.add(f"{folder}/{samples.name}", evaluation.step, groups, is_heldout=True, set_name=set_name)
    if work.here.environment is not None and of_set.here.environment is None:
        work.checks.samples.skip(of_set.here.missing["environment"], sum(len(group.trajectories) for group in groups))
    found.units += stamps.check_heldout_stamps(
        config,
        of_set.here.environment,
        file=f"{folder}/{samples.name}",
        step=evaluation.step,
        version=evaluation.adapter_version,
        groups=groups,
        check=work.checks.stamps,
        stamps=found.stamps,
        set_name=set_name,
        episodes=of_set.episodes,
    )


def _check_adapters(work: _Work) -> None:
    """Each stored adapter has the hash that samples and evaluations name."""
    named, check, base = work.found.stamps.named, work.checks.adapters, bare_base()
    for version, folder in sorted(work.adapters.folders.items()):
        where = f"adapters/{folder.name}"
        hashes = named.get(version, {})
        try:
            content_hash = adapter_hash(read_folder(folder))
        except ValueError as error:
            check.differ(where, str(error))
            continue
        if not hashes:
            check.skip("adapters whose hash no sample and no evaluation names")
        elif content_hash not in hashes:
            check.differ(
                where, f"its tensors have hash {content_hash[:12]}, its samples name {next(iter(hashes))[:12]}"
            )
        else:
            check.agree()
    for content_hash, where in named.get(base.version, {}).items():
        if content_hash != base.hash:
            check.differ(where, "it names another hash than that of the bare base model")


def _check_rewards(work: _Work, workers: int) -> int:
    """Score a share of the groups again; how many."""
    material, check, found = work.material, work.checks.rewards, work.found
    work.view.stage("scoring again")
    with asking_nobody():
        try:
            rescorer = Rescorer(material.config, all_tasks(work.sets), workers=workers)
        except ValueError as error:
            check.skip(f"the rewards cannot be loaded: {error}", found.samples)
            return 0
        try:
            if changes := rescorer.changed(logs.read_provenance(material.run)):
                check.skip("; ".join(changes), found.samples)
                return 0
            picked = [found.places[index] for index in choose(len(found.places), work.share, work.seed, stream=0)]
            by_file = {place.file: place for place in picked}
            for done, (file, one) in enumerate(by_file.items(), start=1):
                of_set = work.sets[one.set_name]
                groups = read_samples(material.run / file, one.step, of_set.tasks).groups
                chosen = [groups[place.index] for place in picked if place.file == file]
                rescorer.check(file, 0 if one.is_heldout else one.step, chosen, of_set.here, check)
                work.view.progress(done, len(by_file))
        finally:
            rescorer.close()
    return len(picked)


def _check_samples(work: _Work, checkable: Sequence[Unit]) -> int:
    """Generate a share of the chunks again; how many."""
    material, here, check, found = work.material, work.here, work.checks.samples, work.found
    for what in ("model", "environment"):
        if what in here.missing:
            check.skip(here.missing[what], found.samples)
            return 0
    if lost := sum(unit.samples for unit in found.units if not work.adapters.has(unit.chunk.version)):
        check.skip("samples whose adapter is not stored", lost)
    picked = [checkable[index] for index in choose(len(checkable), work.share, work.seed, stream=1)]
    if not picked:
        return 0
    work.view.stage("loading the rollout engine")
    regenerator = Regenerator(material.config, here)
    if here.inexact:
        check.remark(f"compared within bounds, not to the bit: {here.inexact}")
    try:
        work.view.stage("generating again", total=len(picked))
        for done, unit in enumerate(sorted(picked, key=lambda unit: unit.chunk.version), start=1):
            _check_unit(work, regenerator, unit)
            work.view.progress(done, len(picked))
    finally:
        regenerator.close()
    return len(picked)


def _check_unit(work: _Work, regenerator: Regenerator, unit: Unit) -> None:
    check, version, of_set = work.checks.samples, unit.chunk.version, work.sets[unit.set_name]
    try:
        adapter = work.adapters.get(version)
    except ValueError as error:
        check.differ(unit.file, f"its samples cannot be generated again: {error}", unit.samples)
        return
    if adapter.hash not in work.found.stamps.named[version]:
        check.differ(unit.file, f"adapter {version} is not the one that its samples name", unit.samples)
        return
    stored = read_samples(work.material.run / unit.file, unit.step, of_set.tasks).groups
    first = {task.id: unit.chunk.seeds(task)[0] for task in unit.chunk.tasks}
    own = {group.task.id: group for group in stored if first.get(group.task.id) == group.trajectories[0].seed}
    regenerator.load(adapter)
    regenerator.check(unit, own, of_set.here, check)


def _coverage_told(work: _Work, checkable: Sequence[Unit]) -> list[str]:
    """How much of the run could be generated again at all, in words."""
    config, units = work.material.config, work.found.units
    if not units:
        return []
    of_steps = {unit.step for unit in checkable if unit.file.startswith(f"{ROLLOUTS}/")}
    told = f"Of {len(work.material.steps)} steps {len(of_steps)} can be generated again: their adapter is stored."
    if len(of_steps) < len(work.material.steps):
        told += (
            f" A run keeps one adapter with each checkpoint (checkpoint.every={config.checkpoint.every}, "
            f"checkpoint.adapters={config.checkpoint.adapters}); checkpoint.every=1 keeps all."
        )
    return [told]
