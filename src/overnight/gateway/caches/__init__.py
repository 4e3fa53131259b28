"""What: answers given again: to the very same question, to a like one, and to all who ask the same at once.
Owns: cache_entry, semantic_entry, cache_day; the events cache_hit, cache_missed, cache_shadow.
Depends on: ledger, store, domain; the gateway's requests, and its path for embeddings.
Never: fails a call, keeps a copy of an answer, or shows one tenant's answer to another.
"""

from .counting import Usage, cache_usage
from .hits import Candidate, Ticket
from .markers import placed
from .visiting import Caches, Visit

__all__ = ["Caches", "Candidate", "Ticket", "Usage", "Visit", "cache_usage", "placed"]
