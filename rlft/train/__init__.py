"""The training loops and the runs around them: RL, preferences, reward models, the supervised warm start."""
