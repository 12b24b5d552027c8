"""Alarms with names: what goes wrong in a run, since which step, by which numbers and samples, and what to do."""

from rlft.curves.alarms.health import ALARMS, Alarm, Health, Sample, Unable
from rlft.curves.alarms.watch import alarms_from, alarms_of, alarms_until

__all__ = ["ALARMS", "Alarm", "Health", "Sample", "Unable", "alarms_from", "alarms_of", "alarms_until"]
