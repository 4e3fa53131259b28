"""What: targets that fail are left alone for a while: closed, open, half-open with one probe, shared by all processes.
Owns: circuit; the events circuit_opened, circuit_closed.
Depends on: ledger, store, domain; the gateway's failure classes.
Never: asks a target, or decides where a call goes instead.
"""

from .local_view import Circuits
from .rows import (
    CIRCUIT,
    CloseCircuit,
    Mark,
    Note,
    list_circuits,
    note,
)
from .state import Circuit, caller_account, public_circuit

__all__ = [
    "CIRCUIT",
    "Circuit",
    "Circuits",
    "CloseCircuit",
    "Mark",
    "Note",
    "caller_account",
    "list_circuits",
    "note",
    "public_circuit",
]
