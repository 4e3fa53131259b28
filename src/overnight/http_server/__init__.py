"""What: a small HTTP/1.1 server for ASGI applications: framing, limits on clients, streaming without extra turns of the loop.
Owns: the connections of its clients.
Depends on: httptools.
Never: knows the purpose of the application.
"""

from .asgi import DIRECT, Direct, Headers, Message, Receive, Scope, Send
from .connection_limits import ConnectionLimits
from .forwarded import FORWARDED, TrustedProxies, is_loopback
from .server import Server

__all__ = [
    "DIRECT",
    "FORWARDED",
    "ConnectionLimits",
    "Direct",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Server",
    "TrustedProxies",
    "is_loopback",
]
