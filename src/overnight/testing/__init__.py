"""What: test support for users: a scripted offline provider in a separate process.
Owns: the provider's rules file, its wire answers, and its count of paid calls.
Depends on: nothing inside Overnight.
Never: asks a real model, looks at a key, or is imported by a room below the edges.
"""

from .scripted_process import (
    ScriptedProvider,
    ScriptedProviderError,
    SpawnedProvider,
    spawn_scripted_provider,
    start_scripted_provider,
)

__all__ = [
    "ScriptedProvider",
    "ScriptedProviderError",
    "SpawnedProvider",
    "spawn_scripted_provider",
    "start_scripted_provider",
]
