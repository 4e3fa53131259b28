"""Operations on addresses by admins, within one tenant. Only the command line may select all tenants ("")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec

from overnight.domain import BadInput, NotFound, check_identifier, new_id
from overnight.keys import MasterKeys
from overnight.ledger import Feed
from overnight.outgoing import AddressPolicy, TlsFiles, UrlInvalid, parse_url
from overnight.reviews import KINDS as REVIEW_KINDS
from overnight.store import Store, records_of

from .commands import AddAddress, RecordTest, RemoveAddress, RotateSecret, SealAgain, seal
from .deliveries import RetryDelivery
from .messages import sample_message
from .outcomes import Outcome, outcome_name
from .rows import (
    KINDS,
    LINKS,
    SQL,
    AddressOptions,
    AddressRow,
    DeliveryRow,
    Kind,
    Secrets,
    SigningSecret,
)
from .sender import MessageSender, shown_url
from .smtp import SECURITY, is_mail_address
from .webhooks import new_secret

DAY_MS = 86_400_000
MAX_RECIPIENTS, MAX_PASSWORD = 20, 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:]{2,45}")
PORTS = {"starttls": 587, "tls": 465, "none": 25}


class NewAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new address.

    Attributes:
        url: of a webhook or of Slack. For email: `to`, `sender`, `server`, `port`, `security`, `username`, `password`.
        links, content, repeat_safe, kinds: see AddressOptions.
    """

    name: str
    kind: Kind
    url: str = ""
    to: tuple[str, ...] = ()
    sender: str = ""
    server: str = ""
    port: int | None = None
    security: str = "starttls"
    username: str = ""
    password: str = ""
    links: str = "decide"
    content: bool = True
    repeat_safe: bool = True
    kinds: tuple[str, ...] = ()


class SecretRotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the previous secret signs too, in milliseconds (0: not at all)."""

    overlap_ms: Annotated[int, msgspec.Meta(ge=0, le=90 * DAY_MS)] = DAY_MS


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which deliveries to list, newest id last page first. Empty fields match all."""

    tenant_id: str = ""
    state: str = ""
    review_id: str = ""
    job_id: str = ""
    before: str = ""
    most: int = 50


