"""Process settings from the environment. Secrets come from there, never from the brain."""

import os
import re
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from overnight.domain import BadInput, check_identifier, parse_whole

AUTH_MODES = ("auto", "required", "off")


MAX_COUNT = 1_000_000
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


def _count(variable: str, text: str | None, default: int) -> int:
    """A count from the environment. Raises BadInput."""
    number = parse_whole(text, MAX_COUNT) if text else default
    if not number:
        raise BadInput(f"{variable}: expected a whole number from 1 to {MAX_COUNT:,}")
    return number


def _public_url() -> str:
    """OVERNIGHT_PUBLIC_URL without a slash at its end. Raises BadInput."""
    url = (os.environ.get("OVERNIGHT_PUBLIC_URL") or "").rstrip("/")
    if not url:
        return ""
    found = urlsplit(url)
    if (
        found.scheme not in ("http", "https")
        or not found.hostname
        or found.query
        or found.fragment
        or "@" in found.netloc
    ):
        raise BadInput(f"OVERNIGHT_PUBLIC_URL: {url[:80]!r} is not an address such as https://overnight.example.com")
    return url


def _trusted_proxies() -> tuple[str, ...]:
    """OVERNIGHT_TRUSTED_PROXIES: addresses and CIDR blocks, separated by commas. Raises BadInput."""
    found = [each.strip() for each in (os.environ.get("OVERNIGHT_TRUSTED_PROXIES") or "").split(",") if each.strip()]
    for each in found:
        try:
            ip_network(each, strict=False)
        except ValueError:
            raise BadInput(f"OVERNIGHT_TRUSTED_PROXIES: {each[:40]!r} is not an address or a CIDR block") from None
    return tuple(found)


def _host_names() -> tuple[str, ...]:
    """OVERNIGHT_HOSTS: host names, separated by commas, in lower case. Raises BadInput."""
    found = [each.strip().lower() for each in (os.environ.get("OVERNIGHT_HOSTS") or "").split(",") if each.strip()]
    for each in found:
        if not _HOST_NAME.fullmatch(each):
            raise BadInput(
                f"OVERNIGHT_HOSTS: {each[:80]!r} is not a host name such as host.docker.internal; omit scheme and port"
            )
    return tuple(found)


def _check_database_url(url: str) -> None:
    """Raises BadInput for the scheme of another database."""
    addressed = "://" in url or url.startswith(("sqlite:", "postgres:", "postgresql:"))
    if addressed and not url.startswith(("postgresql://", "postgres://", "sqlite:///")):
        scheme = url.partition(":")[0] + (":" + "//" * ("://" in url))
        raise BadInput(
            f"DATABASE_URL: unsupported scheme {scheme}. Use postgresql://… or sqlite:///PATH, or set"
            " OVERNIGHT_DATABASE_URL, which takes precedence"
        )


def _outgoing() -> tuple[str, ...]:
    """OVERNIGHT_OUTGOING_ALLOW: networks, and names behind a proxy, separated by commas. Raises BadInput."""
    found = [each.strip() for each in (os.environ.get("OVERNIGHT_OUTGOING_ALLOW") or "").split(",") if each.strip()]
    for each in found:
        if "/" in each:
            try:
                ip_network(each)
            except ValueError:
                raise BadInput(
                    f"OVERNIGHT_OUTGOING_ALLOW: {each[:40]!r} is not a network such as 10.1.0.0/16"
                ) from None
        elif not re.fullmatch(r"[A-Za-z0-9*?_.:-]{1,253}", each):
            raise BadInput(f"OVERNIGHT_OUTGOING_ALLOW: {each[:40]!r} is not a network or a host name")
    return tuple(found)


