"""Checks of data before a run is spent on it: what `rlft data check` finds."""
