"""Maximum output tokens by model. A provider rejects a request for more tokens instead of lowering it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from .price_book import ModelPrice

MIN_OUTPUT = 256
BYTES_PER_TOKEN = 4
_LIMITS = (
    # https://platform.claude.com/docs/en/about-claude/models/overview; 3.7 with the beta header output-128k-2025-02-19
    ("claude-instant*", 4096),
    ("claude-2*", 4096),
    ("claude-3-[hos]*", 4096),
    ("claude-3[-.]5-*", 8192),
    ("claude-3[-.]7-*", 128_000),
    ("claude-opus-4", 32_000),
    ("claude-4-opus*", 32_000),
    ("claude-opus-4[-.][01]*", 32_000),
    ("claude-opus-4-20*", 32_000),
    ("claude-opus-4[-.]5*", 64_000),
    ("claude-opus-4[-.][678]*", 128_000),
    ("claude-haiku-4[-.]5*", 64_000),
    ("claude-sonnet-4[-.]6*", 128_000),
    ("claude-sonnet-4[-.]5*", 64_000),
    ("claude-sonnet-4", 64_000),
    ("claude-4-sonnet*", 64_000),
    ("claude-sonnet-4[-.]0*", 64_000),
    ("claude-sonnet-4-20*", 64_000),
    ("claude-*-5", 128_000),
    ("claude-*-5[-.][125]*", 128_000),
    # https://developers.openai.com/api/docs/models
    ("gpt-3.5-*", 4096),
    ("gpt-4", 8192),
    ("gpt-4-0[36]*", 8192),
    ("gpt-4-32k*", 32_768),
    ("gpt-4-*", 4096),
    ("gpt-4o-2024-05-13", 4096),
    ("gpt-4o:extended", 64_000),
    ("gpt-4o-64k*", 64_000),
    ("gpt-4o*", 16_384),
    ("chatgpt-4o*", 16_384),
    ("gpt-4.1*", 32_768),
    ("gpt-4.5-preview*", 16_384),
    ("gpt-audio*", 16_384),
    ("gpt-5*-chat*", 16_384),
    ("gpt-5-pro*", 272_000),
    ("gpt-5", 128_000),
    ("gpt-5[-.]*", 128_000),
    ("gpt-6-*", 128_000),
    ("gpt-6.[12]-*", 128_000),
    ("o1-mini*", 65_536),
    ("o1-preview*", 32_768),
    ("o1*", 100_000),
    ("o3*", 100_000),
    ("o4-mini*", 100_000),
    ("codex-mini*", 100_000),
    ("computer-use-preview*", 1024),
    # https://ai.google.dev/gemini-api/docs/models; Gemini 4 shares one window between input and output
    ("gemini-1.5-*", 8192),
    ("gemini-2.0-flash-thinking*", 65_536),
    ("gemini-2.0-*", 8192),
    ("gemini-2.5-flash-image*", 32_768),
    ("gemini-2.5-*-tts*", 16_384),
    ("gemini-2.5-*", 65_536),
    ("gemini-3-pro-image*", 32_768),
    ("gemini-3[-.]*", 65_536),
    # https://api-docs.deepseek.com/quick_start/pricing
    ("deepseek-coder", 4096),
    ("deepseek-chat", 384_000),
    ("deepseek-reasoner", 384_000),
    ("deepseek-v4-*", 384_000),
    # https://www.alibabacloud.com/help/en/model-studio/models
    ("qwen3-max*", 65_536),
    ("qwen3-coder-plus*", 65_536),
    ("qwen3-coder-flash*", 65_536),
    # https://docs.z.ai/guides/llm, by model names of its API
    ("glm-4.5*", 98_304),
    ("glm-4.[67]", 131_072),
    ("glm-5", 131_072),
    ("glm-5.[12]", 131_072),
    # https://docs.mistral.ai/getting-started/models, https://platform.moonshot.ai/docs
    ("mistral-tiny", 8191),
    ("moonshot-v1-8k*", 4096),
)
"""From the providers' public documentation of 2026; the first matching pattern applies. Models that are limited only by their
context window (Grok, Mistral, Kimi, Gemini 4) are absent. So are open weights at other hosts, which set their own limits."""
_ONLY_WITHOUT_PATH = ("glm-", "deepseek-")


@lru_cache(maxsize=4096)
def max_output(model: str) -> int | None:
    """The limit in tokens; None if unknown. `model` may have a path or region prefix (`openrouter/openai/gpt-4`)."""
    path, _, name = model.lower().rpartition("/")
    if path and name.startswith(_ONLY_WITHOUT_PATH):
        return None
    if (at := name.find("claude-")) > 0:
        name = name[at:]
    return next((most for pattern, most in _LIMITS if fnmatchcase(name, pattern)), None)


def output_cap(
    asked: int | None, usual: int, route: int | None, model: str, price: ModelPrice, prompt_bytes: int
) -> int:
    """The output limit of a call in tokens. A budget may lower it.

    Args:
        asked: the client's limit; None: `usual` applies, reduced to the rest of the context window.
        usual: the default limit.
        route: the limit of the route, or None.
        model: the model name, which sets a further limit.
        price: the price entry, with the context window.
        prompt_bytes: the upper bound of the input.
    """
    limits = [most for most in (route, max_output(model)) if most is not None]
    if asked is not None:
        return min([asked, *limits])
    if price.context_window:
        limits.append(max(MIN_OUTPUT, price.context_window - prompt_bytes // BYTES_PER_TOKEN))
    return min([usual, *limits])
