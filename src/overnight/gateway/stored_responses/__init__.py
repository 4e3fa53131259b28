"""What: responses that clients want kept: found again by their id, gone on from, listed, forgotten.
Owns: response.
Depends on: formats, ledger, store, domain.
Never: holds content; a row says where in the log of a job the request and the answer stand.
"""

from .response_store import StoredResponses
from .rows import StoredResponse, stored_response_of

__all__ = ["StoredResponse", "StoredResponses", "stored_response_of"]