class Addresses:
    """The addresses of a store. Only `add` and `rotate` return a signing secret. Every method can raise StoreUnavailable.

    Args:
        policy: the hosts that addresses may reach.
    """

    def __init__(
        self, store: Store, masters: MasterKeys, policy: AddressPolicy | None = None, *, tls: TlsFiles | None = None
    ) -> None:
        self._store, self._masters, self._policy = store, masters, policy or AddressPolicy()
        self._tls = tls

    async def add(
        self, tenant_id: str, new: NewAddress, actor: str, key_id: str | None = None
    ) -> tuple[AddressRow, str | None]:
        """Register an address. Returns it, and the signing secret of a webhook. Raises BadInput; Conflict for a used name."""
        check_identifier(tenant_id, "the tenant")
        options = self._checked(new)
        secret = new_secret() if new.kind == "webhook" else None
        row = AddressRow(
            address_id=new_id("adr"),
            tenant_id=tenant_id,
            name=new.name,
            kind=new.kind,
            target=", ".join(new.to) if new.kind == "email" else shown_url(new.url),
            options=msgspec.json.encode(options).decode(),
            master_id="",
            sealed=None,
            state="active",
            created_by=actor,
            created_at=0,
            changed_at=0,
        )
        signing = (SigningSecret(secret),) if secret is not None else ()
        seal(row, Secrets(url=new.url, signing=signing, password=new.password), self._masters)
        place = await Feed(self._store).end()
        return await self._store.commit(AddAddress(row, place, key_id)), secret

    async def rotate(
        self, name: str, tenant_id: str, how: SecretRotation, actor: str, key_id: str | None = None
    ) -> tuple[AddressRow, str]:
        """Replace the signing secret of a webhook. Returns the address and the new secret. Raises NotFound, Conflict."""
        row, secret = await self.one(name, tenant_id), new_secret()
        command = RotateSecret(
            address_id=row.address_id,
            secret=secret,
            overlap_us=how.overlap_ms * 1000,
            masters=self._masters,
            actor=actor,
            caller_key_id=key_id,
        )
        return await self._store.commit(command), secret

    async def remove(self, name: str, tenant_id: str, actor: str, key_id: str | None = None) -> AddressRow:
        """Remove an address. Raises NotFound."""
        row = await self.one(name, tenant_id)
        return await self._store.commit(RemoveAddress(row.address_id, actor, key_id))

    async def list(self, tenant_id: str = "") -> list[AddressRow]:
        """The addresses of a tenant by name; "" lists all tenants."""
        return records_of(AddressRow, await self._store.read(SQL["list_addresses"], {"tenant_id": tenant_id}))

    async def one(self, name: str, tenant_id: str) -> AddressRow:
        """The address with this name or id. Raises NotFound."""
        check_identifier(name, "the address")
        rows = await self._store.read(SQL["find_address"], {"tenant_id": tenant_id, "name": name})
        if not rows:
            raise NotFound(f"address {name}. `overnight notifications` lists addresses")
        return records_of(AddressRow, rows)[0]

    async def test(self, name: str, tenant_id: str, actor: str, key_id: str | None = None) -> Outcome:
        """Send a sample from this process, once. Raises NotFound, DecryptionFailed."""
        row, now = await self.one(name, tenant_id), self._store.clock()
        sender = MessageSender(self._masters, self._policy, tls=self._tls)
        outcome = await sender.send(row, sample_message(tenant_id, new_id("msg"), now), now)
        await self._store.commit(RecordTest(row, outcome_name(outcome), actor, key_id))
        return outcome

    async def deliveries(self, wanted: DeliveryFilter) -> Sequence[tuple[DeliveryRow, str | None]]:
        """Deliveries, each with the name of its address."""
        rows = await self._store.read(SQL["list_deliveries"], msgspec.structs.asdict(wanted))
        found = records_of(DeliveryRow, [row[:-1] for row in rows])
        return list(zip(found, (row[-1] for row in rows), strict=True))

    async def retry(self, delivery_id: str, tenant_id: str, actor: str, key_id: str | None = None) -> DeliveryRow:
        """Deliver again what failed or has an unknown outcome. Raises NotFound, Conflict."""
        check_identifier(delivery_id, "the delivery")
        return await self._store.commit(RetryDelivery(delivery_id, tenant_id, actor, key_id))

    async def used_masters(self) -> set[str]:
        """The ids of the master keys that encrypt secrets of addresses."""
        return {row.master_id for row in await self.list()}

    async def reseal(self, actor: str) -> int:
        """Encrypt all secrets again with the first master key. Returns how many addresses changed."""
        rows = await self.list()
        return sum([await self._store.commit(SealAgain(row.address_id, self._masters, actor)) for row in rows])

    def _checked(self, new: NewAddress) -> AddressOptions:
        """The options of a new address. Raises BadInput with the name of the field."""
        if not _NAME.fullmatch(new.name):
            raise BadInput(
                "name: expected 1 to 64 letters, digits and - _ . , since decisions by link are recorded with it"
            )
        if new.kind not in KINDS:
            raise BadInput(f"kind: expected one of {', '.join(KINDS)}")
        if new.links not in LINKS:
            raise BadInput(f"links: expected one of {', '.join(LINKS)}")
        for kind in new.kinds:
            if kind not in REVIEW_KINDS:
                raise BadInput(f"kinds: {kind[:40]!r} is not one of {', '.join(REVIEW_KINDS)}")
        options = AddressOptions(
            links=new.links, content=new.content, repeat_safe=new.repeat_safe, kinds=tuple(new.kinds)
        )
        return self._mail_options(new, options) if new.kind == "email" else self._url_options(new, options)

    def _url_options(self, new: NewAddress, options: AddressOptions) -> AddressOptions:
        if new.to or new.sender or new.server or new.username or new.password or new.port is not None:
            raise BadInput("to, sender, server, port, username and password are for the kind email")
        try:
            url = parse_url(new.url)
        except UrlInvalid as error:
            raise BadInput(f"url: {error}") from None
        if not url.is_secure and not self._policy.networks:
            raise BadInput(
                "url: use https. The operator can allow networks with OVERNIGHT_OUTGOING_ALLOW, which also allows http"
            )
        return options

    def _mail_options(self, new: NewAddress, options: AddressOptions) -> AddressOptions:
        if new.url:
            raise BadInput("url: the kind email has none; it needs server, sender and to")
        for field, found in (("to", new.to), ("sender", (new.sender,))):
            for each in found:
                if not is_mail_address(each):
                    raise BadInput(f"{field}: {each[:80]!r} is not a mail address such as ann@example.com")
        if not 1 <= len(new.to) <= MAX_RECIPIENTS:
            raise BadInput(f"to: expected 1 to {MAX_RECIPIENTS} mail addresses")
        if not _SERVER.fullmatch(new.server):
            raise BadInput("server: expected the host name of an SMTP server")
        if new.security not in SECURITY:
            raise BadInput(f"security: expected one of {', '.join(SECURITY)}")
        if new.security == "none" and (new.username or new.password or not self._policy.networks):
            raise BadInput(
                "security: none sends mail unencrypted; only for servers of networks that the operator allows"
                " (OVERNIGHT_OUTGOING_ALLOW), and without a password"
            )
        port = PORTS[new.security] if new.port is None else new.port
        if not 1 <= port <= 65535:
            raise BadInput("port: expected a number from 1 to 65535")
        if bool(new.username) != bool(new.password):
            raise BadInput("username and password are required together")
        for field, text in (("username", new.username), ("password", new.password)):
            if len(text) > MAX_PASSWORD or not text.isprintable():
                raise BadInput(f"{field}: expected one line of at most {MAX_PASSWORD} characters")
        return msgspec.structs.replace(
            options,
            to=tuple(new.to),
            sender=new.sender,
            server=new.server,
            port=port,
            security=new.security,
            username=new.username,
        )
