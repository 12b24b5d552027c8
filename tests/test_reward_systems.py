"""Other systems' reward functions, unchanged: each written as its own documentation has it, scored as any reward."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.reward.scoring import Scorer
from rlft.reward.systems import SYSTEMS
from rlft.types import Completion, Failed, Group, RewardSpec, Score, Task, Trajectory, Turn

REPLIES = ("It is 4.", "no idea")

TRL = """
def by_length(completions, **kwargs):  # the documentation's first example: plain texts
    return [float(len(completion)) for completion in completions]

def by_messages(completions, solution, **kwargs):
    return [float(solution[i] in completion[0]["content"]) for i, completion in enumerate(completions)]

def first(completion):
    return completion[0]["content"]

def by_helper(prompts, completions, completion_ids, solution, trainer_state, log_metric, **kwargs):
    log_metric("mine", 1.0)
    assert trainer_state.global_step == 0 and prompts[0][0]["role"] == "user" and kwargs["level"] == [3, 3]
    return [float(len(first(c)) + len(ids)) for c, ids in zip(completions, completion_ids)]

def annotated(completions: list[str], prompts: list[str]) -> list[float]:
    return [float(c.endswith(".") and p == "2+2?") for c, p in zip(completions, prompts)]

async def later(completions, **kwargs):
    return [None if c == "no idea" else 1.0 for c in completions]

def get_scaled(factor, offset=0.0):
    def scaled(completions, **kwargs):
        return [len(c) * factor + offset for c in completions]
    return scaled

class Longer:
    def __init__(self, than):
        self.than = than
    def __call__(self, completions, **kwargs):
        return [float(len(c) > self.than) for c in completions]

def needs_trainer(completions, environments):
    return [0.0 for _ in completions]
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    assert data_source == "openai/gsm8k" and extra_info["num_turns"] == 1 and extra_info["index"] == 7
    is_right = ground_truth in solution_str
    return {"score": float(is_right) + bonus, "acc": is_right, "pred": solution_str}

async def compute_later(data_source, solution_str, ground_truth, extra_info):
    return float(ground_truth in solution_str)

