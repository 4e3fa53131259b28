"""What: circuit breakers for targets: closed, open, half-open with one probe. All processes share their state.
Owns: the table circuit; the events circuit_opened, circuit_closed.
Depends on: ledger, store, domain; the failure classes of providers.
Never: calls a target, or selects another target for a call.
"""

from .local_view import CircuitBreakers
from .rows import (
    CIRCUIT,
    BreakerUpdate,
    CloseCircuit,
    RecordBreakerUpdate,
    apply_update,
    list_circuits,
)
from .state import Circuit, caller_account, public_circuit

__all__ = [
    "CIRCUIT",
    "BreakerUpdate",
    "Circuit",
    "CircuitBreakers",
    "CloseCircuit",
    "RecordBreakerUpdate",
    "apply_update",
    "caller_account",
    "list_circuits",
    "public_circuit",
]
