"""What: API keys, which identify a caller and limit its access; and encrypted provider keys of single tenants.
Owns: virtual_key, key_allowance, provider_key, key_change; the file of master keys.
Depends on: ledger (audit entries), store, domain.
Never: stores, shows or logs a secret; `create` and `rotate` give one back, once.
"""

from .keyring import Keyring
from .master_keys import DecryptionFailed, MasterKeys
from .operations import Allowance, Keys, NewKey, Rotation, bound_to, check_provider
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
    "DecryptionFailed",
    "KeyRow",
    "Keyring",
    "Keys",
    "MasterKeys",
    "NewKey",
    "ProviderKeyRow",
    "Requester",
    "Rotation",
    "VirtualKey",
    "bound_to",
    "check_decision",
    "check_provider",
    "check_tool",
    "public_key",
    "public_provider_key",
    "state_of",
    "virtual_key",
]
