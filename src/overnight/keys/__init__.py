"""What: API keys, which identify a caller and limit its access; and encrypted provider keys of single tenants.
Owns: virtual_key, key_allowance, provider_key, key_change; the file of master keys.
Depends on: ledger (audit entries), store, domain.
Never: stores, shows or logs a secret; `create` and `rotate` give one back, once.
"""

from .keyring import Keyring
from .master_keys import Masters, SealedShut
from .operations import Allowance, Keys, NewKey, Rotation, bound_to, known_provider
from .permissions import Requester, check_decision, check_tool
from .rows import (
    KeyRow,
    ProviderKeyRow,
    VirtualKey,
    public_key,
    public_provider_key,
    state_of,
    virtual_key,
)
from .tokens import PREFIX

__all__ = [
    "PREFIX",
    "Allowance",
    "KeyRow",
    "Keyring",
    "Keys",
    "Masters",
    "NewKey",
    "ProviderKeyRow",
    "Requester",
    "Rotation",
    "SealedShut",
    "VirtualKey",
    "bound_to",
    "check_decision",
    "check_tool",
    "known_provider",
    "public_key",
    "public_provider_key",
    "state_of",
    "virtual_key",
]