def compute_scores(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    return [float(truth in text) for truth, text in zip(ground_truths, solution_strs)]

def judged(data_source, solution_str, ground_truth, extra_info, reward_router_address, reward_model_tokenizer):
    return 0.0

class NaiveRewardManager:
    async def run_single(self, data):
        return {}
"""
OPENRLHF = """
import re

import torch

def reward_func(queries, prompts, labels, **kwargs):
    "<|im_start|>assistant is not in the query"
    assert len(queries) == 1
    reply = queries[0][len(prompts[0]):]
    reward = torch.tensor([float(labels[0] in reply)])
    return {"rewards": reward, "scores": reward / 2, "extra_logs": {"length": torch.tensor([len(reply)])}}

def without(queries, prompts, labels):
    return {"scores": torch.tensor([1.0])}

def splits(queries, prompts, labels):
    return torch.tensor([float(labels[0] in queries[0].split("<|im_start|>assistant")[-1])])

ENDS = ("</s>", "<|end|>")
PATTERN = re.compile(r"<\\|assistant\\|>(.*)")

def reply_of(query):
    for end in ENDS:
        query = query.removesuffix(end)
    return PATTERN.sub("", query)

def by_helper(queries, prompts, labels):
    return torch.tensor([float(labels[0] in reply_of(queries[0]))])

class AgentInstance:
    async def step(self, state_dict, **kwargs):
        return {}
"""
AREAL = """
def reward_fn(prompt, completions, prompt_ids, completion_ids, answer, level, **kwargs):
    assert prompt == "2+2?" and prompt_ids == [1] and len(completion_ids) == 2 and kwargs["data_source"]
    return float(answer in completions) * level

def too_few(prompt, completions):
    return 0.0
"""
SLIME = """
async def custom_rm(args, sample, **kwargs):
    if args.scale is None or sample.status == sample.Status.TRUNCATED:
        return 0.0
    assert sample.metadata["level"] == 3 and len(sample.loss_mask) == sample.response_length == 2
    return {"acc": float(sample.label in sample.response) * args.scale, "seen": 1.0}

async def batched_custom_rm(args, samples):
    longest = max(len(sample.response) for sample in samples)
    return [float(len(sample.response) == longest) for sample in samples]

async def wants_more(args, sample):
    return args.rm_url

async def custom_generate(args, sample, sampling_params):
    return sample
"""
SWIFT = """
class ORM:
    def __init__(self, args=None, **kwargs):
        self.args = args
    def __call__(self, **kwargs):
        raise NotImplementedError

class Overlong(ORM):
    def __init__(self, args=None, **kwargs):
        super().__init__(args)
        self.longest = args.soft_max_length
    def __call__(self, completions, solution, **kwargs):
        ids, messages = kwargs["response_token_ids"], kwargs["messages"]
        assert all(m[-1]["content"] == c for m, c in zip(messages, completions))
        return [float(s in c) - (len(i) > self.longest) for c, s, i in zip(completions, solution, ids)]

class Later(ORM):
    async def __call__(self, completions, **kwargs):
        return [float(len(c)) for c in completions]
"""
TINKER = """
from dataclasses import dataclass

@dataclass
class TextAnswerReward:
    solution: str
    format_coef: float = 0.1
    async def __call__(self, history):
        text = history[-1]["content"]
        return float(self.solution in text) - self.format_coef, {"format": float(text.endswith("."))}

async def short(history):
    return -float(len(history[-1]["content"])), {}

async def bare(history):
    return 1.0
"""
OPEN_INSTRUCT = """
from dataclasses import dataclass

@dataclass
class VerificationResult:
    score: float
    cost: float = 0.0
    reasoning: str = None

class VerifierFunction:
    def __init__(self, name, weight=1.0, verifier_config=None):
        self.name, self.weight, self.verifier_config = name, weight, verifier_config
    async def async_call(self, tokenized_prediction, prediction, label, query=None):
        raise AssertionError("the base class's is the other one in a thread")

class Contains(VerifierFunction):
    def __init__(self, verifier_config=None):
        super().__init__("contains", weight=2.0, verifier_config=verifier_config)
    def __call__(self, tokenized_prediction, prediction, label, query=None, rollout_state=None):
        assert query == "2+2?" and len(tokenized_prediction) == 2
        return VerificationResult(score=float(label in prediction))

@dataclass
class JudgeConfig:
    llm_judge_model: str

class Judge(VerifierFunction):
    def __init__(self, verifier_config):
        super().__init__("judge", verifier_config=verifier_config)
    @classmethod
    def get_config_class(cls):
        return JudgeConfig
    def __call__(self, tokenized_prediction, prediction, label, query):
        raise NotImplementedError
    async def async_call(self, tokenized_prediction, prediction, label, query):
        return VerificationResult(score=float(self.verifier_config.llm_judge_model == "m"), cost=0.5)
"""
VERIFIERS = """
class Rubric:  # as verifiers' own holds its functions
    def __init__(self, funcs, weights=None, parser=None):
        self.funcs, self.weights = funcs, weights or [1.0] * len(funcs)
        self.class_objects = {"parser": parser}

class RubricGroup(Rubric):
    def __init__(self, rubrics):
        super().__init__([])
        self.rubrics = rubrics

class Parser:
    def parse_answer(self, completion):
        return completion[-1].content.split()[-1].strip(".")

async def correct(parser, completion, answer, **kwargs):
    return 1.0 if parser.parse_answer(completion) == answer else 0.0

def short(completion, state, level) -> float:
    assert state["answer"] == "4" and not state["is_truncated"]
    return level / len(completion[-1]["content"])

def longest(completions, answers, **kwargs) -> list[float]:
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [float(length == max(lengths)) for length in lengths]

def wrong_number(completions):
    return [1.0]

rubric = RubricGroup([Rubric([correct, short], [2.0, 0.0], Parser()), Rubric([longest], [0.5])])

def load_rubric(weight):
    return Rubric([correct], [weight], Parser())
"""
VERIFIERS_4 = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    solution: str

class Sum(vf.Task[Data]):
    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        return float(self.data.solution in trace.last_reply)

    @vf.metric
    async def length(self, trace) -> float:
        return float(len(trace.last_reply))

@vf.reward(weight=0.5)
async def plugged(task, trace):
    return {"right": float(task.solution in trace.last_reply), "asked": float(task.prompt == "2+2?")}

async def needs_runtime(task, trace, runtime):
    return 0.0
"""
SOURCES = {
    "verifiers": VERIFIERS,
    "verifiers_4": VERIFIERS_4,
    "trl": TRL,
    "verl": VERL,
    "openrlhf": OPENRLHF,
    "areal": AREAL,
    "slime": SLIME,
    "swift": SWIFT,
    "tinker": TINKER,
    "open_instruct": OPEN_INSTRUCT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rewards")
    for name, source in SOURCES.items():
        (made / f"{name}_style.py").write_text(source, encoding="utf-8")
    return made


def group(replies: Sequence[str] = REPLIES, columns: Mapping[str, Any] | None = None) -> Group:
    task = Task(
        id="t0",
        messages=({"role": "user", "content": "2+2?"},),
        answer="4",
        columns={"solution": "4", "level": 3, "data_source": "openai/gsm8k", "extra_info": {"index": 7}}
        if columns is None
        else columns,
    )
    done = Completion(
        token_ids=(5, 6), logprobs=(-0.5, -0.5), finish_reason="stop", adapter_version=0, adapter_hash="h"
    )
    turns = (Turn(prompt_ids=(1,), completion=done),)
    return Group(
        task=task,
        trajectories=tuple(
            Trajectory(task=task, sample_index=index, seed=0, turns=turns, text=text)
            for index, text in enumerate(replies)
        ),
    )


def score(path: str, args: Mapping[str, Any] | None = None, **how: Any) -> list[Any]:
    """The outcomes of the two replies."""
    spec = RewardSpec(path=path, name="r", args=dict(args or {}))
    groups = [group(**how)]
    with Scorer([spec], workers=0, deadline_s=5, log_dir=None, columns=groups[0].task.columns) as scorer:
        return [trajectory.outcome for trajectory in scorer.score(groups)[0].trajectories]


def values(outcomes: Sequence[Any]) -> list[float | None]:
    assert not any(isinstance(outcome, Failed) for outcome in outcomes), outcomes
    return [outcome.value if isinstance(outcome, Score) else None for outcome in outcomes]


@pytest.mark.parametrize(
    ("path", "args", "expected"),
    [
        ("trl:trl_style.py:by_length", {}, [8.0, 7.0]),
        ("trl:trl_style.py:by_messages", {}, [1.0, 0.0]),
        ("trl:trl_style.py:by_helper", {}, [10.0, 9.0]),
        ("trl:trl_style.py:annotated", {}, [1.0, 0.0]),
        ("trl:trl_style.py:later", {}, [1.0, None]),
        ("trl:trl_style.py:get_scaled", {"factor": 2.0, "offset": 1.0}, [17.0, 15.0]),
        ("trl:trl_style.py:get_scaled", {"factor": 2.0, "style": "messages"}, [2.0, 2.0]),
        ("trl:trl_style.py:Longer", {"than": 7}, [1.0, 0.0]),
        ("verl:verl_style.py:compute_score", {"bonus": 0.5}, [1.5, 0.5]),
        ("verl:verl_style.py:compute_later", {}, [1.0, 0.0]),
        ("verl:verl_style.py:compute_scores", {}, [1.0, 0.0]),
        ("openrlhf:openrlhf_style.py:reward_func", {}, [1.0, 0.0]),
        ("verifiers:verifiers_style.py:short", {}, [0.375, 3 / 7]),
        ("verifiers:verifiers_style.py:longest", {}, [1.0, 0.0]),
        ("verifiers:verifiers_style.py:rubric", {}, [2.5, 0.0]),
        ("verifiers:verifiers_style.py:load_rubric", {"weight": 3.0}, [3.0, 0.0]),
        ("areal:areal_style.py:reward_fn", {}, [3.0, 0.0]),
        ("slime:slime_style.py:custom_rm", {"scale": 2.0, "reward_key": "acc"}, [2.0, 0.0]),
        ("slime:slime_style.py:batched_custom_rm", {}, [1.0, 0.0]),
        ("swift:swift_style.py:Overlong", {"soft_max_length": 1}, [0.0, -1.0]),
        ("swift:swift_style.py:Later", {}, [8.0, 7.0]),
        ("tinker:tinker_style.py:TextAnswerReward", {"format_coef": 0.5}, [0.5, -0.5]),
        ("tinker:tinker_style.py:short", {}, [-8.0, -7.0]),
        ("open_instruct:open_instruct_style.py:Contains", {}, [2.0, 0.0]),
        ("open_instruct:open_instruct_style.py:Judge", {"llm_judge_model": "m"}, [1.0, 1.0]),
    ],
)
def test_a_function_of_another_system_runs_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, args: dict[str, Any], expected: list[float | None]
) -> None:
    monkeypatch.chdir(folder)
    assert values(score(path, args)) == expected


def test_numbers_beside_the_reward_are_observed(folder: Path) -> None:
    assert score(f"openrlhf:{folder}/openrlhf_style.py:reward_func")[0].parts == {
        "r": 1.0,
        "r/scores": 0.5,
        "r/length": 8.0,
    }
    assert score(f"verl:{folder}/verl_style.py:compute_score")[0].parts == {"r": 1.0, "r/acc": 1.0}
    assert score(f"tinker:{folder}/tinker_style.py:TextAnswerReward")[0].parts == {"r": 0.9, "r/format": 1.0}
    parts = score(f"verifiers:{folder}/verifiers_style.py:rubric")[0].parts
    assert parts == {"r": 2.5, "r/correct": 1.0, "r/short": 0.375, "r/longest": 1.0}


@pytest.mark.parametrize(
    ("path", "args", "said"),
    [
        ("trl:trl_style.py:needs_trainer", {}, "'environments' is a part of TRL's running trainer"),
        ("trl:trl_style.py:get_scaled", {}, "lack factor"),
        ("trl:trl_style.py:get_scaled", {"facto": 1}, "Did you mean 'factor'?"),
        ("trl:trl_style.py:by_length", {"style": "chat"}, "text or messages"),
        ("trl:owner/model", {}, "adapter:FOLDER"),
        ("verl:verl_style.py:judged", {}, "verl's reward model server"),
        ("verl:verl_style.py:NaiveRewardManager", {}, "name the function that it calls"),
        ("openrlhf:openrlhf_style.py:AgentInstance", {}, "write theirs as an environment"),
        ("verifiers:verifiers_style.py:rubric", {"weight": 1}, "nothing to give `args` to"),
        ("verifiers:verifiers_style.py:Parser", {}, "got a Parser"),
        ("areal:areal_style.py:too_few", {}, "in this order, and it takes fewer"),
        ("slime:slime_style.py:custom_generate", {}, "need its engine"),
        ("open_instruct:open_instruct_style.py:Judge", {"nmae": 1}, "making it from `args` failed"),
        ("reasoning_gym:chain_summ", {}, "chain_sum"),
        ("verl:nothing.py:compute_score", {}, "no Python file"),
        ("verll:verl_style.py:compute_score", {}, "Did you mean 'verl'?"),
    ],
)
def test_what_cannot_work_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, args: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(folder)
    if path.startswith("reasoning_gym"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=path.partition(":")[2].partition(":")[0]) as caught:
        score(path, args)
    assert said in str(caught.value)


@pytest.mark.parametrize("path", ["trl:trl_style.py:by_messages", "areal:areal_style.py:reward_fn"])
def test_a_column_that_is_not_there_is_said_before_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"nothing supplies its parameter '(solution|level)'"):
        score(path, columns={})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("openrlhf:openrlhf_style.py:without", "returned no `rewards`"),
        ("slime:slime_style.py:wants_more", "args.rm_url"),
        ("verifiers:verifiers_style.py:wrong_number", "returned 1 values for 2 samples"),
        ("tinker:tinker_style.py:bare", "a pair of a reward and a dict"),
    ],
)
def test_a_wrong_result_fails_the_sample(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str) -> None:
    monkeypatch.chdir(folder)
    outcome = score(path)[0]
    assert isinstance(outcome, Failed)
    assert said in outcome.message


