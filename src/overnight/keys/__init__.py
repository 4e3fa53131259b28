"""What: API keys, which identify a caller and limit its access; and encrypted provider keys of single tenants.
Owns: virtual_key, provider_key, key_change; the file of master keys.
Depends on: store, domain.
Never: stores, shows or logs a secret; `create` and `rotate` give one back, once.
"""

from .keyring import Keyring
from .master_keys import Masters, SealedShut
from .operations import Keys, NewKey, Rotation, bound_to, known_provider
from .permissions import allows
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
    "KeyRow",
    "Keyring",
    "Keys",
    "Masters",
    "NewKey",
    "ProviderKeyRow",
    "Rotation",
    "SealedShut",
    "VirtualKey",
    "allows",
    "bound_to",
    "known_provider",
    "public_key",
    "public_provider_key",
    "state_of",
    "virtual_key",
]
