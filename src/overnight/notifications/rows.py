"""The rows of addresses, deliveries and one-time links, and their public form without secrets."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.domain import iso_utc
from overnight.store import Table, statements

SQL = statements("overnight.notifications")
Kind = Literal["webhook", "email", "slack"]
KINDS: tuple[Kind, ...] = ("webhook", "email", "slack")
LINKS = ("decide", "show", "none")


class AddressRow(msgspec.Struct):
    """An address of one tenant. `target` is what may be shown of it; `sealed` holds its `Secrets`. `state` is active, disabled
    or removed."""

    address_id: str
    tenant_id: str
    name: str
    kind: Kind
    target: str
    options: str
    master_id: str
    sealed: bytes | None
    state: str
    created_by: str
    created_at: int
    changed_at: int

    @property
    def bound_to(self) -> tuple[str, str, str]:
        """What the secrets are bound to: they decrypt in no other row."""
        return ("notification address", self.tenant_id, self.address_id)


class AddressOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings of an address that are no secrets.

    Attributes:
        links: what a one-time link may do: decide, show, or none for no links.
        content: whether messages contain questions and arguments.
        repeat_safe: whether a delivery with unknown outcome is repeated, with the same id.
        kinds: the kinds of reviews that are sent; empty for all.
        to, sender: mail addresses. server, port, security, username: the SMTP server; security is starttls, tls or none.
    """

    links: str = "decide"
    content: bool = True
    repeat_safe: bool = True
    kinds: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    sender: str = ""
    server: str = ""
    port: int = 587
    security: str = "starttls"
    username: str = ""


class SigningSecret(msgspec.Struct, frozen=True, omit_defaults=True):
    """A secret that signs webhooks; the previous one until `until`, in microseconds."""

    secret: str
    until: int | None = None

    def __repr__(self) -> str:
        return "<signing secret>"


class Secrets(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is sealed: the URL of a webhook or of Slack, the signing secrets, newest first, and the password of SMTP."""

    url: str = ""
    signing: tuple[SigningSecret, ...] = ()
    password: str = ""

    def __repr__(self) -> str:
        return "<secrets of an address>"


class DeliveryRow(msgspec.Struct):
    """One review for one address. `state`: waiting, sending, delivered, failed (given up), unknown, or withdrawn (the review was
    closed first). `problem` says why the last attempt failed."""

    delivery_id: str
    tenant_id: str
    address_id: str
    review_id: str
    job_id: str
    state: str
    attempts: int
    created_at: int
    due_at: int
    give_up_at: int
    started_at: int | None = None
    ended_at: int | None = None
    owner: str | None = None
    problem: str | None = None


class LinkRow(msgspec.Struct):
    """A one-time link. `token_digest` is the SHA-256 of its token, which is stored nowhere."""

    token_digest: bytes
    tenant_id: str
    review_id: str
    review_digest: str
    address_id: str
    delivery_id: str
    created_at: int
    expires_at: int
    answered_at: int | None = None


def options_of(row: AddressRow) -> AddressOptions:
    return msgspec.json.decode(row.options, type=AddressOptions)


def public_address(row: AddressRow) -> dict[str, Any]:
    """The public form of an address. It holds no secret."""
    options = options_of(row)
    shown: dict[str, Any] = {
        "address_id": row.address_id,
        "name": row.name,
        "tenant_id": row.tenant_id,
        "kind": row.kind,
        "target": row.target,
        "state": row.state,
        "links": options.links,
        "content": options.content,
        "repeat_safe": options.repeat_safe,
        "kinds": options.kinds,
        "created_by": row.created_by,
        "created_at": iso_utc(row.created_at),
        "changed_at": iso_utc(row.changed_at),
    }
    if row.kind == "email":
        shown |= {
            "to": options.to,
            "from": options.sender,
            "server": options.server,
            "port": options.port,
            "security": options.security,
            "username": options.username or None,
        }
    return shown


def public_delivery(row: DeliveryRow, address: str | None) -> dict[str, Any]:
    """The public form of a delivery; `address` is the name of its address."""
    return {
        "delivery_id": row.delivery_id,
        "tenant_id": row.tenant_id,
        "review_id": row.review_id,
        "job_id": row.job_id,
        "address": address,
        "address_id": row.address_id,
        "state": row.state,
        "attempts": row.attempts,
        "problem": row.problem,
        "created_at": iso_utc(row.created_at),
        "next_attempt_at": iso_utc(row.due_at) if row.state == "waiting" else None,
        "give_up_at": iso_utc(row.give_up_at),
        "ended_at": iso_utc(row.ended_at) if row.ended_at is not None else None,
    }


def _address_key(row: AddressRow) -> str:
    return row.address_id


def _delivery_key(row: DeliveryRow) -> str:
    return row.delivery_id


def _link_key(row: LinkRow) -> bytes:
    return row.token_digest


ADDRESS: Table[AddressRow] = Table(
    75, AddressRow, _address_key, lock=SQL["lock_address"], insert=SQL["insert_address"], update=SQL["update_address"]
)
LINK: Table[LinkRow] = Table(
    76, LinkRow, _link_key, lock=SQL["lock_link"], insert=SQL["insert_link"], update=SQL["update_link"]
)
DELIVERY: Table[DeliveryRow] = Table(
    77,
    DeliveryRow,
    _delivery_key,
    lock=SQL["lock_delivery"],
    insert=SQL["insert_delivery"],
    update=SQL["update_delivery"],
)
