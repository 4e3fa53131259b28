"""What: HTTP, for programs: the OpenAI-compatible gateway, and Overnight's own routes with problem+json and live events.
Owns: nothing but the shape of requests and answers.
Depends on: gateway, keys, jobs, ledger, domain.
Never: decides about a job or a call itself, or shows one tenant what is another's.
"""

from .application import LOOPBACK, Application, application
from .connection_limits import ConnectionLimits
from .serving import Server

__all__ = ["LOOPBACK", "Application", "ConnectionLimits", "Server", "application"]
