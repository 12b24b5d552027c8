"""Sending a run's numbers, samples and report to experiment trackers; none of them can stop or delay the run."""
