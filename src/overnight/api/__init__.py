"""What: HTTP, for programs: the OpenAI-compatible gateway, and Overnight's own routes with problem+json and live events.
Owns: nothing but the shape of requests and answers.
Depends on: gateway, keys, jobs, ledger, domain.
Never: decides about a job or a call itself, or shows one tenant what is another's.
"""

from overnight.http_server import ConnectionLimits, Server

from .application import LOOPBACK, Application, application

__all__ = ["LOOPBACK", "Application", "ConnectionLimits", "Server", "application"]
