"""Calls with more tokens than a rate limit allows in a minute."""

from overnight.store import Store
from overnight.testing import spawn_scripted_provider
from serving import routed, serving

ROUTING = routed(
    "rate_limits: [{scope: tenant, tokens_per_minute: 1000}]\ndeadlines: {default_ms: 100, queue_ms: 100}\n"
)


async def test_actual_usage_counts_for_large_calls(store: Store) -> None:
    with spawn_scripted_provider() as provider:
        provider.set_rules("rules: [{answer: {text: hi, usage: {prompt_tokens: 1000, completion_tokens: 500}}}]")
        async with serving(store, provider, ROUTING) as served:
            assert (await served.ask()).status_code == 200
            refused = await served.ask()
            assert refused.status_code == 429
            # 1,500 tokens are a minute and a half of 1,000 a minute, though 8,192 and more were held.
            assert int(refused.headers["retry-after"]) > 60
