"""The records of tools/*.yaml and policies/*.yaml that other packages read: contracts of tools, and rules about their calls."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from .globs import Names
from .json_pointer import Pointer
from .policies import FAILURE_CLASSES

READ, WRITE, DESTRUCTIVE = "read", "write", "destructive"
DEFAULT_CLASS = WRITE
"""The class of a tool without a contract."""
TOOL_CLASSES = (READ, WRITE, DESTRUCTIVE)
TOOL_NAME = r"[A-Za-z0-9_-]{1,64}"
ALLOW, APPROVE, DENY = "allow", "approve", "deny"
VERDICTS = (ALLOW, APPROVE, DENY)
QUARANTINE, PASS, RETRY = "quarantine", "pass", "retry"
DRIFT_ACTIONS = (QUARANTINE, PASS, RETRY)
KEY_SCOPES = ("job", "tenant")
REPEATS = ("same", "new")
TOOL_FAILURES = FAILURE_CLASSES
DEFAULT_EXPIRES_MS = 86_400_000

UNSET: Any = msgspec.UNSET


class ValueTest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tests of one value, which must all hold. `equals` and `in_` compare JSON values with their types; `matches` is a regular
    expression that is searched in text; `present` is whether the value exists at all (null is a value)."""

    gt: int | float | None = None
    ge: int | float | None = None
    lt: int | float | None = None
    le: int | float | None = None
    equals: Any = UNSET
    in_: tuple[Any, ...] = msgspec.field(default=(), name="in")
    matches: str | None = None
    present: bool | None = None


class ArgumentTest(msgspec.Struct, frozen=True):
    """Tests of the value at a pointer."""

    pointer: Pointer
    test: ValueTest


class TextTest(msgspec.Struct, frozen=True):
    """A regular expression that is searched in the whole result as text, and must be found, or with `absent` not be found."""

    text: str
    absent: bool = False


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request of an HTTP executor, with templates in its parts.

    `not_done`: the statuses that prove that nothing was done. `provider_id`: the place of the provider's id in the answer.
    `allow`: the hosts and ports that it may also connect to.
    """

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = {}
    body: Any = None
    provider_id: Pointer | None = None
    not_done: tuple[int, ...] = ()
    allow: tuple[str, ...] = ()


class StatusCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A request that finds out whether an effect was done: `done` is the place of the provider's id if it was; `not_done` is the
    test that proves that it was not; neither: it cannot tell."""

    http: HttpRequest
    done: Pointer
    not_done: ArgumentTest | None = None
    settle_after_ms: int = 0


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one tool. `amount`: the place of the amount in US dollars in the arguments."""

    requests_per_minute: int | None = None
    max_usd_per_day_microusd: int | None = None
    amount: Pointer | None = None


class ToolContract(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a tool's contract: `tools/NAME.yaml`. Durations are in milliseconds.

    Fields:
        input, output: JSON Schemas (2020-12) of its arguments and its result; None: any.
        key: the template of its idempotency key. key_scope: whether a key holds in its job or in the whole tenant.
        repeats: whether a repeated call without a key is the same effect or a new one.
        http: its executor. status: its status check. repeat_safe: the provider ignores a repeated key, for `key_lifetime_ms`.
        retry: the maximum of attempts by failure class, if it was certainly not done.
        keep: the places of its result that callers see; empty: all. asserts: tests of the whole result.
        drift: what becomes of a result that does not fit.
        digest: of everything in it, in hex.
    """

    name: str
    version: int
    tool_class: str = WRITE
    input: Any = None
    output: Any = None
    key: str | None = None
    key_scope: str = "job"
    repeats: str = "same"
    http: HttpRequest | None = None
    status: StatusCheck | None = None
    repeat_safe: bool = False
    key_lifetime_ms: int | None = None
    timeout_ms: int | None = None
    retry: Mapping[str, int] = {}
    limits: ToolLimits = ToolLimits()
    keep: tuple[Pointer, ...] = ()
    asserts: tuple[ArgumentTest | TextTest, ...] = ()
    drift: str = QUARANTINE
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            msgspec.structs.force_setattr(self, "digest", digest_of(self))

    @property
    def label(self) -> str:
        """Its name and version, as effects record it: `refund@3`."""
        return f"{self.name}@{self.version}"


