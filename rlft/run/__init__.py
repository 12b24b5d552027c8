"""The run directory: who writes it, and its formats."""
