"""Prices: equal to the arithmetic of the price data, with a bound that no cost exceeds."""

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import NamedTuple

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price
from genai_prices.data import providers
from genai_prices.types import ModelPrice as TheirPrice
from genai_prices.types import Tier, TieredPrices, TimeOfDateConstraint
from hypothesis import given
from hypothesis import strategies as st

from overnight.pricing.price_book import (
    UNLIMITED_TOKENS,
    ModelPrice,
    PriceBook,
    UnknownPrice,
)
from overnight.pricing.usage import (
    Usage,
    anthropic_usage,
    estimated_usage,
    openai_usage,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def book():
    return PriceBook(clock=NOW.timestamp)


def exactly(micro_dollars):
    """Rounded up to whole micro-dollars."""
    return int(micro_dollars.to_integral_value(rounding="ROUND_CEILING"))


# ── against the library ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("provider", providers, ids=lambda provider: provider.id)
def test_costs_match_the_price_data(provider):
    ours = book()
    for info in provider.models:
        listed = provider.find_model(info.id, all_providers=providers)  # an id need not be a name it is called by
        if listed is None:
            continue
        try:
            price = ours.price(info.id, provider.id)
        except UnknownPrice:
            assert "input_mtok" not in vars(listed.get_prices(NOW))
            continue
        for read, cached, written in [(7, 0, 3), (199_999, 9, 1), (200_001, 200_000, 77), (600_000, 1, 123_457)]:
            with localcontext(prec=80):
                usage = TheirUsage(input_tokens=read, cache_read_tokens=cached, output_tokens=written)
                theirs = calc_price(usage, info.id, provider_id=provider.id, genai_request_timestamp=NOW).total_price
                assert price.cost_microusd(read, cached, written) >= exactly(theirs * 1_000_000)
                if "output_mtok" in vars(listed.get_prices(NOW)):
                    assert price.cost_microusd(read, cached, written) == exactly(theirs * 1_000_000), info.id
            assert price.upper_bound_microusd(read, written) >= price.cost_microusd(read, cached, written)


def test_cache_writes_and_speech_are_charged_at_their_own_price():
    price = book().price("claude-opus-4.6", "anthropic")
    with localcontext(prec=80):
        usage = TheirUsage(
            input_tokens=10_000,
            cache_read_tokens=1_000,
            cache_write_tokens=5_000,
            cache_write_1h_tokens=2_000,
            output_tokens=9,
        )
        theirs = calc_price(usage, "claude-opus-4.6", provider_id="anthropic", genai_request_timestamp=NOW).total_price
        used = Usage(
            input_tokens=10_000,
            cached_tokens=1_000,
            cache_write_tokens=3_000,
            cache_write_1h_tokens=2_000,
            output_tokens=9,
        )
        assert price.cost_of(used) == exactly(theirs * 1_000_000)
    spoken = ModelPrice(
        "x", [{"input_mtok": Decimal(1), "input_audio_mtok": Decimal(8), "output_audio_mtok": Decimal(20)}]
    )
    assert (
        spoken.cost_of(Usage(input_tokens=10, audio_input_tokens=4, output_tokens=1, audio_output_tokens=1))
        == 6 + 32 + 20
    )


def test_service_tiers_have_their_own_price():
    plain = book().price("gpt-5.4-mini", "openai")
    dear = book().price("gpt-5.4-mini", "openai", (("service_tier", "priority"),))
    assert dear.cost_microusd(1000, 0, 1000) > plain.cost_microusd(1000, 0, 1000)


# ── which model ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "provider", "source"),
    [
        ("gpt-5.4-mini", None, "openai/gpt-5.4-mini"),
        ("gpt-5.4-mini", "openai", "openai/gpt-5.4-mini"),
        ("GPT-5.4-Mini", "our-own-proxy", "openai/gpt-5.4-mini"),
        ("openai/gpt-5.4-mini", None, "openai/gpt-5.4-mini"),
        ("claude-opus-4.6", None, "anthropic/claude-opus-4-6"),
        ("anthropic/claude-opus-4.6", "our-own-proxy", "anthropic/claude-opus-4-6"),
        ("grok-4.20", None, "x-ai/grok-4.20"),
        ("text-embedding-3-small", "openai", "openai/text-embedding-3-small"),
    ],
)
def test_model_names_match_their_price(model, provider, source):
    assert book().price(model, provider).source == source