class ToolWhen(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on a tool call, which must all be met.

    `arguments`: tests of its arguments. `amount`: a test of the amount that its contract names. `first_use`: whether the API key
    has not used the tool before.
    """

    tool: Names | None = None
    tool_class: tuple[str, ...] = ()
    arguments: tuple[ArgumentTest, ...] = ()
    amount: ValueTest | None = None
    first_use: bool | None = None
    tenant: Names | None = None
    agent: Names | None = None
    workflow: Names | None = None


class ToolRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of `policies/*.yaml`.

    `do`: allow, approve or deny. `by`: the names or roles that may approve; empty: anyone who may decide reviews. `name` is its
    own or its place, such as `money.rules[0]`. `digest` covers what it matches, what it does and who may approve.
    """

    name: str
    when: ToolWhen
    do: str
    by: tuple[str, ...] = ()
    expires_ms: int = DEFAULT_EXPIRES_MS
    why: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            when = {name: _plain(getattr(self.when, name)) for name in self.when.__struct_fields__}
            meaning = (when, self.do, sorted(set(self.by)))
            msgspec.structs.force_setattr(self, "digest", digest_of(meaning))


class Sampling(msgspec.Struct, frozen=True):
    """The share of finished calls that people rate, from 0 to 1, and by glob of the agent's name."""

    share: float = 0.0
    agents: Mapping[str, float] = {}


class ToolDefinitions(msgspec.Struct, frozen=True, kw_only=True):
    """All contracts and rules of one version of the brain.

    `contracts`: by name, then by version. `rules`: in the order of files and lines. `default`: the verdict on calls that no rule
    matches.
    """

    contracts: Mapping[str, Mapping[int, ToolContract]] = {}
    rules: tuple[ToolRule, ...] = ()
    default: str = ALLOW
    sampling: Sampling = Sampling()
    instructions: str | None = None
    notify: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((tuple(self.contracts), len(self.rules), self.default))

    @property
    def is_empty(self) -> bool:
        """Whether they say nothing about any call."""
        return not self.rules and not self.contracts and self.default == ALLOW

    def contract(self, tool: str, version: int | None = None) -> ToolContract | None:
        """The contract of a tool: this version, or the highest."""
        versions = self.contracts.get(tool)
        if not versions:
            return None
        return versions.get(max(versions) if version is None else version)


class ToolCallFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a tool call that rules are asked about.

    - `tool_class`: counts only for a tool without contract. `version`: of its contract; None: the highest.
    - `arguments`: decoded JSON. `first_use`: whether the API key uses the tool for the first time; None: unknown, which only
      makes rules stricter.
    """

    tool: str
    tool_class: str = WRITE
    tenant_id: str
    agent_id: str | None
    workflow: str | None
    arguments: Any
    first_use: bool | None = None
    version: int | None = None


class Allowed(msgspec.Struct, frozen=True):
    """The call may be made. `rule_name` is empty if no rule matched."""

    rule_name: str = ""


class Denied(msgspec.Struct, frozen=True):
    """The call must not be made."""

    rule_name: str
    why: str


class NeedsApproval(msgspec.Struct, frozen=True):
    """A person has to approve the call. `by`: the names or roles that may; empty: anyone who may decide reviews.

    `rule_digest` covers all matching rules and the contract: an approval under another digest does not permit the call.
    """

    rule_name: str
    why: str
    by: tuple[str, ...]
    expires_ms: int
    rule_digest: str


Verdict = Allowed | Denied | NeedsApproval


def digest_of(value: Any) -> str:
    """The SHA-256 of a record as JSON, in hex."""
    body = msgspec.json.encode(_plain(value), order="deterministic")
    return hashlib.sha256(body).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Names):
        return sorted(set(value.patterns))
    if isinstance(value, Pointer):
        return value.text
    if isinstance(value, ValueTest | TextTest):
        return msgspec.to_builtins(value)
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__ if name != "digest"}
        return {name: _plain(each) for name, each in fields.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value
