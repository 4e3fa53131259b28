"""What: targets that fail are left alone for a while: closed, open, half-open with one probe, shared by all processes.
Owns: circuit; the events circuit_opened, circuit_closed.
Depends on: ledger, store, domain; the gateway's failure classes.
Never: asks a target, or decides where a call goes instead.
"""

from .local_view import CircuitBreakers
from .rows import (
    CIRCUIT,
    BreakerUpdate,
    CloseCircuit,
    Note,
    list_circuits,
    note,
)
from .state import Circuit, caller_account, public_circuit

__all__ = [
    "CIRCUIT",
    "BreakerUpdate",
    "Circuit",
    "CircuitBreakers",
    "CloseCircuit",
    "Note",
    "caller_account",
    "list_circuits",
    "note",
    "public_circuit",
]
