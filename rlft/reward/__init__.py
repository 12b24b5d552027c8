"""How a reward function is found, called, contained and scored."""
