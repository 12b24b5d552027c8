"""Checking a run that somebody else made: hashes, arithmetic, scores and samples, each computed again from the rest."""
