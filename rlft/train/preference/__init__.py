"""Training on preference data: DPO and its relatives."""
