"""Example environments, one file each: a function that returns an `Environment`."""
