"""Reinforcement learning: the loop, its rollouts, metrics, evaluations, and the run around it."""
