"""What runs in an environment are watched by, with weight 0 or `role: shadow`, and never trained on: no rewards."""
