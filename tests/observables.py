"""What a setting changes, as cheaply as it can be seen: functions from a config to something that can be compared."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlft.config import BaseRunConfig, RunConfig
from rlft.curves.statistics import mean_interval
from rlft.curves.verdict import judge
from rlft.environment import loading
from rlft.learner import processes
from rlft.learner.batch import collate, minibatches
from rlft.learner.group import make_learner
from rlft.model import chat, special_tokens
from rlft.model.starting_point import reference_source, resolve_model, start_tensors
from rlft.reward.scoring import ScoringStats
from rlft.rollout import ray_pool
from rlft.rollout.chunk import Chunk
from rlft.rollout.context import fit
from rlft.rollout.engines.by_name import make_engine
from rlft.rollout.pool import make_pool
from rlft.run.directory import Run
from rlft.run.records import Evaluation, Provenance
from rlft.run.trackers import mirror
from rlft.run.trackers.contract import TrackedRun
from rlft.train.head import data as head_data
from rlft.train.head import launch as launch_head
from rlft.train.head.config import HeadConfig
from rlft.train.preference import data as preference_data
from rlft.train.preference import launch as launch_preference
from rlft.train.preference.config import PreferenceConfig
from rlft.train.preference.group import make_preference_learner
from rlft.train.preference.loop import train_dpo
from rlft.train.reward_model import launch as launch_reward_model
from rlft.train.reward_model import train as reward_model
from rlft.train.reward_model.config import RewardModelConfig
from rlft.train.rl import launch
from rlft.train.rl.alarms import AlarmWatch
from rlft.train.rl.evaluate import answer_heldout, headline
from rlft.train.rl.guards import Guards
from rlft.train.rl.loop import refuse_mismatch
from rlft.train.rl.rollouts import StepRollouts, refuse_failures
from rlft.train.rl.services import make_scorer, reward_remarks
from rlft.train.rl.task_choice import TaskChoice
from rlft.train.sft import train_sft
from rlft.train.standing import Standing
from rlft.train.supervised import data as supervised_data
from rlft.train.supervised import launch as launch_supervised
from rlft.train.supervised.config import SupervisedConfig
from rlft.train.supervised.learner import make_supervised_learner
from rlft.train.supervised.loop import train_supervised
from rlft.types import Adapter, Failed, Group, Score, Task
from tests.fakes import made_up_group

END = frozenset([0])


class _SeenError(Exception):
    """Ends what has shown enough."""


# All runs


def place(config: BaseRunConfig) -> Any:
    """Where the run directory lies."""
    with Run.create(config, provenance=Provenance(), restart=True) as run:
        return str(run.path), sorted(path.name for path in run.path.iterdir())


def tracked(config: BaseRunConfig) -> Any:
    """What each tracker is told about the run, but for its id."""
    told = queue.SimpleQueue[Any]()

    def make(name: str, run: TrackedRun) -> Any:
        told.put((name, run.project, run.to))
        return mock.Mock()

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(mirror, "make_tracker", make):
        sending = mirror.Mirror(Path(folder), config)
        sending.log(1, {})
        assert sending.finish() == []
    return [told.get_nowait() for _ in config.trackers]


def spelling(config: Any) -> Any:
    """What the tokenizers that read the data are told about special tokens in texts."""
    with mock.patch.object(special_tokens, "set_policy") as told:
        if isinstance(config, RunConfig):
            fit(config, loading.load(config.environment), config.model.source)
        elif isinstance(config, PreferenceConfig):
            launch_preference._prepare(config, mock.MagicMock())
        elif isinstance(config, HeadConfig):
            launch_head.load_tokenizer(config, config.model.source)
        elif isinstance(config, SupervisedConfig):
            launch_supervised._prepare(config, mock.MagicMock())
        else:
            reward_model.load_tokenizer(config.model.source, config.model.special_tokens_in_text)
    return [call.args[1] for call in told.call_args_list]


def reserved(config: Any) -> Any:
    """The cluster and the actor that the run asks for first: address, processes, threads, GPUs."""

    class Cluster:
        def __init__(self, address: str, *, processes: int) -> None:
            self.ray, self.asked = None, [address, processes]

        def actor(self, cls: type, *, threads: int, gpus: float, env: Any = None) -> Any:
            raise _SeenError([*self.asked, cls.__name__, threads, gpus])

    with mock.patch.object(ray_pool, "Cluster", Cluster), mock.patch.object(processes, "Cluster", Cluster):
        try:
            if isinstance(config, PreferenceConfig):
                folder = config.model.source
                make = make_preference_learner(config, folder, max_length=64, start=None, reference=None)
            elif isinstance(config, SupervisedConfig):
                make = make_supervised_learner(config, config.model.source, start=None)
            elif config.learner.processes:
                make = make_learner(config, config.model.source, warm_start=None, reference=None)
            else:
                make = make_pool(config, config.model.source)
        except _SeenError as seen:
            return seen.args
        return type(make).__name__


# RL


def learnt(config: RunConfig) -> Any:
    """The learner's whole state after two steps on made-up samples."""
    with closing(learner(config)) as made:
        for step in range(2):
            batch = made.annotate(_batch(step))
            for part in minibatches(batch, config.updates_per_step):
                made.update(part)
        tensors, numbers = made.state()
        return _digest(tensors), numbers