@pytest.mark.parametrize("model", ["no-such-model", "", "/", "openai/", "x" * 100_000, "openai/no\nsuch"])
@pytest.mark.parametrize("provider", [None, "", "openai", "no-such-provider", "y" * 100_000])
def test_unknown_models_are_rejected_with_a_short_message(model, provider):
    prices = book()
    for _ in range(2):
        with pytest.raises(UnknownPrice) as caught:
            prices.price(model, provider)
        assert len(str(caught.value)) < 1000


class Own(NamedTuple):
    input_microusd_per_mtok: int
    cached_input_microusd_per_mtok: int
    output_microusd_per_mtok: int
    cache_write_microusd_per_mtok: int | None = None
    cache_write_1h_microusd_per_mtok: int | None = None


def test_configured_prices_take_precedence():
    mine, azure = Own(500_000, 250_000, 2_000_000), Own(3_000_000, 3_000_000, 0)
    prices = PriceBook({"gpt-5.4-mini": mine, "azure/gpt-5.4-mini": azure, "local": Own(1, 1, 1)})
    assert prices.price("gpt-5.4-mini", "openai").source == "own/gpt-5.4-mini"
    assert prices.price("gpt-5.4-mini", "openai").cost_microusd(3, 2, 1) == 3
    assert prices.price("gpt-5.4-mini", "azure").cost_microusd(1, 0, 1000) == 3
    assert prices.price("local").cost_microusd(1, 0, 0) == 1
    assert prices.price("local").cost_microusd(500_000, 0, 500_001) == 2


@pytest.mark.parametrize("negative", [Own(-1, 0, 0), Own(0, -1, 0), Own(0, 0, -1)])
def test_negative_price_is_rejected_by_name(negative):
    with pytest.raises(ValueError, match="the price of 'gpt-5'"):
        PriceBook({"gpt-5": negative})


def test_the_price_data_is_not_imported_before_it_is_needed():
    check = "import sys, overnight.pricing.price_book; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# ── prices that change by the hour ──────────────────────────────────────────────────────────────────────────────────

HOURLY = [
    (provider.id, info.id)
    for provider in providers
    for info in provider.models
    if not isinstance(info.prices, TheirPrice)
    and any(isinstance(price.constraint, TimeOfDateConstraint) for price in info.prices)
]


@pytest.mark.parametrize(("provider", "model"), HOURLY)
def test_a_price_ends_when_the_next_one_begins(provider, model):
    now = NOW.timestamp()
    prices = PriceBook(clock=lambda: now)
    bound = prices.price(model, provider).upper_bound_microusd(50_000, 9_000)
    costs = set()
    for _ in range(8):
        price = prices.price(model, provider)
        assert now < price.valid_until <= now + 24 * 3600
        usage = TheirUsage(input_tokens=50_000, output_tokens=9_000)
        for moment in (now, price.valid_until - 1):
            at = datetime.fromtimestamp(moment, UTC)
            with localcontext(prec=80):
                theirs = calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
                assert price.cost_microusd(50_000, 0, 9_000) == exactly(theirs * 1_000_000)
        costs.add(price.cost_microusd(50_000, 0, 9_000))
        now = price.valid_until
        if now < NOW.timestamp() + 24 * 3600:
            assert bound >= prices.price(model, provider).cost_microusd(50_000, 0, 9_000)
    assert len(costs) > 1


# ── properties ──────────────────────────────────────────────────────────────────────────────────────────────────────

