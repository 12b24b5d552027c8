"""All detectors: each looks at some metrics of a run and says what is wrong, nothing, or why it cannot tell.

All compare a run with its own beginning. Each wants two things at once: a change that is beyond the noise of the run
(`course.shift`, `course.trend`), and one that is large enough to matter, whose bounds its first line says.
"""

from __future__ import annotations

from rlft.curves.alarms import of_policy, of_rewards, of_rollouts
from rlft.curves.alarms.seen import Detector

DETECTORS: dict[str, Detector] = {
    each.__name__: each
    for each in (
        of_policy.not_finite,
        of_policy.entropy_collapse,
        of_policy.kl_without_reward,
        of_rollouts.length_with_reward,
        of_rewards.part_against_part,
        of_rewards.shadow_gap,
        of_rollouts.repetition,
        of_rollouts.truncation,
        of_rewards.no_signal,
        of_rewards.reward_spike,
        of_rewards.reward_collapse,
        of_policy.gradient_spikes,
        of_policy.clip_saturation,
        of_policy.critic_diverges,
        of_policy.mismatch,
        of_rollouts.throughput,
    )
}
"""By the alarm's name."""
