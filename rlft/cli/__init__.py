"""The commands of `rlft`, one file for each group of them."""
