"""Many runs of one config: a grid of settings and seeds, each trial an ordinary run, and what they show together."""
