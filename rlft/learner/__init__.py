"""Batches, the roles on one base, the optimizer, and the processes that share an update."""
