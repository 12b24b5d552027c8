"""`rlft reward attack --policy`: short RL of the bundled model against a reward, to see what a real policy makes of it.

Nothing holds the policy back: no KL term, a high learning rate, few tasks. What it wrote in its last steps goes into
the search of `rlft.reward.attack`, and its runs stay in `runs/`, where every command reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlft.cli.reward_check import read_columns
from rlft.common.rows import FORMATS
from rlft.config import EnvironmentConfig, RunConfig
from rlft.curves.live_panel import View
from rlft.curves.reading import read_metrics
from rlft.reward.attack import ORACLE
from rlft.types import RewardSpec

MODEL = "smollm2-135m-instruct"
_EDGE = 3
"""Steps at either end of a run whose means are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What one policy made of the reward."""

    run: Path
    reward: tuple[float, float]
    """Mean reward of the first and of the last steps."""
    oracle: tuple[float, float] | None
    """The same of the oracle, None where there is none."""

    @property
    def told(self) -> str:
        """In one line."""
        oracle = f"; the oracle gives {self.oracle[0]:.3g}, then {self.oracle[1]:.3g}" if self.oracle else ""
        return f"policy {self.run}: reward {self.reward[0]:.3g}, then {self.reward[1]:.3g}{oracle}"


def environment_of(target: str, data: str) -> tuple[EnvironmentConfig, int]:
    """Where the policy's tasks come from, and how many tokens it may write.

    Args:
        target: a reward, or a config file, whose environment and limit are meant if `data` is empty.
        data: a file of rows, whose columns are taken as `rlft reward check` takes them, an environment, or a config
            file; sums, if empty, too.

    Raises:
        ValueError: the file cannot be read, or has no column that looks like a prompt.
    """
    configs = [name for name in (data, "" if data else target) if name.endswith((".yaml", ".yml"))]
    if configs:
        from rlft.config_file import load

        config = load(Path(configs[0]), [])
        return config.environment, config.sampling.max_new_tokens
    if data.endswith(FORMATS):
        rows, asked, replied = read_columns(data)
        is_chat = any(isinstance(row.get(asked), list) for _, row in rows)
        prompt = {"messages": asked} if is_chat else {"prompt": f"{{{asked}}}"}
        args = {"source": data, "answer": replied, **prompt}
        return EnvironmentConfig(path="environments.dataset:load", args=args), 64
    if data:
        return EnvironmentConfig(path=data if ":" in data else f"environments.{data}:load"), 64
    sums = {"low": 2, "high": 20, "heldout": 8, "demonstrations": 0}
    return EnvironmentConfig(path="environments.sums:load", args=sums), 32


def train(
    specs: Sequence[RewardSpec],
    oracle: RewardSpec | None,
    where: tuple[EnvironmentConfig, int],
    *,
    variables: Collection[str],
    deadline_s: float,
    steps: int,
    seeds: int,
) -> list[Learnt]:
    """Train a policy for each seed; a run of the same name is moved aside.

    Args:
        where: see `environment_of`.
        variables: `scoring.environment`.
        deadline_s: `scoring.deadline_s`.

    Raises:
        ValueError: the tasks, rewards or the model cannot be used.
        RuntimeError: a run had to stop.
    """
    from rlft.train.rl import launch  # takes seconds

    rewards = [spec for spec in specs if spec.role != "shadow" or oracle is None]
    if oracle:
        rewards.append(RewardSpec(path=oracle.path, args=oracle.args, name=ORACLE, role="shadow"))
    name = "-".join(spec.label for spec in rewards if spec.weight)
    found = []
    for seed in range(seeds):
        config = RunConfig.model_validate(
            {
                "name": "attack-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{name}-{seed}"),
                "seed": seed,
                "steps": steps,
                "tasks_per_step": 8,
                "samples_per_task": 8,
                "backend": "inline",
                "model": {"source": MODEL},
                "environment": where[0],
                "rewards": rewards,
                "scoring": {"check": "off", "max_failed": 0.5, "deadline_s": deadline_s, "environment": variables},
                "sampling": {"max_new_tokens": where[1]},
                "algorithm": {"preset": "grpo", "kl": "none", "kl_coef": 0.0},
                "learner": {"lr": 3e-4},
                "evaluation": {"tasks": 4},
                "guards": {"stop": ()},
            }
        )
        launch.train(config, restart=True, make_view=View)
        rows = read_metrics(config.run_dir)
        shadow = next((spec.label for spec in rewards if spec.role == "shadow"), "")
        found.append(
            Learnt(
                run=config.run_dir,
                reward=_ends(rows, "reward/mean"),
                oracle=_ends(rows, f"reward/part/{shadow}") if shadow else None,
            )
        )
    return found


def _ends(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[float, float]:
    values = [row[metric] for row in rows if metric in row]
    first, last = values[:_EDGE], values[-_EDGE:]
    return sum(first) / max(1, len(first)), sum(last) / max(1, len(last))
