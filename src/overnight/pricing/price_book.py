"""The cost of a model call in whole micro-dollars, and its upper bound.

Prices of routing.yaml take precedence over the data of the ``genai-prices`` package (no network). Arithmetic is
exact: $p per million tokens is p micro-dollars per token, stored as an integer over a power of ten. Only the sum is
rounded, up. The price data is imported at the first look-up.

The sum covers tokens and a fee per request. Fees of provider-executed tools are in `provider_tools.py`. Providers'
charges by second or page are not covered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider, TieredPrices

    from overnight.domain.policies import Price

    from .usage import Usage

    Prices = Mapping[str, Decimal | TieredPrices]

Context = tuple[tuple[str, str], ...]
"""Request options that select a price: pairs like ``("service_tier", "priority")`` or ``("speed", "fast")``."""

UNLIMITED_TOKENS = 2**31 - 1
_LOOK_AHEAD = timedelta(hours=24)
_MAX_CACHED = 4096
_MAX_NAME = 256


class UnknownPrice(LookupError):
    """The price of the model is unknown, so budgets cannot limit its calls. The message contains the missing entry."""

    def __init__(self, model: str, provider: str | None) -> None:
        named, at = model[:_MAX_NAME], f" at {provider[:_MAX_NAME]!r}" if provider else ""
        every = f" ('{provider}/*' covers all of its models)" if provider and len(provider) < 65 else ""
        super().__init__(
            f"unknown price of model {named!r}{at}, so budgets cannot limit its calls. Set its price in"
            f" routing.yaml, 0 if calls are free: prices: {{{named!r}: {{input_usd_per_mtok: 0,"
            f" output_usd_per_mtok: 0}}}}{every}"
        )


class _Rates(NamedTuple):
    """Prices above ``start`` input tokens, in units per token; ``scale`` units are one micro-dollar."""

    start: int
    input: int
    cached: int
    cache_write: int
    cache_write_1h: int
    audio_input: int
    output: int
    audio_output: int
    highest_input: int
    highest_output: int


class ModelPrice:
    """The current price of one model; valid until ``valid_until`` (Unix seconds).

    ``source``: the price entry (``openai/gpt-5.4-mini``, or ``own/…``). ``context_window``: in tokens, None if
    unknown.
    """

    __slots__ = ("_fee", "_flat", "_highest_fee", "_scale", "_tiers", "context_window", "source", "valid_until")

    def __init__(
        self,
        source: str,
        windows: list[Prices],
        *,
        context_window: int | None = None,
        valid_until: float = float("inf"),
    ) -> None:
        """``windows``: the current prices, then those that may take effect before a call that starts now has ended."""
        self.source, self.context_window, self.valid_until = source, context_window, valid_until
        numbers = [number for prices in windows for price in prices.values() for _, number in _steps(price)]
        self._scale = 10 ** max(map(_fraction_digits, numbers))
        fees = [1000 * self._units(_at(prices.get("requests_kcount", Decimal(0)), 0)) for prices in windows]
        self._fee, self._highest_fee = fees[0], max(fees)
        # Highest first: the first tier that starts below a count applies.
        self._tiers: list[_Rates] = []
        for start in sorted({start for prices in windows for price in prices.values() for start, _ in _steps(price)}):
            self._tiers.insert(0, self._rates(windows, start, self._tiers[0] if self._tiers else None))
        self._flat = self._tiers[0] if len(self._tiers) == 1 else None

    def cost_microusd(
        self,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        audio_input_tokens: int = 0,
        audio_output_tokens: int = 0,
    ) -> int:
        """The price of a call in micro-dollars, rounded up.

        ``input_tokens`` and ``output_tokens`` are totals; the others are disjoint parts of them.

        Raises:
            ValueError: a count is negative, or the parts exceed their total.
        """
        plain_input = input_tokens - cached_tokens - cache_write_tokens - cache_write_1h_tokens - audio_input_tokens
        plain_output = output_tokens - audio_output_tokens
        rates = self._flat or self._tier(input_tokens)
        units = self._fee + plain_input * rates.input + cached_tokens * rates.cached + plain_output * rates.output
        lowest = min(plain_input, cached_tokens, plain_output)
        if cache_write_tokens or cache_write_1h_tokens or audio_input_tokens or audio_output_tokens:
            units += cache_write_tokens * rates.cache_write + cache_write_1h_tokens * rates.cache_write_1h
            units += audio_input_tokens * rates.audio_input + audio_output_tokens * rates.audio_output
            lowest = min(lowest, cache_write_tokens, cache_write_1h_tokens, audio_input_tokens, audio_output_tokens)
        if lowest < 0:
            raise ValueError("token counts must not be negative, and parts must not exceed their total")
        return -(-units // self._scale)

    @property
    def usd_per_mtok(self) -> tuple[float, float, float]:
        """Dollars per million tokens of input, cached input and output in the lowest tier. For display only."""
        rates = self._tiers[-1]
        return rates.input / self._scale, rates.cached / self._scale, rates.output / self._scale

    def cost_of(self, usage: Usage) -> int:
        """The price of reported or estimated usage in micro-dollars, rounded up."""
        return self.cost_microusd(
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
            usage.cache_write_tokens,
            usage.cache_write_1h_tokens,
            usage.audio_input_tokens,
            usage.audio_output_tokens,
        )

    def upper_bound_microusd(self, prompt_bytes: int, max_output_tokens: int) -> int:
        """The maximum cost of a call in micro-dollars: one token per byte, each of the most expensive kind.

        Valid for any division of at most ``prompt_bytes`` input tokens into plain, cached, written and audio tokens,
        in every reachable tier, at the prices of the next 24 hours. Content that the prompt only references (URL of
        an image, a file or an earlier response at the provider) must be included in ``prompt_bytes``.
        """
        rates = self._flat or self._tier(prompt_bytes)
        units = self._highest_fee + prompt_bytes * rates.highest_input + max_output_tokens * rates.highest_output
        return -(-units // self._scale)

    def affordable_output_tokens(self, prompt_bytes: int, available_microusd: int) -> int:
        """The maximum number of output tokens whose ``upper_bound_microusd`` does not exceed the available amount.

        At most ``UNLIMITED_TOKENS``; 0 if the prompt alone exceeds the amount.
        """
        rates = self._flat or self._tier(prompt_bytes)
        units = available_microusd * self._scale - self._highest_fee - prompt_bytes * rates.highest_input
        if units < 0:
            return 0
        return min(units // rates.highest_output, UNLIMITED_TOKENS) if rates.highest_output else UNLIMITED_TOKENS

    def _tier(self, input_tokens: int) -> _Rates:
        for rates in self._tiers:
            if input_tokens > rates.start:
                return rates
        return self._tiers[-1]

    def _units(self, price: Decimal) -> int:
        return int(Fraction(price) * self._scale)

    def _rates(self, windows: list[Prices], start: int, lower: _Rates | None) -> _Rates:
        units = [{key: self._units(_at(price, start)) for key, price in prices.items()} for prices in windows]
        tokens = [(key, rate) for window in units for key, rate in window.items() if key.endswith("_mtok")]
        inputs = [rate for key, rate in tokens if not key.startswith("output")]
        outputs = [rate for key, rate in tokens if key.startswith("output")]
        now = units[0]
        plain = now["input_mtok"]
        write = now.get("cache_write_mtok", plain)
        output_rates = [rate for key, rate in now.items() if key.startswith("output") and key.endswith("_mtok")]
        # A model with prices only for images or audio has no other charges.
        output = now.get("output_mtok", max(output_rates, default=0))
        return _Rates(
            start=start,
            input=plain,
            cached=now.get("cache_read_mtok", plain),
            cache_write=write,
            cache_write_1h=now.get("cache_write_1h_mtok", write),
            audio_input=now.get("input_audio_mtok", plain),
            output=output,
            audio_output=now.get("output_audio_mtok", output),
            highest_input=max(*inputs, lower.highest_input if lower else 0),
            highest_output=max(*outputs, 0, lower.highest_output if lower else 0),
        )


def _own_price(name: str, price: Price) -> ModelPrice:
    given = {
        "input_mtok": price.input_microusd_per_mtok,
        "cache_read_mtok": price.cached_input_microusd_per_mtok,
        "cache_write_mtok": price.cache_write_microusd_per_mtok,
        "cache_write_1h_mtok": price.cache_write_1h_microusd_per_mtok,
        "output_mtok": price.output_microusd_per_mtok,
    }
    per_mtok = {key: rate for key, rate in given.items() if rate is not None}
    if min(per_mtok.values()) < 0:
        raise ValueError(f"the price of {name[:_MAX_NAME]!r} is negative; set dollars per million tokens, 0 or more")
    return ModelPrice(f"own/{name}", [{key: Decimal(rate).scaleb(-6) for key, rate in per_mtok.items()}])


def _steps(price: Decimal | TieredPrices) -> list[tuple[int, Decimal]]:
    """``(start, price)`` in ascending order: the price above ``start`` input tokens."""
    if isinstance(price, Decimal):
        return [(0, price)]
    return [(0, price.base), *((tier.start, tier.price) for tier in price.tiers)]


def _at(price: Decimal | TieredPrices, start: int) -> Decimal:
    return [value for begin, value in _steps(price) if begin <= start][-1]


def _fraction_digits(price: Decimal) -> int:
    exponent = price.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


FREE = ModelPrice("none", [{"input_mtok": Decimal(0), "output_mtok": Decimal(0)}])
"""The price of offline models without a known price: they are never billed."""


class PriceBook:
    """Prices by model name: own prices first, then the data of ``genai-prices``.

    Args:
        overrides: prices by model (``gpt-5.4-mini``), by provider and model (``azure/gpt-5.4-mini``), or by a glob
            over either
            (``azure/*``). An exact name takes precedence, then the first matching glob. A negative price is a
                ValueError.
        clock: returns Unix seconds; prices change by date, and at some providers by the hour.
    """

    def __init__(self, overrides: Mapping[str, Price] | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._own = {name: _own_price(name, price) for name, price in (overrides or {}).items()}
        self._own_globs = [(name, price) for name, price in self._own.items() if not {*"*?["}.isdisjoint(name)]
        self._clock = clock
        # Model names come from requests, so both caches are bounded.
        self._known: dict[tuple[str, str | None, Context], ModelPrice] = {}
        self._unknown: set[tuple[str, str | None, Context]] = set()

    def price(self, model: str, provider_hint: str | None = None, context: Context = ()) -> ModelPrice:
        """The current price of the model. Raises UnknownPrice.

        ``provider_hint`` selects between providers of one model. An unknown hint or prefix ``provider/`` is ignored,
        and the model's vendor is used. ``context`` selects service options with other prices.
        """
        key = (model, provider_hint, context)
        found = self._known.get(key)
        if found is not None and self._clock() < found.valid_until:
            return found
        found = None
        if key not in self._unknown and len(model) <= _MAX_NAME and len(provider_hint or "") <= _MAX_NAME:
            found = self._override_of(f"{provider_hint}/{model}", model) or self._listed(model, provider_hint, context)
        if found is None:
            if len(self._unknown) >= _MAX_CACHED:
                self._unknown.clear()
            if len(model) <= _MAX_NAME:
                self._unknown.add(key)
            raise UnknownPrice(model, provider_hint)
        self._known.pop(key, None)
        if len(self._known) >= _MAX_CACHED:
            del self._known[next(iter(self._known))]
        self._known[key] = found
        return found

    def load(self) -> None:
        """Import the price data now instead of at the first look-up (about 0.2 s)."""
        import genai_prices.data  # noqa: F401  # pyright: ignore[reportUnusedImport]

    def names(self, provider: str | None = None) -> list[str]:
        """The listed models of one provider, or of all providers."""
        from genai_prices.data import providers
        from genai_prices.data_snapshot import find_provider_by_id

        found = find_provider_by_id(providers, provider) if provider else None
        return sorted({info.id for one in ([found] if found else providers) for info in one.models})

    def _override_of(self, *names: str) -> ModelPrice | None:
        exact = (self._own[name] for name in names if name in self._own)
        by_glob = (price for glob, price in self._own_globs for name in names if fnmatchcase(name, glob))
        return next(exact, None) or next(by_glob, None)

    def _listed(self, model: str, provider_hint: str | None, context: Context) -> ModelPrice | None:
        for provider, info in _matches(model.lower().strip(), provider_hint):
            now = datetime.fromtimestamp(self._clock(), UTC)
            changes = sorted(change for change in _changes(info, now) if now < change <= now + _LOOK_AHEAD)
            # A provider that lists another vendor's model does not list its variants.
            chosen = dict(context) if any(info is one for one in provider.models) else None
            windows = [_listed_prices(info, moment, chosen) for moment in (now, *changes)]
            if all("input_mtok" in prices for prices in windows):
                return ModelPrice(
                    f"{provider.id}/{info.id}",
                    windows,
                    context_window=info.context_window,
                    valid_until=(changes[0] if changes else now + _LOOK_AHEAD).timestamp(),
                )
        return None


def _matches(model: str, provider_hint: str | None) -> Iterator[tuple[Provider, ModelInfo]]:
    """Providers that list the model: the hinted one, the one in the prefix, the vendor."""
    # The data itself instead of the library's snapshot, which caches every requested name without a limit.
    from genai_prices.data import providers
    from genai_prices.data_snapshot import find_provider_by_id

    prefix, slash, rest = model.partition("/")
    maker = next((one for one in providers if one.model_match is not None and one.model_match.is_match(model)), None)
    candidates = [
        (find_provider_by_id(providers, provider_hint) if provider_hint else None, model),
        (find_provider_by_id(providers, prefix) if slash and prefix else None, rest),
        (maker, model),
    ]
    for provider, name in candidates:
        if provider is not None and (info := provider.find_model(name, all_providers=providers)) is not None:
            yield provider, info


def _listed_prices(info: ModelInfo, moment: datetime, context: Mapping[str, str] | None) -> Prices:
    prices = vars(info.get_prices(moment, context))
    return {key: price for key, price in prices.items() if price is not None and not key.startswith("_")}


def _changes(info: ModelInfo, now: datetime) -> Iterator[datetime]:
    """Times around ``now`` at which the price of the model may change."""
    from genai_prices.types import ModelPrice as OnePrice
    from genai_prices.types import StartDateConstraint

    conditions = [] if isinstance(info.prices, OnePrice) else info.prices
    for constraint in (condition.constraint for condition in (*conditions, *(info.price_variants or ()))):
        if isinstance(constraint, StartDateConstraint):
            yield datetime.combine(constraint.start_date, datetime.min.time(), UTC)
        elif constraint is not None:
            for clock_time in (constraint.start_time, constraint.end_time):
                for days in (-1, 0, 1, 2):
                    day = (now + timedelta(days=days)).date()
                    yield datetime.combine(day, clock_time, clock_time.tzinfo or UTC)
