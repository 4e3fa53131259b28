"""Replay: the history that a job's log holds, and how recorded answers reach its code again in their recorded order."""
