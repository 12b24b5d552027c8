"""Taking a trained policy out of its run: a folder that other software loads, proven to be what was trained."""
