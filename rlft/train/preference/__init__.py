"""Training on preference data: DPO, its relatives, and KTO."""
