"""Reads run directories and says what they show: intervals, report, picture.

Nothing here imports torch, ray or transformers: a run can be read on any machine.
"""
