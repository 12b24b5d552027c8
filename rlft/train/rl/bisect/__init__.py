"""Finding the step at which a run's policy changed a behaviour, from its stored adapters."""
