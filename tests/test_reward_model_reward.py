"""A trained reward model as a reward: a function with a base of its own, or one more role on the learner's base."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards.reward_model import reward_model
from rlft.config import RunConfig
from rlft.learner import reward_model as folders
from rlft.learner.batch import collate
from rlft.learner.rl import Learner
from rlft.reward.outcomes import read_many
from rlft.reward.scoring import Scorer
from rlft.train.reward_model import launch as launch_reward
from rlft.train.rl import launch
from rlft.train.rl.measure import measure
from rlft.types import Abstain, Failed, Group, Message, RewardSpec, Score, Task, Trajectory
from tests.fakes import made_up_group, read_metrics, read_rollouts, save_tiny_model, tiny_config
from tests.fakes_reward import reward_model_config

pytestmark = pytest.mark.timeout(120)

FUNCTION = "rewards.reward_model:reward_model"
REPLIES = ("", "A", "BBBB", "CAfé P", "B A", "B B", "A" * 40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Path]:
    """Folder of a reward model of this adapter kind, trained once."""
    folder = tmp_path_factory.mktemp("trained")

    def get(kind: str) -> Path:
        config = reward_model_config(folder, tiny_model, name=kind, adapter={"kind": kind}, epochs=0.5)
        if not config.run_dir.exists():
            launch_reward.train(config)
        return config.run_dir / "reward-model"

    return get


@pytest.fixture(scope="module")
def rm(trained: Callable[[str], Path]) -> Path:
    """Folder of a LoRA reward model."""
    return trained("lora")


def groups_of(prompts: int = 2) -> list[Group]:
    """Every reply to each of the prompts."""
    made = []
    for index in range(prompts):
        task = Task(id=f"t{index}", messages=({"role": "user", "content": "q" * (1 + 3 * index)},))
        trajectories = tuple(
            Trajectory(task=task, sample_index=i, seed=i, turns=(), text=text) for i, text in enumerate(REPLIES)
        )
        made.append(Group(task=task, trajectories=trajectories))
    return made


def called(groups: list[Group], folder: Path, **options: Any) -> list[list[float]]:
    """The reward function on every group."""
    return [
        reward_model(
            prompts=[[dict(message) for message in group.task.messages] for _ in group.trajectories],  # type: ignore[misc]
            completions=[[{"role": "assistant", "content": t.text}] for t in group.trajectories],
            folder=str(folder),
            **options,
        )
        for group in groups
    ]


def plain(groups: list[Group], model: Path, folder: Path) -> list[list[float]]:
    """As anyone would score with transformers and peft alone, one conversation at a time."""
    if (folder / "adapter_config.json").exists():
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        scorer: Any = PeftModel.from_pretrained(base, folder).eval()
    else:
        scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = []
    for group in groups:
        result.append([])
        for t in group.trajectories:
            messages: list[Message] = [*group.task.messages, {"role": "assistant", "content": t.text}]
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_tensors="pt", return_dict=False)
            with torch.no_grad():
                result[-1].append(float(scorer(input_ids=ids).logits[0, 0]))
    return result


def with_reward(model: Path, *rewards: dict[str, Any], **changes: Any) -> RunConfig:
    return tiny_config(model, rewards=list(rewards), **changes)


def on_learner(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"path": f"adapter:{folder}", **changes}


# The same scores


@pytest.mark.parametrize("kind", ["lora", "dora", "head", "full"])
def test_all_ways_of_scoring_agree(tiny_model: Path, trained: Callable[[str], Path], kind: str) -> None:
    folder, groups = trained(kind), groups_of()
    expected = plain(groups, tiny_model, folder)
    assert len({round(score, 4) for group in expected for score in group}) > 8
    for scores, others in zip(called(groups, folder), expected, strict=True):
        assert scores == pytest.approx(others, abs=1e-5)
    if kind != "full":
        config = with_reward(tiny_model, on_learner(folder), learner={"tokens_per_microbatch": 60})
        (scored,) = Learner(config, tiny_model).scores(groups)
        for scores, others in zip(scored, expected, strict=True):
            assert scores == pytest.approx(others, abs=1e-5)


@pytest.mark.parametrize("policy", ["dora", {"target_modules": ["q_proj"], "rank": 2}])
def test_the_policy_may_be_another_kind_of_adapter(tiny_model: Path, rm: Path, policy: str | dict[str, Any]) -> None:
    adapter = {"kind": policy} if isinstance(policy, str) else policy
    groups = groups_of()
    (scored,) = Learner(with_reward(tiny_model, on_learner(rm), adapter=adapter), tiny_model).scores(groups)
    for scores, others in zip(scored, called(groups, rm), strict=True):
        assert scores == pytest.approx(others, abs=1e-5)


def test_normalised_scores_of_held_out_pairs_have_mean_0_and_deviation_1(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, data={"heldout": 0.5}, epochs=0.1)
    launch_reward.train(config)
    folder = config.run_dir / "reward-model"
    facts = json.loads((folder / "reward_model.json").read_text())
    groups = groups_of()
    raw, normalised = called(groups, folder), called(groups, folder, normalize=True)
    assert normalised[1] == pytest.approx([(x - facts["mean"]) / facts["std"] for x in raw[1]])
    learner = Learner(with_reward(tiny_model, on_learner(folder, args={"normalize": True})), tiny_model)
    assert learner.scores(groups)[0][1] == pytest.approx(normalised[1], abs=1e-4)
    held_out = _heldout_scores(config, folder)
    assert sum(held_out) / len(held_out) == pytest.approx(0, abs=1e-4)
    assert sum(score**2 for score in held_out) / len(held_out) == pytest.approx(1, abs=1e-3)


def _heldout_scores(config: Any, folder: Path) -> list[float]:
    from rlft.train.preference import data as preference_data
    from rlft.train.reward_model import train as train_reward

    tokenizer = train_reward.load_tokenizer(config.model.source)
    data = preference_data.load(config.data, tokenizer, None, context=256, paired=True)
    ids = {example.completions[0] for example in data.heldout}
    rows = [json.loads(line) for line in Path(config.data.source).read_text().splitlines()]
    scores: list[float] = []
    for row in rows:
        if tuple(tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=False)) in ids:
            pair = [row["chosen"], row["rejected"]]
            scored = reward_model([row["prompt"]] * 2, pair, folder=str(folder), normalize=True)
            scores += [score for score in scored if not isinstance(score, ValueError)]
    assert len(scores) == 2 * len(data.heldout)
    return scores


# Runs


def run(config: RunConfig, folder: Path, name: str) -> Path:
    config = config.model_copy(update={"name": name, "output_dir": str(folder)})
    launch.train(RunConfig.model_validate(config.model_dump()))
    return folder / name


def test_a_task_whose_samples_all_failed_leaves_the_others_their_scores(tiny_model: Path, rm: Path) -> None:
    learner = Learner(with_reward(tiny_model, on_learner(rm)), tiny_model)
    groups = groups_of()
    empty = replace(groups[0], trajectories=())
    (alone,) = learner.scores(groups)
    assert learner.scores([empty, *groups[:1], empty, *groups[1:]]) == [[[], *alone[:1], [], *alone[1:]]]
    assert learner.scores([empty, empty]) == [[[], []]]


def test_a_run_has_the_same_rewards_either_way(tmp_path: Path, tiny_model: Path, rm: Path) -> None:
    shared = {"steps": 2, "learner": {"lr": 1e-2}, "evaluation": {"tasks": 4}}
    observed = {"path": "tests.fakes:share_of_a", "weight": 0}
    function = with_reward(
        tiny_model, {"path": FUNCTION, "name": "rm", "args": {"folder": str(rm)}}, observed, **shared
    )
    adapter = with_reward(tiny_model, on_learner(rm, name="rm"), observed, **shared)
    one, other = run(function, tmp_path, "function"), run(adapter, tmp_path, "adapter")
    for row, expected in zip(read_metrics(other), read_metrics(one), strict=True):
        assert row.keys() == expected.keys()
        assert {"reward/part/rm", "reward/part/share_of_a"} <= row.keys()
        assert row["reward/std"] > 0
        for name in ("reward/mean", "reward/part/rm", "reward/part/share_of_a"):
            assert row[name] == pytest.approx(expected[name], abs=1e-4), name
    for row in read_rollouts(other, 1):
        parts = json.loads(row["parts"])
        assert row["reward"] == pytest.approx(parts["rm"])
    evaluations = [json.loads((path / "evals" / "base.json").read_text()) for path in (one, other)]
    assert evaluations[0]["metric"] == evaluations[1]["metric"] == "rm"
    assert evaluations[0]["accuracy"]["mean"] == pytest.approx(evaluations[1]["accuracy"]["mean"], abs=1e-5)
    hashes = json.loads((other / "provenance.json").read_text())["sha256"]
    assert hashes[f"adapter:{rm}"] == folders.folder_hash(str(rm))


def test_a_run_may_have_no_other_reward(tmp_path: Path, tiny_model: Path, rm: Path) -> None:
    config = with_reward(
        tiny_model, on_learner(rm), steps=2, scoring={"workers": 1}, evaluation={"tasks": 2}, checkpoint={"every": 1}
    )
    path = run(config, tmp_path, "only")
    assert all(row["reward/part/reward-model"] == pytest.approx(row["reward/mean"]) for row in read_metrics(path))
    expected = read_metrics(path)
    shutil.rmtree(path / "checkpoints" / "step-000002")
    (path / "summary.json").unlink()
    launch.resume(path)
    assert read_metrics(path) == expected
    measured = measure(RunConfig.model_validate({**config.model_dump(), "name": "m"}), path / "adapters/v000002")
    last = json.loads((path / "evals" / "step-000002.json").read_text())
    assert measured.accuracy.as_dict() == last["accuracy"]


def test_the_function_runs_in_scoring_processes(tiny_model: Path, rm: Path) -> None:
    spec = RewardSpec(path=FUNCTION, weight=1.0, args={"folder": str(rm)})
    groups = groups_of()
    with Scorer([spec], workers=1, deadline_s=30, log_dir=None) as scorer:
        scored = scorer.score(groups)
    assert [group.scores for group in scored] == [pytest.approx(scores, abs=1e-5) for scores in called(groups, rm)]


# Four roles


def test_four_roles_have_one_base(tiny_model: Path, rm: Path) -> None:
    config = with_reward(
        tiny_model, on_learner(rm), on_learner(rm, name="twice", weight=0), algorithm={"preset": "ppo", "kl_coef": 0.1}
    )
    generator = torch.Generator().manual_seed(0)
    learner = Learner(config, tiny_model)
    start = {k: torch.randn(t.shape, generator=generator) * 0.01 for k, t in learner.adapter(0).tensors.items()}
    learner = Learner(config, tiny_model, warm_start=start)
    roles = learner.roles
    assert roles.reference
    assert roles.critic
    assert {role.model for role in (roles.policy, roles.reference, roles.critic)} == {roles.model}
    assert {model.role.model for model in roles.reward_models} == {roles.model}
    assert set(roles.model.peft_config) == {"policy", "reference", "critic", "reward-0", "reward-1"}  # type: ignore[arg-type]
    base = {name: p for name, p in roles.model.named_parameters() if ".lora_" not in name}
    weights = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).model
    assert sum(p.numel() for p in base.values()) == sum(p.numel() for p in weights.parameters())
    assert len({p.data_ptr() for p in base.values()}) == len(base)


def test_training_the_policy_leaves_the_reward_model_alone(tiny_model: Path, rm: Path) -> None:
    config = with_reward(tiny_model, on_learner(rm), algorithm={"preset": "ppo", "kl_coef": 0.1}, learner={"lr": 1e-2})
    learner = Learner(config, tiny_model)
    own = {n: p for n, p in learner.roles.model.named_parameters() if ".reward-0." in n}
    assert own
    before, policy = {n: p.detach().clone() for n, p in own.items()}, learner.adapter(0)
    groups = groups_of()
    scores = learner.scores(groups)
    for _ in range(2):
        batch = learner.annotate(collate([made_up_group([0.0, 1.0, 0.5], task_id="x", vocab=200)]))
        learner.update(batch)
        assert learner.scores(groups) == scores  # between updates, as in a run
    assert learner.adapter(0).hash != policy.hash
    for name, parameter in own.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not any("reward-0" in name for name in learner.state()[0])
    optimized = {id(p) for group in learner.roles.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in own.values()}


# Outcomes


def score(*specs: RewardSpec, values: list[float], **on: float) -> list[Any]:
    """Outcomes of one group under functions, and under a learner that gives `values`."""
    rewards = [RewardSpec(path="adapter:x", name=name, weight=weight) for name, weight in on.items()]
    scores = lambda groups: [[values for _ in groups] for _ in rewards]  # noqa: E731
    scorer = Scorer([*specs, *rewards], workers=0, deadline_s=1, log_dir=None, learner=scores)
    task = Task(id="t", messages=({"role": "user", "content": "q"},), answer="a")
    trajectories = tuple(Trajectory(task=task, sample_index=i, seed=i, turns=(), text="ab") for i in range(len(values)))
    (group,) = scorer.score([Group(task=task, trajectories=trajectories)])
    return [trajectory.outcome for trajectory in group.trajectories]


HALF = "tests.fakes:share_of_a"  # 0.5 for "ab"


def test_scores_enter_the_weighted_sum() -> None:
    outcomes = score(RewardSpec(path=HALF, weight=2.0), values=[3.0, -1.0], rm=0.5)
    assert outcomes == [
        Score(value=2 * 0.5 + 0.5 * 3.0, parts={"share_of_a": 0.5, "rm": 3.0}),
        Score(value=2 * 0.5 - 0.5 * 1.0, parts={"share_of_a": 0.5, "rm": -1.0}),
    ]


def test_either_may_only_observe() -> None:
    parts = {"share_of_a": 0.5, "rm": 3.0}
    assert score(RewardSpec(path=HALF, weight=0.0), values=[3.0], rm=1.0) == [Score(value=3.0, parts=parts)]
    assert score(RewardSpec(path=HALF, weight=1.0), values=[3.0], rm=0.0) == [Score(value=0.5, parts=parts)]
    with pytest.raises(ValueError, match="no reward has a weight other than 0"):
        score(RewardSpec(path=HALF, weight=0.0), values=[3.0], rm=0.0)
    with pytest.raises(ValueError, match="two rewards are named 'share_of_a'"):
        score(RewardSpec(path=HALF, weight=1.0), values=[3.0], share_of_a=1.0)


def breaks(completion: str) -> float:
    raise RuntimeError("no")


def test_a_failed_sample_stays_failed() -> None:
    (outcome,) = score(RewardSpec(path=f"{__file__}:breaks", weight=1.0), values=[3.0], rm=1.0)
    assert isinstance(outcome, Failed)


def abstains(completion: str) -> None:
    return None


def test_an_abstention_contributes_nothing() -> None:
    spec = RewardSpec(path=f"{__file__}:abstains", weight=1.0)
    assert score(spec, values=[3.0], rm=2.0) == [Score(value=6.0, parts={"rm": 3.0})]
    (outcome,) = score(spec, values=[3.0], rm=0.0)
    assert isinstance(outcome, Abstain)


def test_a_score_that_is_not_finite_fails_with_a_program(rm: Path) -> None:
    (outcome,) = score(values=[math.nan], rm=1.0)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "not_finite"
    assert "load('rewards.reward_model:reward_model')(prompts=[[{'role': 'user', 'content': 'q'}]]" in outcome.reproduce
    assert "folder='x'" in outcome.reproduce


# What is refused


def refused(config: RunConfig, model: Path) -> str:
    with pytest.raises(ValueError) as caught:
        folders.check(config, str(model))
    return str(caught.value)


def test_folders_that_are_no_reward_model_of_this_base(
    tmp_path: Path, tiny_model: Path, trained: Callable[[str], Path], finished_run: Path
) -> None:
    def message(folder: Path, model: Path = tiny_model, **changes: Any) -> str:
        return refused(with_reward(model, on_learner(folder, **changes)), model)

    assert "there is no such folder" in message(tmp_path / "none")
    assert "there is no adapter in this folder" in message(trained("full"))
    assert FUNCTION in message(trained("full"))
    policy = sorted((finished_run / "adapters").glob("v*"))[-1]
    assert "holds an adapter for CAUSAL_LM, not a reward model" in message(policy)
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert f"its base is {tiny_model}, but model.source is {other}" in message(trained("lora"), other)
    copy = shutil.copytree(trained("lora"), tmp_path / "copy")
    (copy / "reward_model.json").unlink()
    assert "args.normalize needs" in message(copy, args={"normalize": True})


def test_the_same_base_under_another_name_is_accepted(tmp_path: Path, tiny_model: Path, rm: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_model)
    folders.check(with_reward(tmp_path / "link", on_learner(rm)), str(tmp_path / "link"))
    # The source as it is written, resolved to another folder: another machine's cache.
    folders.check(with_reward(tiny_model, on_learner(rm)), "/elsewhere")


def test_a_run_is_refused_before_it_exists(tmp_path: Path, tiny_model: Path) -> None:
    config = with_reward(tiny_model, on_learner(tmp_path / "none"), output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="make one with `rlft reward-model`"):
        launch.train(config)
    assert not config.run_dir.exists()


def test_configs_that_make_no_sense(tiny_model: Path, rm: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.kind: full has none"):
        with_reward(tiny_model, on_learner(rm), adapter={"kind": "full"})
    with pytest.raises(ValueError, match="can only be `normalize`, got folder"):
        with_reward(tiny_model, on_learner(rm, args={"folder": "x"}))
    with pytest.raises(ValueError, match="the name 'reward-model' stands twice"):
        with_reward(tiny_model, on_learner(rm), on_learner(rm))


def test_the_function_refuses_other_folders(tmp_path: Path, tiny_model: Path, rm: Path, finished_run: Path) -> None:
    groups = groups_of(1)
    with pytest.raises(ValueError, match=r"no folder .* with a reward model"):
        called(groups, tmp_path / "none")
    with pytest.raises(ValueError, match="neither an adapter nor a model"):
        called(groups, tmp_path)
    with pytest.raises(ValueError, match="it is LlamaForCausalLM"):
        called(groups, tiny_model)
    with pytest.raises(ValueError, match="it is CAUSAL_LM"):
        called(groups, sorted((finished_run / "adapters").glob("v*"))[-1])
    copy = shutil.copytree(rm, tmp_path / "copy")
    (copy / "reward_model.json").unlink()
    with pytest.raises(ValueError, match=r"no reward_model\.json"):
        called(groups, copy, normalize=True)


def test_a_conversation_beyond_the_context_fails_alone(rm: Path) -> None:
    prompts = [[Message(role="user", content="q")]] * 3
    replies = [[Message(role="assistant", content=text)] for text in ("a", "x" * 300, "b")]
    first, long, last = read_many(reward_model(prompts, replies, folder=str(rm)), 3)
    assert isinstance(long, Failed)
    assert long.kind == "error"
    assert re.fullmatch(
        r"ValueError: a conversation of \d+ tokens exceeds the reward model's context of 256", long.message
    )
    alone = reward_model(prompts[:1], replies[:1], folder=str(rm)) + reward_model(
        prompts[:1], replies[2:], folder=str(rm)
    )
    assert [o.value for o in (first, last) if isinstance(o, Score)] == pytest.approx(alone, abs=1e-5)
    (failed,) = read_many(reward_model(prompts[:1], replies[1:2], folder=str(rm)), 1)
    assert isinstance(failed, Failed)


def test_tensors_that_do_not_fit_the_base(tmp_path: Path, tiny_model: Path, rm: Path) -> None:
    copy = shutil.copytree(rm, tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(ValueError, match="do not fit this model"):
        Learner(with_reward(tiny_model, on_learner(copy)), tiny_model)
