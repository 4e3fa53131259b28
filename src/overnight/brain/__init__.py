"""What: the brain folder as typed, versioned definitions, with every problem in it named by file and line.
Owns: the files of the brain (routing.yaml, prompts/), their content hash, and the starter that `init` writes.
Depends on: nothing of Overnight.
Never: writes into an existing brain, holds a secret, calls a provider, or lets an unknown key pass.
"""

from overnight.brain.folder import Brain, check_brain, load_brain, version_of
from overnight.brain.problems import BrainError, Problem
from overnight.brain.prompts import Prompt
from overnight.brain.providers import ProviderDef
from overnight.brain.routing import (
    Budgets,
    Limits,
    Price,
    Retries,
    Route,
    RouteDecision,
    Routing,
    UnknownModel,
)
from overnight.brain.starter import write_starter

__all__ = [
    "Brain",
    "BrainError",
    "Budgets",
    "Limits",
    "Price",
    "Problem",
    "Prompt",
    "ProviderDef",
    "Retries",
    "Route",
    "RouteDecision",
    "Routing",
    "UnknownModel",
    "check_brain",
    "load_brain",
    "version_of",
    "write_starter",
]
