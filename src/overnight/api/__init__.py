"""What: HTTP, for programs: the OpenAI-compatible gateway, and Overnight's own routes with problem+json and live events.
Owns: nothing but the shape of requests and answers.
Depends on: gateway, keys, jobs, ledger, domain.
Never: decides about a job or a call itself, or shows one tenant what is another's.
"""

from overnight.http_server import ConnectionLimits, Server, TrustedProxies

from .access_log import AccessLog
from .application import LOOPBACK, Application, application, rest_application
from .rest_process import RestProcess
from .rest_services import RestServices

__all__ = [
    "LOOPBACK",
    "AccessLog",
    "Application",
    "ConnectionLimits",
    "RestProcess",
    "RestServices",
    "Server",
    "TrustedProxies",
    "application",
    "rest_application",
]