class Settings(msgspec.Struct, frozen=True):
    """Settings of a process. `home` contains the ledger if DATABASE_URL is unset; `brain` is the configuration folder.

    A folder set by OVERNIGHT_BRAIN must exist. The default folder may be missing; then there are no budgets and no
    limits.
    """

    home: Path
    database_url: str
    brain: Path
    tenant_id: str = "default"
    offline_base_url: str | None = None
    auth: str = "auto"
    brain_named: bool = False
    max_connections: int = 16_384
    max_connections_per_address: int = 4_096
    max_connections_per_key: int = 2_048
    event_log: Path | None = None
    event_log_by: str = "all"
    event_log_mb: int = 64
    event_log_files: int = 20
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    access_log: str = ""
    outgoing_allow: tuple[str, ...] = ()

    @staticmethod
    def from_environment() -> "Settings":
        """Read the settings from the environment. Defaults are in parentheses.

        - OVERNIGHT_HOME (./.overnight), DATABASE_URL (SQLite in the home), OVERNIGHT_BRAIN (./brain), OVERNIGHT_TENANT (default).
        - OVERNIGHT_OFFLINE_BASE_URL: URL of a scripted provider, which then serves every model.
        - OVERNIGHT_AUTH: when calls require a key: auto (except on loopback while no key exists), required, or off (loopback
          only).
        - OVERNIGHT_MAX_CONNECTIONS (16384), _PER_ADDRESS (4096), _PER_KEY (2048): limits of concurrent connections.
        - OVERNIGHT_EVENT_LOG (none): folder of the event log, with one file for `all` tenants or one for each `tenant` (_BY,
          all), rotated at _MB (64) with _FILES (20) rotated files kept.
        - OVERNIGHT_PUBLIC_URL: address of the gateway for clients, used in links.
        - OVERNIGHT_TRUSTED_PROXIES (none): addresses whose forwarded headers are read.
        - OVERNIGHT_HOSTS (none): further names of this machine that a gateway on loopback accepts.
        - OVERNIGHT_OUTGOING_ALLOW (none): non-public networks, and names behind a proxy, that addresses registered by tenants
          may reach.
        - OVERNIGHT_ACCESS_LOG (none): a file, or 1 for standard error.

        Raises:
            BadInput: a variable has an invalid value.
        """
        home = Path(os.environ.get("OVERNIGHT_HOME") or ".overnight").absolute()
        url = os.environ.get("OVERNIGHT_DATABASE_URL") or os.environ.get("DATABASE_URL") or str(home / "ledger.db")
        _check_database_url(url)
        named = os.environ.get("OVERNIGHT_BRAIN")
        brain = Path(named or "brain").absolute()
        tenant = check_identifier(os.environ.get("OVERNIGHT_TENANT") or "default", "OVERNIGHT_TENANT")
        auth = os.environ.get("OVERNIGHT_AUTH") or "auto"
        if auth not in AUTH_MODES:
            raise BadInput(f"OVERNIGHT_AUTH: {auth[:40]!r} is not one of {', '.join(AUTH_MODES)}")
        offline = os.environ.get("OVERNIGHT_OFFLINE_BASE_URL") or None
        event_log, by = os.environ.get("OVERNIGHT_EVENT_LOG"), os.environ.get("OVERNIGHT_EVENT_LOG_BY") or "all"
        if by not in ("all", "tenant"):
            raise BadInput(f"OVERNIGHT_EVENT_LOG_BY: {by[:40]!r} is not one of all, tenant")
        total = _count("OVERNIGHT_MAX_CONNECTIONS", os.environ.get("OVERNIGHT_MAX_CONNECTIONS"), 16_384)
        per_address = os.environ.get("OVERNIGHT_MAX_CONNECTIONS_PER_ADDRESS")
        per_key = os.environ.get("OVERNIGHT_MAX_CONNECTIONS_PER_KEY")
        return Settings(
            home=home,
            database_url=url,
            brain=brain,
            tenant_id=tenant,
            offline_base_url=offline,
            auth=auth,
            brain_named=bool(named),
            max_connections=total,
            max_connections_per_address=_count("OVERNIGHT_MAX_CONNECTIONS_PER_ADDRESS", per_address, 4_096),
            max_connections_per_key=_count("OVERNIGHT_MAX_CONNECTIONS_PER_KEY", per_key, 2_048),
            event_log=Path(event_log).absolute() if event_log else None,
            event_log_by=by,
            event_log_mb=_count("OVERNIGHT_EVENT_LOG_MB", os.environ.get("OVERNIGHT_EVENT_LOG_MB"), 64),
            event_log_files=_count("OVERNIGHT_EVENT_LOG_FILES", os.environ.get("OVERNIGHT_EVENT_LOG_FILES"), 20),
            public_url=_public_url(),
            trusted_proxies=_trusted_proxies(),
            hosts=_host_names(),
            access_log=os.environ.get("OVERNIGHT_ACCESS_LOG") or "",
            outgoing_allow=_outgoing(),
        )

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables for a child process. A brain folder in use is set, so that the
        child requires it."""
        found = {
            "OVERNIGHT_HOME": str(self.home),
            "OVERNIGHT_DATABASE_URL": self.database_url,
            "OVERNIGHT_TENANT": self.tenant_id,
        }
        return found | ({"OVERNIGHT_BRAIN": str(self.brain)} if self.has_brain else {})

    @property
    def has_brain(self) -> bool:
        """Whether the brain folder exists or was set."""
        return self.brain_named or self.brain.exists()

    @property
    def ledger_file(self) -> Path | None:
        """The SQLite file, or None on PostgreSQL."""
        if self.database_url.startswith(("postgresql://", "postgres://")):
            return None
        return Path(self.database_url.removeprefix("sqlite:///"))
