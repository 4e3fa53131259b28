"""What: a tree of processes: started together, restarted when one dies, stopped together; and the lines they log.
Owns: nothing durable.
Depends on: nothing of Overnight.
Never: knows what a process does; it is told what to run and whom to tell of a death.
"""

from .log_lines import LogLines, line_of, set_up_log
from .tree import Child, ProcessTree, stdin_closed

__all__ = ["Child", "LogLines", "ProcessTree", "line_of", "set_up_log", "stdin_closed"]
