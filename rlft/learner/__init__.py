"""From scored groups to a better policy: batches, roles on one base, the optimizer, processes that share updates."""
