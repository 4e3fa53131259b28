"""What: test support for users: a scripted offline provider in a separate process.
Owns: the provider's rules file, its wire answers, and its count of paid calls.
Depends on: no other package of Overnight.
Never: calls a real model, checks a key, or is imported by a package below the edges.
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
