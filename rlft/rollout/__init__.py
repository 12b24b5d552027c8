"""Generating trajectories: engines, episodes, workers, pools."""
