"""What: the brain folder as typed, versioned definitions, with every problem in it named by file and line.
Owns: the files of the brain (routing.yaml, prompts/, agents/), their content hash, and the starter that `init` writes.
Depends on: domain.
Never: writes to an existing brain, contains a secret, calls a provider, or accepts an unknown key.
"""

from overnight.brain.agents import AgentDefinition, read_agent
from overnight.brain.complexity import Complexity
from overnight.brain.folder import (
    Brain,
    check_brain,
    load_brain,
    load_routing,
    prompts_version_of,
    read_files,
    version_of,
)
from overnight.brain.problems import BrainError, Problem, did_you_mean, nearest
from overnight.brain.prompts import Prompt, read_prompt, read_prompts
from overnight.brain.routing import Routing, UnknownModel
from overnight.brain.rules import Route, RouteVariant, When
from overnight.brain.starter import write_starter
from overnight.domain.policies import (
    AgentCache,
    Alarms,
    Breakers,
    BudgetLimit,
    Budgets,
    CachePolicy,
    ClassRetries,
    Degraded,
    Guards,
    Limits,
    Price,
    ProviderDef,
    RateLimit,
    Retries,
    RouteDecision,
    SemanticCache,
)

__all__ = [
    "AgentCache",
    "AgentDefinition",
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
    "RouteVariant",
    "Routing",
    "SemanticCache",
    "UnknownModel",
    "When",
    "check_brain",
    "did_you_mean",
    "load_brain",
    "load_routing",
    "nearest",
    "prompts_version_of",
    "read_agent",
    "read_files",
    "read_prompt",
    "read_prompts",
    "version_of",
    "write_starter",
]