AMOUNTS = st.decimals(0, 500, allow_nan=False, allow_infinity=False, places=6) | st.sampled_from(
    [Decimal(0), Decimal("0.07999999999999999"), Decimal("1E+1"), Decimal("0.000000000000000001")]
)
STARTS = st.lists(st.integers(1, 3000), max_size=2, unique=True).map(sorted)
TIERED = st.builds(
    lambda base, starts, prices: TieredPrices(
        base=base, tiers=[Tier(start=start, price=price) for start, price in zip(starts, prices, strict=False)]
    ),
    AMOUNTS,
    STARTS,
    st.lists(AMOUNTS, min_size=2, max_size=2),
)
KEYS = [
    "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "input_audio_mtok", "output_mtok", "output_audio_mtok",
]  # fmt: skip
PRICES = st.builds(
    lambda plain, fee, rest: {"input_mtok": plain, "requests_kcount": fee, **rest},
    AMOUNTS | TIERED,
    AMOUNTS,
    st.dictionaries(st.sampled_from(KEYS), AMOUNTS | TIERED),
)
BOOKS = st.lists(PRICES, min_size=1, max_size=3).map(lambda windows: ModelPrice("x", windows))
COUNTS = st.integers(0, 5000)


@given(st.lists(PRICES, min_size=1, max_size=3), COUNTS, COUNTS, st.lists(COUNTS, min_size=6, max_size=6))
def test_no_cost_exceeds_the_bound(windows, prompt_bytes, max_output, parts):
    bound = ModelPrice("x", windows).upper_bound_microusd(prompt_bytes, max_output)
    cached, written, written_1h, heard, read, spoken = parts
    read, spoken = min(read, prompt_bytes), min(spoken, max_output)
    cached = min(cached, read)
    written = min(written, read - cached)
    written_1h = min(written_1h, read - cached - written)
    heard = min(heard, read - cached - written - written_1h)
    output = max_output
    for window in windows:  # whichever of them is in force when the answer comes
        assert (
            ModelPrice("x", [window]).cost_microusd(read, cached, output, written, written_1h, heard, spoken) <= bound
        )


@given(BOOKS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_bound_rises_with_the_request(price, prompt_bytes, more_bytes, output, more_output):
    bound = price.upper_bound_microusd(prompt_bytes, output)
    assert bound <= price.upper_bound_microusd(prompt_bytes + more_bytes, output + more_output)


@given(BOOKS, COUNTS, st.integers(0, 50_000))
def test_affordable_tokens_are_the_maximum_that_fits(price, prompt_bytes, available):
    most = price.affordable_output_tokens(prompt_bytes, available)
    assert 0 <= most <= UNLIMITED_TOKENS
    if price.upper_bound_microusd(prompt_bytes, 0) > available:
        assert most == 0
    else:
        assert price.upper_bound_microusd(prompt_bytes, most) <= available
        assert most == UNLIMITED_TOKENS or price.upper_bound_microusd(prompt_bytes, most + 1) > available


@given(AMOUNTS, AMOUNTS, AMOUNTS, COUNTS, COUNTS, COUNTS)
def test_a_flat_price_is_a_plain_sum_rounded_up(plain, cached_price, output_price, plain_tokens, cached, output):
    prices = {"input_mtok": plain, "cache_read_mtok": cached_price, "output_mtok": output_price}
    with localcontext(prec=80):
        expected = exactly(plain_tokens * plain + cached * cached_price + output * output_price)
    assert ModelPrice("x", [prices]).cost_microusd(plain_tokens + cached, cached, output) == expected


@pytest.mark.parametrize(
    "counts",
    [
        (1, 2, 0),
        (-1, 0, 0),
        (1, -1, 0),
        (1, 0, -1),
        (5, 3, 0, 3),
        (5, 0, 0, 0, 0, 6),
        (5, 0, 1, 0, 0, 0, 2),
        (5, 0, 0, -1, 1),
    ],
)
def test_counts_that_contradict_each_other_have_no_cost(counts):
    price = ModelPrice("x", [{"input_mtok": Decimal(1), "output_mtok": Decimal(2)}])
    with pytest.raises(ValueError, match="token counts"):
        price.cost_microusd(*counts)


# ── usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENAI_USAGE = [
    (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 8, "audio_tokens": 2},
        },
        {
            "input_tokens": 100,
            "output_tokens": 20,
            "cached_tokens": 60,
            "audio_input_tokens": 5,
            "reasoning_tokens": 8,
            "audio_output_tokens": 2,
        },
    ),
    (
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 8},
            "total_tokens": 120,
        },
        {"input_tokens": 100, "output_tokens": 20, "cached_tokens": 60, "reasoning_tokens": 8},
    ),
    ({"prompt_tokens": 9, "total_tokens": 9}, {"input_tokens": 9, "output_tokens": 0}),
    (
        {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": None, "completion_tokens_details": None},
        {"input_tokens": 9, "output_tokens": 1},
    ),
    (
        {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5},
        {"input_tokens": 9, "output_tokens": 1, "cached_tokens": 4},
    ),
    ({"prompt_tokens": 9.0, "completion_tokens": 1.0}, {"input_tokens": 9, "output_tokens": 1}),
    (  # reasoning beside the output, not inside it
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 40,
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        {"input_tokens": 9, "output_tokens": 31, "reasoning_tokens": 30, "adjusted": True},
    ),
    (
        {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10}},
        {"input_tokens": 9, "output_tokens": 1, "cached_tokens": 9, "adjusted": True},
    ),
    (
        {"prompt_tokens": 9, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 6}},
        {"input_tokens": 9, "output_tokens": 5, "reasoning_tokens": 5, "adjusted": True},
    ),
    (
        {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}},
        {"input_tokens": 9, "output_tokens": 5, "adjusted": True},
    ),
    (
        {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": []},
        {"input_tokens": 9, "output_tokens": 5, "adjusted": True},
    ),
]