def learnt_of_turns(config: RunConfig) -> Any:
    """What the learner makes of two episodes, whose actions were worth something else than the whole."""
    group = made_up_group([3.0, 1.0])
    scores = (Score(value=3.0, turns=(0.0, 3.0)), Score(value=1.0, turns=(1.0, 0.0)))
    halves = [replace(t, turns=(t.turns[0], replace(t.turns[0], prompt_ids=()))) for t in group.trajectories]
    episodes = tuple(replace(t, outcome=score) for t, score in zip(halves, scores, strict=True))
    with closing(learner(config)) as made:
        advantages = made.annotate(collate([replace(group, trajectories=episodes)])).advantages
        assert advantages is not None
        return advantages.tolist()


def passes(config: RunConfig) -> Any:
    """Calls of decoder layers in one update, and the bytes that autograd keeps for the backward pass."""
    with closing(learner(config)) as made:
        batch = made.annotate(_batch(0))
        return _counted(lambda: made.update(batch))


def _counted(function: Callable[[], Any]) -> tuple[int, int]:
    """(calls of decoder layers, bytes that autograd keeps outside of them) while the function runs."""
    calls = kept = 0
    call = LlamaDecoderLayer.__call__

    def counting(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(self, *arguments, **named)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with (
        mock.patch.object(LlamaDecoderLayer, "__call__", counting),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        function()
    return calls, kept


def learner(config: RunConfig) -> Any:
    """The learner that a run of this config makes."""
    source = reference_source(config.reference)
    return make_learner(config, resolve_model(config), warm_start=start_tensors(config), reference=source)


def _batch(step: int) -> Any:
    """Four groups, with long and short, truncated and whole samples."""
    return collate(
        [
            made_up_group([1.0, 0.0, 0.25, 2.0], task_id=f"a{step}", lengths=[3, 1, 5, 8], prompt_length=4),
            made_up_group([0.5, 0.75], task_id=f"b{step}", lengths=[2, 8], finish_reason="length"),
            made_up_group([0.0, 1.0, 0.0, 1.0], task_id=f"c{step}", lengths=[1, 2, 4, 4]),
            made_up_group([3.0, 1.0], task_id=f"d{step}", lengths=[6, 3]),
        ]
    )


def tasks(config: RunConfig) -> Any:
    """The tasks that are left once the prompts were measured, or why not."""
    environment = loading.load(config.environment)
    try:
        fitted, _ = fit(config, environment, config.model.source)
    except ValueError as error:
        return str(error)
    return [task.id for task in (*fitted.train, *fitted.heldout)]


class _Pool:
    """Notes what is submitted, and answers with groups that have no signal."""

    busy_s = 0.0

    def __init__(self) -> None:
        self.submitted: list[Chunk] = []

    def publish(self, adapter: Adapter) -> None: ...

    def rest(self) -> None: ...

    def submit(self, chunks: Sequence[Chunk]) -> SimpleNamespace:
        self.submitted += chunks
        groups = [made_up_group([1.0, 1.0], task_id=task.id) for chunk in chunks for task in chunk.tasks]
        return SimpleNamespace(collect=lambda on_chunk=None: groups)

    def run(self, chunks: Sequence[Chunk], on_chunk: Any = None) -> list[Group]:
        raise _SeenError(_plain(chunks))


def _plain(chunks: Sequence[Chunk]) -> Any:
    return [(c.step, c.version, c.params, [task.id for task in c.tasks], [c.seeds(t) for t in c.tasks]) for c in chunks]


def requested(config: RunConfig) -> Any:
    """What the first step asks for."""
    return _plain(requested_chunks(config))


def requested_chunks(config: RunConfig) -> list[Chunk]:
    """The chunks of rollouts that the first step asks for, refills among them."""
    pool, run = _Pool(), SimpleNamespace(config=config, event=print, write_rollouts=print)
    scorer: Any = SimpleNamespace(score=lambda groups, **_: list(groups), stats=ScoringStats())
    view: Any = SimpleNamespace(rollout=None)
    environment = loading.load(config.environment)
    tasks = TaskChoice(config, environment.train)
    rollouts = StepRollouts(run, pool, scorer, tasks, start=0, view=view)  # type: ignore[arg-type]
    rollouts.publish(Adapter(version=0, hash="", tensors={}))
    rollouts.submit_ahead()
    if not config.algorithm.needs_greedy:  # whose answers would have to be stored
        rollouts.collect(1, mock.MagicMock())
    return pool.submitted


def evaluated(config: RunConfig) -> Any:
    """The chunks that an evaluation asks for."""
    heldout = loading.load(config.environment).heldout
    try:
        answer_heldout(config, _Pool(), mock.MagicMock(), heldout, version=-1)  # type: ignore[arg-type]
    except _SeenError as seen:
        return seen.args
    raise AssertionError("nothing was generated")


def evaluated_sets(config: RunConfig) -> list[Any]:
    """The chunks that the evaluation sets ask for."""
    return [evaluated(config.for_set(each)) for each in config.evaluations]


def judged_by(config: RunConfig) -> list[str]:
    """The rewards or parts that the policy is judged by."""
    return [headline(config), *(headline(config.for_set(each)) for each in config.evaluations)]


def decided(config: RunConfig) -> str:
    """The verdict on a run in which 10 of 100 held-out tasks were won."""
    sides = [{f"t{i}": [float(i < solved)] for i in range(100)} for solved in (20, 30)]
    numbers = {"adapter_version": 0, "adapter_hash": "", "metric": "m", "failed": 0, "length": 1.0, "truncated": 0.0}
    evals = [
        Evaluation(name=name, step=step, accuracy=mean_interval(side), by_task=side, **numbers)  # type: ignore[arg-type]
        for (name, step), side in zip((("base", 0), ("step-000001", 1)), sides, strict=True)
    ]
    return judge(config.model_dump(), [], evals).kind


def scored(config: RunConfig) -> Any:
    """The outcome of a made-up trajectory."""
    return scored_together(config, count=1)[0]


def scored_together(config: RunConfig, count: int = 3) -> list[Any]:
    """The outcomes of a made-up group."""
    group = made_up_group([0.0] * count)
    trajectories = tuple(replace(t, text="aba", outcome=None) for t in group.trajectories)
    with closing(make_scorer(config, loading.load(config.environment), log_dir=None)) as scorer:
        [scored_group] = scorer.score([replace(group, trajectories=trajectories)])
    outcomes = [trajectory.outcome for trajectory in scored_group.trajectories]
    return [("failed", o.kind) if isinstance(o, Failed) else o for o in outcomes]


def starts(config: RunConfig) -> bool:
    """Whether a run starts with these rewards."""
    environment = loading.load(config.environment)
    with closing(make_scorer(config, environment, log_dir=None)) as scorer:
        return not _raises(ValueError, lambda: reward_remarks(config, environment, scorer))


def stops_on_failures(config: RunConfig) -> bool:
    """Whether a step with one failed sample of four stops the run."""
    group = made_up_group([1.0, 0.0, 0.5, Failed(kind="error", message="m", reproduce="r")])
    run: Any = SimpleNamespace(config=config, event=mock.Mock(), write_rollouts=mock.Mock(), path=Path())
    return _raises(RuntimeError, lambda: refuse_failures(run, 1, [group]))


def diverged(config: RunConfig) -> Any:
    """What is told of two steps far from the start, without entropy and updates, and which of them stops the run."""
    run: Any = mock.MagicMock(config=config, path=Path("nowhere"))
    guards, stopped = Guards(run, mock.MagicMock(), start=0), None
    numbers = {"policy/updates": 0.0, "policy/kl_ref": 8.0, "policy/entropy": 0.001}
    for step in (1, 2):
        try:
            guards.check(step, numbers, Adapter(version=step, hash="", tensors={}))
        except RuntimeError:
            stopped = stopped or step
    return sorted(call.args[1].split()[1] for call in run.event.call_args_list), run.log.call_args_list, stopped


def stops_on_truncation(config: RunConfig) -> bool:
    """Whether 25 steps whose completions are all cut stop the run."""
    with tempfile.TemporaryDirectory() as folder:
        lines = (json.dumps({"step": step, "rollout/truncated": 1.0, "reward/mean": 0.5}) for step in range(1, 26))
        (Path(folder) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        run: Any = mock.MagicMock(config=config, path=Path(folder))
        run.told.return_value = ()
        watch = AlarmWatch(run, mock.MagicMock())
        watch.look(20)
        return _raises(RuntimeError, lambda: watch.look(25))


def stops_on_mismatch(config: RunConfig) -> bool:
    """Whether a difference of 0.3 nats between engine and learner stops the run."""
    return _raises(RuntimeError, lambda: refuse_mismatch(config, 1, 0.3))


def engine(config: RunConfig) -> Any:
    """The engine, or why there is none."""
    try:
        return type(make_engine(config, config.model.source, chat.load_tokenizer(config.model.source))).__name__
    except ValueError as error:
        return str(error)


def warm_start(config: RunConfig) -> Any:
    """The adapter of the SFT stage."""
    losses: list[float] = []
    demonstrations = loading.load(config.environment).demonstrations
    made = train_sft(config, config.model.source, demonstrations, lambda done, total, loss: losses.append(loss))
    return _digest(made), losses


def files(config: RunConfig) -> list[str]:
    """What a whole run leaves behind."""
    with mock.patch.object(launch, "summarize", return_value={}):
        launch.train(config, restart=True)
    folders = ("evals", "evals/sets/*", "adapters", "checkpoints")
    return sorted(str(path.relative_to(config.run_dir)) for f in folders for path in config.run_dir.glob(f"{f}/*"))


class _LostError(Exception):
    """A worker is gone."""


class _Actor:
    """A rollout worker in threads: its chunk t3 gets into trouble the first time, see `supervised`."""

    def __init__(self, threads: ThreadPoolExecutor, trouble: str) -> None:
        self.threads, self.trouble = threads, trouble
        self.log: list[tuple[str, int]] = []
        self.published = threading.Event()

    def __getattr__(self, name: str) -> Any:
        call = getattr(type(self), f"do_{name}")
        submit = lambda *arguments: self.threads.submit(call, self, *arguments)  # noqa: E731
        return SimpleNamespace(remote=lambda *arguments: SimpleNamespace(future=lambda: submit(*arguments)))

    def do_where(self) -> tuple[int, str]:
        return 1, "node"

    def do_load(self, *arguments: Any) -> None: ...

    def do_load_adapter(self, adapter: Adapter) -> int:
        return adapter.version

    def do_run_chunk(self, chunk: Chunk) -> Any:
        [task] = chunk.tasks
        is_first = task.id not in [name for name, _ in self.log]
        self.log.append((task.id, chunk.version))
        if task.id == "t3" and is_first:
            if self.trouble == "die":
                raise _LostError("killed")
            time.sleep(0.4 if self.trouble == "sleep" else 0)
        if self.trouble == "publish":
            self.published.wait(10)
        return SimpleNamespace(groups=[made_up_group([1.0], task_id=task.id)], rss_mb=1.0, slow_paths=())


def supervised(config: RunConfig) -> Any:
    """What the supervisor of rollout workers does with four chunks, one of which gets into trouble.

    As `environment.args.trouble` says: its worker dies (`die`), it takes 0.4 s (`sleep`), or another adapter is
    published while the first chunk runs (`publish`).
    """
    errors = SimpleNamespace(RayError=_LostError, RayTaskError=KeyError, OutOfMemoryError=MemoryError)
    ray = SimpleNamespace(exceptions=errors, kill=lambda actor: None, put=lambda thing: thing)
    with ThreadPoolExecutor(8) as threads, mock.patch.object(ray_pool, "Cluster") as cluster:
        actor = _Actor(threads, config.environment.args["trouble"])
        cluster.return_value.ray = ray
        cluster.return_value.actor.return_value.remote.return_value = actor
        with closing(ray_pool.RayPool(config, "")) as pool:
            pool.publish(Adapter(version=0, hash="", tensors={}))
            pending = pool.submit([_chunk(f"t{index}") for index in range(4)])
            if actor.trouble == "publish":
                while not actor.log:
                    time.sleep(0.001)
                pool.publish(Adapter(version=1, hash="", tensors={}))
                actor.published.set()
            try:
                groups = pending.collect()
            except RuntimeError:
                return "stopped"
            return len(groups), sorted(actor.log)


def _chunk(name: str) -> Chunk:
    from rlft.rollout.chunk import make_chunks
    from rlft.types import SamplingParams

    task = Task(id=name, messages=({"role": "user", "content": name},))
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=4)
    [chunk] = make_chunks(
        [task],
        tasks_per_chunk=1,
        samples_per_task=1,
        params=params,
        run_seed=0,
        stream="train",
        step=1,
        version=0,
    )
    return chunk


# Preferences


def rows(config: PreferenceConfig | RewardModelConfig | SupervisedConfig) -> Any:
    """What is trained and measured on, or why not."""
    asked: list[Any] = []

    def load_dataset(source: str, subset: str | None, *, split: str) -> Any:
        asked.append((subset, split))
        lines = Path(source, "rows.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    tokenizer = chat.load_tokenizer(config.model.source, for_chat=False)
    ends = END if isinstance(config, PreferenceConfig) else None
    with mock.patch("datasets.load_dataset", load_dataset):
        try:
            if isinstance(config, SupervisedConfig):
                found = supervised_data.load(config.data, tokenizer, END, context=256)
                return len(found.train), len(found.heldout), found.dropped, found.max_length, found.hash, asked
            data = preference_data.load(config.data, tokenizer, ends, context=256, paired=True)
        except ValueError as error:
            return str(error)
    return len(data.train), len(data.heldout), data.dropped, data.max_length, data.hash, asked


def compared(config: PreferenceConfig) -> Any:
    """The learner's whole state after all updates, and how many there were."""
    tokenizer = chat.load_tokenizer(config.model.source, for_chat=False)
    data = preference_data.load(config.data, tokenizer, END, context=256, paired=config.preference.is_paired)
    source, steps = reference_source(config.reference), []
    made = make_preference_learner(
        config,
        config.model.source,
        max_length=data.max_length,
        start=start_tensors(config),
        reference=source,
    )
    with closing(made):
        run: Any = SimpleNamespace(config=config, log=mock.Mock(), skip=mock.Mock())
        train_dpo(run, made, data, start=0, view=mock.MagicMock(), standing=Standing(0), after_update=steps.append)
        return _digest(made.state()[0]), steps


def compared_passes(config: PreferenceConfig) -> Any:
    """Calls of decoder layers in a whole training, and the bytes that autograd keeps for the backward passes."""
    return _counted(lambda: compared(config))


def preference_files(config: PreferenceConfig) -> list[str]:
    """What a whole preference run leaves behind."""
    with mock.patch.object(launch_preference, "_summarize", return_value={}):
        launch_preference.train(config, restart=True)
    folders = ("reference", "adapters", "checkpoints")
    return sorted(f"{f} {len(list((config.run_dir / f).glob('*')))}" for f in folders)


# Supervised runs


def taught(config: SupervisedConfig) -> Any:
    """The learner's whole state after all updates, and how many there were."""
    tokenizer = chat.load_tokenizer(config.model.source, for_chat=False)
    data = supervised_data.load(config.data, tokenizer, END, context=256)
    made = make_supervised_learner(config, config.model.source, start=start_tensors(config))
    with closing(made):
        run: Any = SimpleNamespace(config=config, log=mock.Mock(), skip=mock.Mock())
        steps = train_supervised(
            run,
            made,
            data,
            start=0,
            view=mock.MagicMock(),
            standing=Standing(0),
            after_update=lambda step: False,
        )
        return _digest(made.state()[0]), steps


def taught_passes(config: SupervisedConfig) -> Any:
    """Calls of decoder layers in a whole training, and the bytes that autograd keeps for the backward passes."""
    return _counted(lambda: taught(config))


def supervised_files(config: SupervisedConfig) -> list[str]:
    """What a whole supervised run leaves behind."""
    with mock.patch.object(launch_supervised, "_summarize", return_value={}):
        launch_supervised.train(config, restart=True)
    folders = ("adapters", "checkpoints", "evals", "evals/sets")
    return sorted(f"{f} {len(list((config.run_dir / f).glob('*')))}" for f in folders)


# Reward models


def rewarding(config: RewardModelConfig) -> Any:
    """The reward model after its training, and how many updates it took; or why it cannot be."""
    updates: list[int] = []
    tokenizer = reward_model.load_tokenizer(config.model.source, config.model.special_tokens_in_text)
    data = preference_data.load(config.data, tokenizer, None, context=256, paired=True)
    model = reward_model.load_model(config, config.model.source, tokenizer)
    reward_model.fit(config, model, tokenizer, data.train, lambda done, total, metrics: updates.append(done))
    return _digest(model.state_dict()), updates


def threads_set(config: RewardModelConfig) -> Any:
    """Threads that torch is told to use."""
    with (
        mock.patch.object(torch, "set_num_threads") as told,
        mock.patch.object(launch_reward_model, "resolve_model", side_effect=_SeenError),
    ):
        assert _raises(_SeenError, lambda: launch_reward_model.train(config))
    return told.call_args_list


# Heads


def heading(config: HeadConfig) -> Any:
    """The head after a whole run, the trunk below it, and what was measured."""
    with mock.patch.dict(os.environ, RLFT_CACHE=f"{config.output_dir}-cache"):  # features of tiny models stay out
        summary = launch_head.train(config, restart=True)
    folder = config.run_dir / "head"
    return [_digest(load_file(folder / name)) for name in ("head.safetensors", "model.safetensors")], summary["epochs"]


def labelled(config: HeadConfig) -> Any:
    """What a head is trained and measured on, or why not."""
    asked: list[Any] = []

    def load_dataset(source: str, subset: str | None, *, split: str) -> Any:
        asked.append((subset, split))
        lines = Path(source, "rows.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    tokenizer = chat.load_tokenizer(config.model.source, for_chat=False)
    with mock.patch("datasets.load_dataset", load_dataset):
        try:
            data = head_data.load(config, tokenizer, context=256)
        except ValueError as error:
            return str(error)
    return asked, data


def head_threads(config: HeadConfig) -> Any:
    """Threads that torch is told to use."""
    with (
        mock.patch.object(torch, "set_num_threads") as told,
        mock.patch.object(launch_head, "resolve_model", side_effect=_SeenError),
    ):
        assert _raises(_SeenError, lambda: launch_head.train(config))
    return told.call_args_list


def _raises(kind: type[Exception], function: Callable[[], Any]) -> bool:
    try:
        function()
    except kind:
        return True
    return False


def _digest(tensors: Any) -> str:
    return hashlib.sha256(save({name: t.detach().contiguous().clone() for name, t in tensors.items()})).hexdigest()


def letters_with(trouble: str = "", num_train: int = 8, long: int = 0) -> Any:
    """The environment of `tests.fakes`, with a task whose prompt has `long` letters more."""
    from tests.fakes import letters

    environment = letters(num_train)
    if not long:
        return environment
    message = {"role": "user", "content": "x" * long}
    return replace(environment, train=[*environment.train, Task(id="long", messages=(message,), answer="a")])  # type: ignore[arg-type]


def other_letters(first: int = 3) -> Any:
    """The environment of `tests.fakes`, whose held-out tasks begin at the one of this number."""
    environment = letters_with()
    return replace(environment, heldout=environment.heldout[first:])
