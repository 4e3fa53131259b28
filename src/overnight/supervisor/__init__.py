"""What: a supervisor: starts processes, restarts those that die, stops them together; and their log lines.
Owns: nothing durable.
Depends on: no other package of Overnight.
Never: knows the purpose of a process; it receives a command to run and a callback for its exit.
"""

from .log_lines import LogLines, line_of, set_up_log
from .tree import Child, ProcessTree, stdin_closed

__all__ = ["Child", "LogLines", "ProcessTree", "line_of", "set_up_log", "stdin_closed"]