@pytest.mark.parametrize(("sent", "read"), OPENAI_USAGE)
def test_openai_usage(sent, read):
    assert openai_usage(sent) == Usage(**read)


def test_anthropic_usage_counts_cached_tokens_once():
    sent = {
        "input_tokens": 10,
        "cache_read_input_tokens": 70,
        "cache_creation_input_tokens": 20,
        "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
        "output_tokens": 7,
    }
    assert anthropic_usage(sent) == Usage(
        input_tokens=100, cached_tokens=70, cache_write_tokens=15, cache_write_1h_tokens=5, output_tokens=7
    )
    thought = {"input_tokens": 3, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}}
    assert anthropic_usage(thought) == Usage(input_tokens=3, output_tokens=9, reasoning_tokens=4)
    assert anthropic_usage({"input_tokens": 3, "output_tokens": 1, "cache_creation": None}) == Usage(
        input_tokens=3, output_tokens=1
    )


@pytest.mark.parametrize("read", [openai_usage, anthropic_usage])
@pytest.mark.parametrize(
    "sent",
    [None, [], "7", 7, {}, {"tokens": 1}]
    + [{"input_tokens": count} for count in (None, -1, "9", True, 10**12, float("nan"), float("inf"), 0.5)],
)
def test_no_usable_counts_are_no_usage(read, sent):
    assert read(sent) is None


def test_estimate_is_marked():
    assert estimated_usage(9, 8) == Usage(input_tokens=3, output_tokens=2, estimated=True)
    assert estimated_usage(0, 0) == Usage(input_tokens=0, output_tokens=0, estimated=True)


VALUES = st.none() | st.integers(-5, 50) | st.sampled_from([True, "9", 1.5, 10**13, {}, [1], float("inf")])
NAMES = [
    "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "cached_tokens", "audio_tokens",
    "reasoning_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "ephemeral_1h_input_tokens",
]  # fmt: skip
PARTS = [
    "prompt_tokens_details",
    "completion_tokens_details",
    "input_tokens_details",
    "output_tokens_details",
    "cache_creation",
]
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES)


@given(
    OBJECTS, st.dictionaries(st.sampled_from(PARTS), OBJECTS | VALUES), st.sampled_from([openai_usage, anthropic_usage])
)
def test_any_usage_report_can_be_charged(counts, parts, read):
    usage = read({**counts, **parts})
    if usage is not None:
        price = ModelPrice("x", [{"input_mtok": Decimal(3), "cache_read_mtok": Decimal(1), "output_mtok": Decimal(15)}])
        assert 0 <= price.cost_of(usage) <= price.upper_bound_microusd(usage.input_tokens, usage.output_tokens)
        assert usage.reasoning_tokens <= usage.output_tokens
