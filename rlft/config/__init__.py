"""The config of a run as one frozen tree; `config_file` reads and writes it.

A batch is three numbers: `tasks_per_step` tasks, each answered `samples_per_task` times, used for `updates_per_step`
optimizer updates. Everything else is derived.
"""

from rlft.config.sections import (
    AdapterConfig,
    CheckpointConfig,
    EnvironmentConfig,
    EvaluationConfig,
    EvaluationSetConfig,
    GuardsConfig,
    LearnerConfig,
    MixedEnvironment,
    ModelConfig,
    PolicyAdapterConfig,
    RLLearnerConfig,
    RolloutConfig,
    SamplingConfig,
    ScoringConfig,
    SFTStageConfig,
    Strict,
    TaskSource,
    TrackerConfig,
)
from rlft.config.tree import BaseRunConfig, PolicyRunConfig, RunConfig

__all__ = [
    "AdapterConfig",
    "BaseRunConfig",
    "CheckpointConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "GuardsConfig",
    "LearnerConfig",
    "MixedEnvironment",
    "ModelConfig",
    "PolicyAdapterConfig",
    "PolicyRunConfig",
    "RLLearnerConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTStageConfig",
    "SamplingConfig",
    "ScoringConfig",
    "Strict",
    "TaskSource",
    "TrackerConfig",
]