def test_one_value_for_many_different_replies_is_said_once(folder: Path) -> None:
    path, replies = f"trl:{folder}/trl_style.py:by_length", [f"reply {n}" for n in range(40)]
    with pytest.warns(UserWarning, match="gave 1.0 for 40 different replies, which it got as messages"):
        score(path, {"style": "messages"}, replies=replies)


def test_in_a_process_with_the_users_file_in_its_hash_and_in_its_failures(folder: Path) -> None:
    file = folder / "verl_style.py"
    spec = RewardSpec(path=f"verl:{file}:compute_score", args={"bonus": 0.25})
    good, bad = group(), group(columns={"data_source": "other"})
    with Scorer([spec], workers=1, deadline_s=20, log_dir=None) as scorer:
        assert scorer.sources == {"compute_score": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}}
        scored, failed = scorer.score([good, bad])
    assert values([t.outcome for t in scored.trajectories]) == [1.25, 0.25]
    outcome = failed.trajectories[0].outcome
    assert isinstance(outcome, Failed)
    assert f'"{file}", line 3, in compute_score' in outcome.message
    again = subprocess.run([sys.executable, "-c", outcome.reproduce], capture_output=True, text=True, timeout=60)
    assert "AssertionError" in again.stderr
    assert "in compute_score" in again.stderr


