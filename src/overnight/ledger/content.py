"""Content addressed by hash: messages in prefix chains, and blobs. Addresses are valid within (tenant, month).

    node = SHA-256(parent node ‖ message hash);  the first node's parent is 32 zero bytes

A request refers to one head node. So each further message adds one node, and two requests compare like two commits.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from overnight.domain import BadInput, month_of
from overnight.store import Unit

from .rows import SQL

ROOT = bytes(32)
MIN_LINKS_TO_LOOK_UP = 6
_INSERT_MESSAGE, _INSERT_NODE, _INSERT_BLOB = SQL["insert_message"], SQL["insert_node"], SQL["insert_blob"]


class MessageRow(msgspec.Struct):
    tenant_id: str
    month: int
    hash: bytes
    body: bytes


class NodeRow(msgspec.Struct):
    tenant_id: str
    month: int
    hash: bytes
    parent: bytes
    message: bytes


class Link(msgspec.Struct, frozen=True):
    """One message of a conversation. `node` addresses the whole prefix that ends with it."""

    node: bytes
    parent: bytes
    message: bytes
    body: bytes


def address_chain(messages: list[bytes]) -> list[Link]:
    """The links of a conversation, first message first. `messages`: their canonical JSON. Pure."""
    links: list[Link] = []
    parent = ROOT
    for body in messages:
        message = hashlib.sha256(body).digest()
        node = hashlib.sha256(parent + message).digest()
        links.append(Link(node, parent, message, body))
        parent = node
    return links


class KnownContent:
    """An LRU cache of addresses that are durable, so that this process does not write them again. `most`: the number
    of entries."""

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._seen: OrderedDict[tuple[str, int, bytes], None] = OrderedDict()

    def has(self, tenant_id: str, month: int, node: bytes) -> bool:
        key = (tenant_id, month, node)
        if key in self._seen:
            self._seen.move_to_end(key)
            return True
        return False

    def add_links(self, tenant_id: str, month: int, links: Sequence[Link]) -> None:
        """Add links. Call it only after the transaction that stored them is durable."""
        self.add_hashes(tenant_id, month, [link.node for link in links])

    def add_hashes(self, tenant_id: str, month: int, hashes: Iterable[bytes]) -> None:
        """Add hashes of blobs. Call it only after the transaction that stored them is durable."""
        for each in hashes:
            self._seen[tenant_id, month, each] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)


def store_chain(unit: Unit, tenant_id: str, links: Sequence[Link], known: KnownContent) -> str:
    """Write the links that are not stored yet. Returns the reference of the head; empty for no messages."""
    if not links:
        return ""
    month = month_of(unit.now)
    missing: list[Link] = []
    # A stored node implies its whole prefix, so the search goes back from the head to the first known node.
    for link in reversed(links):
        if known.has(tenant_id, month, link.node):
            break
        missing.append(link)
    if len(missing) > MIN_LINKS_TO_LOOK_UP:
        wanted = msgspec.json.encode([link.node.hex() for link in missing]).decode()
        rows = unit.query(SQL["known_nodes"], {"tenant_id": tenant_id, "month": month, "hashes": wanted})
        stored = {bytes(row[0]) for row in rows}
        missing = [link for link in missing if link.node not in stored]
    for link in missing:
        message = MessageRow(tenant_id, month, link.message, link.body)
        unit.insert_shared(_INSERT_MESSAGE, (tenant_id, month, link.message), message)
        node = NodeRow(tenant_id, month, link.node, link.parent, link.message)
        unit.insert_shared(_INSERT_NODE, (tenant_id, month, link.node), node)
    return f"blob://{month}/chain/sha256/{links[-1].node.hex()}"


def store_blob(unit: Unit, tenant_id: str, body: bytes, known: KnownContent | None = None) -> str:
    """Write a blob unless it is known to be stored. Returns its reference."""
    month = month_of(unit.now)
    digest = hashlib.sha256(body).digest()
    if known is None or not known.has(tenant_id, month, digest):
        unit.insert_shared(_INSERT_BLOB, (tenant_id, month, digest), MessageRow(tenant_id, month, digest, body))
    return f"blob://{month}/sha256/{digest.hex()}"


def parse_reference(reference: str) -> tuple[bool, int, bytes]:
    """Parse `blob://MONTH/[chain/]sha256/HEX`. Returns (is a chain, month, hash). Raises BadInput."""
    parts = reference.removeprefix("blob://").split("/")
    try:
        is_chain = parts[1] == "chain"
        return is_chain, int(parts[0]), bytes.fromhex(parts[-1])
    except (ValueError, IndexError):
        raise BadInput(f"{reference!r} is not a reference; expected a form like blob://202601/sha256/…") from None
