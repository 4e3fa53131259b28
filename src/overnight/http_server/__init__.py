"""What: a small HTTP/1.1 server for ASGI applications: framing, limits of connections and heads, streams without extra turns.
Owns: the connections of its clients.
Depends on: httptools.
Never: knows what the application serves.
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