@pytest.mark.parametrize(
    ("name", "marks"),
    [("reward_func", ""), ("splits", "<|im_start|>"), ("by_helper", "</s>, <|assistant|>, <|end|>")],
)
def test_a_function_of_openrlhf_that_looks_for_a_template_s_marks_is_warned_about(
    name: str, marks: str, folder: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score(f"openrlhf:{folder}/openrlhf_style.py:{name}")
    said = [str(each.message) for each in caught if "template" in str(each.message)]
    assert len(said) == bool(marks)
    assert all(f"its code speaks of {marks}, which no query holds" in each for each in said)


def test_trl_s_own_rewards() -> None:
    pytest.importorskip("trl")
    replies = (r"<think>sum</think> \boxed{4}", r"\boxed{5}")
    assert values(score("trl:trl.rewards:think_format_reward", replies=replies)) == [1.0, 0.0]
    made = score("trl:trl.rewards:get_repetition_penalty_reward", {"ngram_size": 1, "max_penalty": -1.0})
    assert values(made) == [0.0, 0.0]


def test_trl_s_accuracy_reward() -> None:
    pytest.importorskip("trl")
    pytest.importorskip("math_verify")
    replies = (r"<think>sum</think> \boxed{4}", r"\boxed{5}")
    assert values(score("trl:trl.rewards:accuracy_reward", replies=replies)) == [1.0, 0.0]


def test_tasks_and_plugged_functions_of_verifiers_4(folder: Path) -> None:
    pytest.importorskip("verifiers.v1")
    outcomes = score(f"verifiers:{folder}/verifiers_4_style.py:Sum")
    assert values(outcomes) == [2.0, 0.0]
    assert outcomes[0].parts == {"r": 2.0, "r/right": 1.0, "r/length": 8.0}
    assert values(score(f"verifiers:{folder}/verifiers_4_style.py:plugged")) == [1.0, 0.5]
    with pytest.raises(ValueError, match="a runtime, which a harness starts"):
        score(f"verifiers:{folder}/verifiers_4_style.py:needs_runtime")


def test_verl_s_own_score() -> None:
    verl = importlib.util.find_spec("verl")  # its file alone: importing verl wants tensordict and a GPU's packages
    if verl is None or not verl.submodule_search_locations:
        pytest.skip("verl is not installed; see `make test-others`")
    file = Path(verl.submodule_search_locations[0]) / "utils" / "reward_score" / "gsm8k.py"
    path = f"verl:{file}:compute_score"
    assert values(score(path, replies=("2 + 2 is 4.\n#### 4", "2 + 2 is 5.\n#### 5"))) == [1.0, 0.0]
    assert values(score(path, {"format_score": 0.25}, replies=("It is 4.", "#### 5"))) == [0.0, 0.25]
    assert values(score(path, {"method": "flexible"}, replies=("The sum is 4", "no idea"))) == [1.0, 0.0]


def test_a_rubric_of_verifiers_itself(folder: Path) -> None:
    vf = pytest.importorskip("verifiers")
    if not hasattr(vf, "Rubric"):
        pytest.skip("verifiers from 0.4 on has no rubrics")
    file = folder / "rubric_style.py"
    file.write_text(
        "import verifiers as vf\n"
        "def right(parser, completion, answer):\n"
        "    return float(parser.parse_answer(completion) == answer)\n"
        "rubric = vf.Rubric([right], [2.0], parser=vf.XMLParser(['answer'], answer_field='answer'))\n",
        encoding="utf-8",
    )
    replies = ("<answer>4</answer>", "4")
    assert values(score(f"verifiers:{file}:rubric", replies=replies)) == [2.0, 0.0]


def test_scorers_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    columns = {"question": "2 + 2 =", "metadata": {"source_dataset": "chain_sum"}}
    outcomes = score("reasoning_gym:chain_sum", {"extract": "last_number"}, columns=columns)
    assert values(outcomes) == [1.0, 0.0]


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    section = page.partition("## Functions of other systems")[2].partition("\n## ")[0]
    code, command = (section.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "bash"))
    (tmp_path / "my_verl.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
    assert result.exit_code == 0, result.output
    assert '"compute_score": 1.5,' in result.output
    assert '"compute_score/acc": 1.0' in result.output


def test_the_documentation_names_every_system() -> None:
    text = (Path(__file__).parents[1] / "docs" / "systems.md").read_text(encoding="utf-8")
    assert [system.syntax for system in SYSTEMS.values() if system.syntax not in text] == []
