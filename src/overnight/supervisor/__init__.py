"""What: a tree of processes: started together, restarted when one dies, stopped together.
Owns: nothing durable.
Depends on: nothing of Overnight.
Never: knows what a process does; it is told what to run and whom to tell of a death.
"""

from .tree import Child, ProcessTree, stdin_closed

__all__ = ["Child", "ProcessTree", "stdin_closed"]
