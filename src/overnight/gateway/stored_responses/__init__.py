"""What: stored responses: read by id, continued, listed, deleted.
Owns: response.
Depends on: wire_formats, ledger, store, domain.
Never: stores content; a row refers to the request and the answer in the log of a job.
"""

from .response_store import StoredResponses
from .rows import StoredResponse, stored_response_of

__all__ = ["StoredResponse", "StoredResponses", "stored_response_of"]
