"""Rewards worth copying, one per file; a reward is a plain function (see `rlft.reward.contract`)."""
