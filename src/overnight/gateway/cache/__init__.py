"""What: cached answers: exact, semantic, and one call for all identical calls in flight (single flight).
Owns: cache_entry, semantic_entry, cache_day; the events cache_hit, cache_missed, cache_shadow.
Depends on: ledger, store, domain; the gateway's requests, and its path for embeddings.
Never: fails a call, keeps a copy of an answer, or shows one tenant's answer to another.
"""

from .cache_result import CacheResult, Candidate
from .lookup import CacheLookup, Caches, LookupServices
from .prompt_markers import with_prompt_markers
from .question_embedding import Embed, Embedded
from .statistics import CacheUsage, cache_usage
from .vectors import read_vector

__all__ = [
    "CacheLookup",
    "CacheResult",
    "CacheUsage",
    "Caches",
    "Candidate",
    "Embed",
    "Embedded",
    "LookupServices",
    "cache_usage",
    "read_vector",
    "with_prompt_markers",
]
