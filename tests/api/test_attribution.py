"""Attribution of calls: own headers, baggage, trace context, headers of other products, and the body."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.api.attribution import attribution
from overnight.domain import Attribution, BadInput, Forbidden, KeyScope, read_traceparent, span_of, traceparent_of
from overnight.keys import Keyring, VirtualKey
from overnight.store import Store
from overnight.testing import SpawnedProvider
from recording_provider import recording_provider
from serving import Served, serving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def said(key: VirtualKey | None = None, **headers: str) -> Attribution:
    """Of headers, `_` standing for `-`, in the order given."""
    return attribution([(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()], key)


OTHERS = [
    ("external_id", "x_litellm_trace_id"),
    ("external_id", "x_portkey_trace_id"),
    ("session_id", "x_litellm_session_id"),
    ("session_id", "helicone_session_id"),
    ("session_id", "x_claude_code_session_id"),
    ("session_id", "session_id"),
    ("session_id", "thread_id"),
]


@pytest.mark.parametrize(("field", "header"), OTHERS)
def test_headers_of_other_products_work_and_ours_take_precedence(field: str, header: str) -> None:
    assert getattr(said(**{header: "theirs"}), field) == "theirs"
    own = {"external_id": "x_job_id", "session_id": "x_session_id"}[field]
    for pair in ({own: "ours", header: "theirs"}, {header: "theirs", own: "ours"}):
        assert getattr(said(**pair), field) == "ours"
    assert said(**{header: "theirs", "baggage": "job=b,session=b"}) == said(baggage="job=b,session=b")


def test_invalid_identifiers_in_foreign_headers_are_ignored() -> None:
    for _, header in OTHERS:
        for value in ("", "a;b", "x" * 201, "é"):
            assert said(**{header: value}) == Attribution()
    assert said(baggage="job=a%3Bb,job_id,=x,session= s1 ;p=1") == Attribution(session_id="s1")
    with pytest.raises(BadInput, match="x-job-id"):
        said(x_job_id="a;b")


def test_baggage_names_job_agent_and_session() -> None:
    found = said(baggage="userId=alice, job=nightly%201;ttl=3 ,agent=triage,session=s-1,tenant=evil,x-tenant-id=evil")
    assert found == Attribution(external_id="nightly 1", agent_id="triage", session_id="s-1")
    ours = "job_" + "0" * 32
    assert said(baggage=f"job={ours}").job_id == ours
    otel = said(baggage="gen_ai.agent.name=triage,gen_ai.conversation.id=c1")
    assert (otel.agent_id, otel.session_id) == ("triage", "c1")
    assert said(baggage="a=1," * 100 + "job=late").external_id is None
    two = attribution([(b"baggage", b"job=one"), (b"baggage", b"agent=two")])
    assert (two.external_id, two.agent_id) == ("one", "two")


def test_tags_are_bounded_and_unique() -> None:
    assert said(x_tags=" eu, gold,eu,,batch:7 ").tags == ("eu", "gold", "batch:7")
    assert len(said(x_tags=",".join(map(str, range(16)))).tags) == 16
    for wrong in (",".join(map(str, range(17))), "a;b", "x" * 201):
        with pytest.raises(BadInput, match="x-tags"):
            said(x_tags=wrong)


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        "",
        "-" * 55,
    ],
)
def test_invalid_traceparent_is_ignored(value: str) -> None:
    assert read_traceparent(value) is None
    assert said(traceparent=value) == Attribution()


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_trace_continues_with_a_new_span(value: str) -> None:
    trace = read_traceparent(value)
    if trace is not None:
        call = "call_" + "0123456789abcdef" * 2
        following = read_traceparent(traceparent_of(trace.trace_id, call, trace.flags).decode())
        assert following == (trace.trace_id, span_of(call), trace.flags)


def test_later_traceparent_version_is_parsed() -> None:
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds") == (TRACE, SPAN, "01")
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01x") is None


def test_key_binding_overrides_headers_and_metadata() -> None:
    key = VirtualKey("key_1", "acme", "laptop", frozenset({"calls"}), "bot", "nightly", ("m",), ("r",))
    found = said(key, baggage="agent=other")
    assert found == Attribution(
        "acme",
        agent_id="bot",
        workflow="nightly",
        actor="laptop",
        key_id="key_1",
        models=("m",),
        routes=("r",),
        key_scope=KeyScope("bot", "nightly"),
        operates=False,
    )
    assert said(key, x_tenant_id="acme", x_agent_name="bot", x_workflow="nightly") == found
    for header in ("x_tenant_id", "x_agent_name", "x_workflow"):
        with pytest.raises(Forbidden, match=header.replace("_", "-")):
            said(key, **{header: "other"})


# ── in calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_calls_without_ids_receive_the_id_of_their_new_job(served: Served) -> None:
    one, other = await served.ask(), await served.ask()
    assert one.headers["x-job-id"] != other.headers["x-job-id"]
    job = await served.ledger.job(one.headers["x-job-id"])
    assert (job.unattributed, job.state) == (1, "succeeded")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-litellm-trace-id": "run-7"},
        {"x-portkey-trace-id": "run-7"},
        {"baggage": "job=run-7"},
        {"helicone-session-id": "run-7"},
        {"X-Claude-Code-Session-Id": "run-7"},
    ],
)
async def test_calls_of_a_third_party_client_form_one_job(served: Served, headers: dict[str, str]) -> None:
    jobs = {(await served.ask(f"question {n}", headers=headers)).headers["x-job-id"] for n in range(3)}
    assert len(jobs) == 1
    job = await served.ledger.job(jobs.pop())
    assert job.external_id in ("run-7", "session:run-7")


async def test_prompt_cache_key_is_recorded_and_forms_no_job(
    served: Served,
) -> None:
    answers = [await served.ask(f"question {n}", prompt_cache_key="my-app") for n in range(2)]
    jobs = [answer.headers["x-job-id"] for answer in answers]
    assert jobs[0] != jobs[1]
    for job in jobs:
        assert (await served.events(job))[1].facts.session_id == "my-app"
        assert (await served.ledger.job(job)).unattributed
    named = await served.ask(prompt_cache_key="my-app", headers={"x-session-id": "s"})
    assert (await served.ledger.job(named.headers["x-job-id"])).external_id == "session:s"
    assert (await served.ask(prompt_cache_key="ä;" * 200)).status_code == 200


async def test_upstream_receives_the_recorded_span(store: Store, provider: SpawnedProvider) -> None:
    async with recording_provider() as upstream:
        routing = (
            f'{{default_model: m, providers: {{local: {{base_url: "{upstream.base_url}", models: [m]}}}},'
            " prices: {m: {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}}"
        )
        async with serving(store, provider, routing, environment={"X": "x"}, keys=Keyring(store)) as served:
            sent: dict[str, Any] = {"traceparent": f"00-{TRACE}-{SPAN}-00", "baggage": "job=j", "tracestate": "v=1"}
            for _ in range(2):
                await served.ask(headers=sent)
            called = [event.facts for event in await served.events("j") if event.facts.event == "model_called"]
            await served.ask()
    shown = [headers.get("traceparent") for headers in upstream.seen]
    assert shown == [f"00-{TRACE}-{facts.span_id}-00" for facts in called] + [None]
    assert called[0].span_id != called[1].span_id
    assert [facts.detail["parent_span_id"] for facts in called] == [SPAN, SPAN]
    assert not any({"baggage", "tracestate"} & headers.keys() for headers in upstream.seen)
