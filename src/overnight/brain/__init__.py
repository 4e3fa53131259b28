"""What: the brain folder as typed, versioned definitions, with every problem in it named by file and line.
Owns: the files of the brain (routing.yaml, prompts/), their content hash, and the starter that `init` writes.
Depends on: domain.
Never: writes into an existing brain, holds a secret, calls a provider, or lets an unknown key pass.
"""

from overnight.brain.complexity import Complexity
from overnight.brain.folder import Brain, check_brain, load_brain, load_routing, version_of
from overnight.brain.limits import (
    Alarms,
    Breakers,
    BudgetLimit,
    Budgets,
    ClassRetries,
    Guards,
    Limits,
    RateLimit,
    Retries,
)
from overnight.brain.problems import BrainError, Problem
from overnight.brain.prompts import Prompt
from overnight.brain.providers import ProviderDef
from overnight.brain.routing import Price, Routing, UnknownModel
from overnight.brain.rules import Degraded, Route, RouteDecision, Way, When
from overnight.brain.starter import write_starter

from .cache_policies import AgentCache, CachePolicy, SemanticCache

__all__ = [
    "AgentCache",
    "Alarms",
    "Brain",
    "BrainError",
    "Breakers",
    "BudgetLimit",
    "Budgets",
    "CachePolicy",
    "ClassRetries",
    "Complexity",
    "Degraded",
    "Guards",
    "Limits",
    "Price",
    "Problem",
    "Prompt",
    "ProviderDef",
    "RateLimit",
    "Retries",
    "Route",
    "RouteDecision",
    "Routing",
    "SemanticCache",
    "UnknownModel",
    "Way",
    "When",
    "check_brain",
    "load_brain",
    "load_routing",
    "version_of",
    "write_starter",
]
