"""Process settings, from the environment alone. Secrets are named there, never in the brain."""

import os
from pathlib import Path

import msgspec

from overnight.domain import BadInput, check_identifier

AUTH_MODES = ("auto", "required", "off")


class Settings(msgspec.Struct, frozen=True):
    """`home` holds the ledger when no DATABASE_URL is set; `brain` is the folder of plain files.

    A brain folder that was named must exist; the default one may be absent, and then there are no budgets and no limits.
    """

    home: Path
    database_url: str
    brain: Path
    tenant_id: str = "default"
    offline_base_url: str | None = None
    auth: str = "auto"
    brain_named: bool = False

    @staticmethod
    def from_environment() -> "Settings":
        """OVERNIGHT_HOME (./.overnight), DATABASE_URL (SQLite in the home), OVERNIGHT_BRAIN (./brain), OVERNIGHT_TENANT.

        OVERNIGHT_OFFLINE_BASE_URL names a scripted provider of one's own; every model is then asked there. OVERNIGHT_AUTH says
        whether calls need a key: auto (except on loopback while there is none), required, or off (on loopback alone).
        """
        home = Path(os.environ.get("OVERNIGHT_HOME") or ".overnight").absolute()
        url = os.environ.get("OVERNIGHT_DATABASE_URL") or os.environ.get("DATABASE_URL") or str(home / "ledger.db")
        addressed = "://" in url or url.startswith(("sqlite:", "postgres:", "postgresql:"))
        if addressed and not url.startswith(("postgresql://", "postgres://", "sqlite:///")):
            scheme = url.partition(":")[0] + (":" + "//" * ("://" in url))
            raise BadInput(
                f"DATABASE_URL: {scheme} is not known. Set it to postgresql://… or sqlite:///PATH, or set"
                " OVERNIGHT_DATABASE_URL, which is read first"
            )
        named = os.environ.get("OVERNIGHT_BRAIN")
        brain = Path(named or "brain").absolute()
        tenant = check_identifier(os.environ.get("OVERNIGHT_TENANT") or "default", "OVERNIGHT_TENANT")
        auth = os.environ.get("OVERNIGHT_AUTH") or "auto"
        if auth not in AUTH_MODES:
            raise BadInput(f"OVERNIGHT_AUTH: {auth[:40]!r} is none of {', '.join(AUTH_MODES)}")
        offline = os.environ.get("OVERNIGHT_OFFLINE_BASE_URL") or None
        return Settings(home, url, brain, tenant, offline, auth, bool(named))

    def environment(self) -> dict[str, str]:
        """The same settings for a child process. A brain folder that is used is named, so that no child goes on without it."""
        found = {
            "OVERNIGHT_HOME": str(self.home),
            "OVERNIGHT_DATABASE_URL": self.database_url,
            "OVERNIGHT_TENANT": self.tenant_id,
        }
        return found | ({"OVERNIGHT_BRAIN": str(self.brain)} if self.has_brain else {})

    @property
    def has_brain(self) -> bool:
        """Whether there is a brain folder to load, or one was named and must be there."""
        return self.brain_named or self.brain.exists()

    @property
    def ledger_file(self) -> Path | None:
        """The SQLite file, or None on PostgreSQL."""
        if self.database_url.startswith(("postgresql://", "postgres://")):
            return None
        return Path(self.database_url.removeprefix("sqlite:///"))
