"""Training a reward model on preference data."""
