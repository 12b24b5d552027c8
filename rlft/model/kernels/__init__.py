"""Tensor functions that choose a compiled kernel or torch inside; nobody else touches a pointer."""
