"""The loops, and the runs around them."""
