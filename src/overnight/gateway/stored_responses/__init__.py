"""What: stored responses: found by their id, continued, listed, deleted.
Owns: response.
Depends on: formats, ledger, store, domain.
Never: holds content; a row says where in the log of a job the request and the answer are.
"""

from .response_store import StoredResponses
from .rows import StoredResponse, stored_response_of

__all__ = ["StoredResponse", "StoredResponses", "stored_response_of"]
