"""What: listeners of the feed for other systems: the event log as JSON Lines.
Owns: the files of the event log.
Depends on: ledger, files, domain.
Never: writes to the ledger, or slows what does.
"""

from .json_lines import JsonLinesSink, LogFiles

__all__ = ["JsonLinesSink", "LogFiles"]
