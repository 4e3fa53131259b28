"""The words of providers for their failures: one row for each source, and the class that its codes and phrases mean.

To add a provider: a row here, and in `tests/providers/provider_errors.yaml` a body as it sends it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ErrorClass = Literal[
    "rate_limited", "quota", "overloaded", "server_error", "timeout", "connection", "lost", "cut", "malformed",
    "invalid_request", "auth", "not_found", "content_filter", "context_length", "circuit_open", "gateway_busy",
]  # fmt: skip


class Words(NamedTuple):
    """Words of one source, in lower case. `codes`: its codes, types, reasons and statuses, separated by spaces. `phrases`: parts
    of its messages; `…` stands for any text."""

    error_class: ErrorClass
    source: str
    codes: str = ""
    phrases: tuple[str, ...] = ()


# The order matters for phrases: the first that is found decides.
WORDS: tuple[Words, ...] = (
    # Empty accounts, and limits that end with the day or month.
    Words(
        "quota",
        "https://platform.openai.com/docs/guides/error-codes",
        """insufficient_quota insufficientquota quota_exceeded billing_error billing_hard_limit_reached billing_not_active
        credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded
        organization_usage_limit_exceeded""",
        ("requests per day (rpd)", "tokens per day (tpd)"),
    ),
    Words(
        "quota",
        "https://docs.claude.com/en/api/errors",
        "enforced_spend_limit_reached",
        ("credit balance is too low", "your specified api usage limits", "your specified workspace api usage limits"),
    ),
    Words(
        "quota",
        "https://openrouter.ai/docs/api-reference/limits; https://github.com/cline/cline/issues/5301",
        "insufficient_credits payment_required credit_limit weight_exceeds_budget",
        ("insufficient credits", "free-models-per-day", "requires more credits", "prompt tokens limit exceeded"),
    ),
    Words(
        "quota",
        "https://ai.google.dev/gemini-api/docs/rate-limits; https://github.com/google-gemini/gemini-cli/issues/8437",
        phrases=("perdayper", "_per_day", "_free_tier_…, limit: 0"),
    ),
    Words(
        "quota",
        "https://docs.z.ai/api-reference/api-code; https://docs.bigmodel.cn/cn/api/api-code",
        "1113 1304 1308 1309 1310",
        ("insufficient balance or no resource package", "余额不足", "账户已欠费"),
    ),
    Words(
        "quota",
        "https://help.aliyun.com/zh/model-studio/error-code",
        "arrearage allocationquota.freetieronly",
        ("account is in good standing", "due to overdue account", "free tier of the model has been exhausted"),
    ),
    Words("quota", "https://www.volcengine.com/docs/82379/1299023", "accountoverdueerror"),
    Words("quota", "https://api-docs.deepseek.com/quick_start/error_codes", "insufficient_balance"),
    Words("quota", "https://platform.moonshot.ai/docs/api/errors", "exceeded_current_quota_error"),
    Words("quota", "https://docs.x.ai/docs/key-information/debugging", phrases=("used all available credits",)),
    Words("quota", "https://docs.siliconflow.cn/en/faqs/error-code", phrases=("account balance is insufficient",)),
    Words(
        "quota",
        "https://huggingface.co/docs/inference-providers/pricing",
        phrases=("exceeded your monthly included credits", "monthly spending limit"),
    ),
    Words(
        "quota",
        "https://docs.github.com/en/github-models/use-github-models/prototyping-with-ai-models",
        phrases=("exceeded for userbymodelbyday", "exceeded for userbyday"),
    ),
    Words(
        "quota",
        "https://developers.cloudflare.com/workers-ai/platform/errors/",
        "3036 4006",
        ("your daily free allocation",),
    ),
    Words("quota", "https://docs.aws.amazon.com/bedrock/latest/userguide/quotas.html", phrases=("too many tokens per day",)),
    Words("quota", "https://inference-docs.cerebras.ai/support/rate-limits", phrases=("per day limit exceeded",)),
    Words(
        "quota",
        "https://github.com/continuedev/continue/issues/10579 (Ollama's cloud)",
        phrases=("session usage limit", "weekly usage limit", "subscription payment is past due"),
    ),
    # Callers that ask too fast.
    Words(
        "rate_limited",
        "https://platform.openai.com/docs/guides/error-codes",
        "rate_limit_exceeded rate_limit_error too_many_requests slow_down",
    ),
    Words(
        "rate_limited",
        "https://learn.microsoft.com/azure/ai-foundry/openai/quotas-limits",
        "ratelimitexceeded ratelimitreached",
    ),
    Words("rate_limited", "https://docs.mistral.ai/api/", "rate_limited"),
    Words("rate_limited", "https://platform.moonshot.ai/docs/api/errors", "rate_limit_reached_error"),
    Words("rate_limited", "https://inference-docs.cerebras.ai/support/error", "too_many_requests_error"),
    Words(
        "rate_limited",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html",
        "throttlingexception servicequotaexceededexception",
    ),
    Words("rate_limited", "https://openrouter.ai/docs/api-reference/errors", "in_flight_budget_exhausted"),
    Words("rate_limited", "https://docs.z.ai/api-reference/api-code", "1302 1303 1313"),
    Words(
        "rate_limited",
        "https://help.aliyun.com/zh/model-studio/error-code",
        "throttling.ratequota throttling.allocationquota",
    ),
    # Servers and models without room.
    Words(
        "overloaded",
        "https://platform.openai.com/docs/guides/error-codes; https://docs.claude.com/en/api/errors",
        "overloaded_error server_overloaded server_is_overloaded service_unavailable_error",
    ),
    Words("overloaded", "https://learn.microsoft.com/azure/ai-foundry/openai/quotas-limits", "nocapacity"),
    Words("overloaded", "https://ai.google.dev/gemini-api/docs/troubleshooting", "model_capacity_exhausted"),
    Words("overloaded", "https://platform.moonshot.ai/docs/api/errors", "engine_overloaded engine_overloaded_error"),
    Words("overloaded", "https://console.groq.com/docs/errors", "capacity_exceeded"),
    Words("overloaded", "https://openrouter.ai/docs/api-reference/errors", "provider_overloaded"),
    Words("overloaded", "https://github.com/ggml-org/llama.cpp/tree/master/tools/server", "unavailable_error"),
    Words(
        "overloaded",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html",
        "serviceunavailableexception modelnotreadyexception",
    ),
    Words("overloaded", "https://www.volcengine.com/docs/82379/1299023", "serveroverloaded"),
    Words("overloaded", "https://docs.z.ai/api-reference/api-code", "1305 1312"),
    Words("timeout", "https://docs.claude.com/en/api/errors", "timeout_error"),
    Words("timeout", "https://ai.google.dev/gemini-api/docs/troubleshooting", "deadline_exceeded"),
    Words("timeout", "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html", "modeltimeoutexception"),
    Words(
        "server_error",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html",
        "internalserverexception modelerrorexception modelstreamerrorexception",
    ),
    # The model wrote what the provider itself could not read as a tool call or as JSON; asked again, it may do better.
    Words("malformed", "https://console.groq.com/docs/tool-use", "tool_use_failed json_validate_failed"),
    Words(
        "auth",
        "https://platform.openai.com/docs/guides/error-codes",
        "invalid_api_key invalid_authentication_error authentication_error permission_error account_deactivated",
        ("incorrect api key",),
    ),
    Words(
        "auth",
        "https://ai.google.dev/gemini-api/docs/troubleshooting",
        "permission_denied permission_denied_error api_key_invalid unauthenticated failed_precondition",
        ("api key not valid",),
    ),
    Words(
        "auth",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html",
        "accessdeniedexception expiredtokenexception unrecognizedclientexception incompletesignature",
    ),
    Words("auth", "https://docs.z.ai/api-reference/api-code", "1110 1111 1112 1121 1311"),
    Words("not_found", "https://platform.openai.com/docs/guides/error-codes", "model_not_found"),
    Words("not_found", "https://docs.claude.com/en/api/errors", "not_found_error"),
    Words("not_found", "https://learn.microsoft.com/azure/ai-foundry/openai/quotas-limits", "deploymentnotfound"),
    Words("not_found", "https://platform.moonshot.ai/docs/api/errors", "resource_not_found_error"),
    Words(
        "not_found",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html",
        "resourcenotfoundexception",
    ),
    Words("not_found", "https://docs.z.ai/api-reference/api-code", "1211"),
    Words("not_found", "https://github.com/deepseek-ai/DeepSeek-V3/issues", phrases=("model not exist",)),
    Words("not_found", "https://openrouter.ai/docs/api-reference/errors", phrases=("is not a valid model id",)),
    # Prompts that do not fit.
    Words(
        "context_length",
        "https://platform.openai.com/docs/guides/error-codes",
        "context_length_exceeded string_above_max_length string_too_long",
        ("maximum context length", "exceeds the context window", "tokens exceed the configured limit"),
    ),
    Words(
        "context_length",
        "https://docs.claude.com/en/api/errors",
        "request_too_large",
        ("prompt is too long", "exceed context limit"),
    ),
    Words(
        "context_length",
        "https://ai.google.dev/gemini-api/docs/troubleshooting",
        phrases=("exceeds the maximum number of tokens",),
    ),
    Words(
        "context_length",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html",
        phrases=("input is too long",),
    ),
    Words("context_length", "https://docs.x.ai/docs/key-information/debugging", phrases=("maximum prompt length",)),
    Words("context_length", "https://console.groq.com/docs/errors", phrases=("reduce the length of the messages",)),
    Words("context_length", "https://docs.mistral.ai/api/", phrases=("too large for model with…context",)),
    Words(
        "context_length",
        "https://github.com/vllm-project/vllm/issues/20409",
        phrases=("maximum model length", "context length is only"),
    ),
    Words(
        "context_length",
        "SGLang: https://github.com/QwenLM/Qwen3/issues/1321, https://github.com/sgl-project/sglang/issues/4048",
        phrases=("longer than the model's context length", "exceeds the maximum allowed length"),
    ),
    Words(
        "context_length",
        "https://github.com/huggingface/text-generation-inference/issues/628; Together's servers say the same",
        phrases=("`inputs` tokens + `max_new_tokens` must be <=", "`inputs` must have less than", "maximum input length"),
    ),
    Words(
        "context_length",
        "https://github.com/ggml-org/llama.cpp/tree/master/tools/server; https://github.com/abetlen/llama-cpp-python",
        "exceed_context_size_error",
        ("exceeds the available context size", "exceed context window of"),
    ),
    Words(
        "context_length",
        "https://github.com/ollama/ollama/blob/main/llm/server.go",
        phrases=("prompt too long", "exceeded max context length", "exceeds the context length"),
    ),
    Words(
        "context_length",
        "LM Studio: https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/237, issues/2256",
        phrases=("trying to keep the first…tokens", "cannot truncate prompt with n_keep", "greater than the context length"),
    ),
    Words(
        "context_length",
        "https://help.aliyun.com/zh/model-studio/error-code; https://github.com/QwenLM/qwen-code/issues/98",
        phrases=("range of input length should be",),
    ),
    Words(
        "context_length",
        "https://docs.z.ai/api-reference/api-code",
        "1261",
        ("prompt exceeds max length", "prompt 超长"),
    ),
    Words(
        "context_length",
        "https://platform.moonshot.ai/docs/api/errors",
        phrases=("exceeded model token limit", "input token length too long"),
    ),
    Words("context_length", "https://platform.minimaxi.com", phrases=("context window exceeds limit",)),
    Words(
        "context_length",
        "https://docs.cohere.com/reference/errors",
        phrases=("total number of tokens in the prompt cannot exceed",),
    ),
    Words(
        "context_length",
        "GitHub Copilot: https://github.com/badlogic/pi-mono/blob/main/packages/ai/src/utils/overflow.ts",
        phrases=("prompt token count of…exceeds the limit of",),
    ),
    Words(
        "context_length",
        "https://docs.fireworks.ai; https://docs.perplexity.ai",
        "token_limit_exceeded context_exceeded",
        ("maximum allowed input length", "max context length"),
    ),
    # Refusals of content.
    Words(
        "content_filter",
        "https://platform.openai.com/docs/guides/error-codes",
        "content_filter content_policy_violation safety_violations",
        ("flagged as potentially violating",),
    ),
    Words(
        "content_filter",
        "https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter",
        "responsibleaipolicyviolation",
        ("content management policy",),
    ),
    Words("content_filter", "https://docs.claude.com/en/api/errors", phrases=("content filtering policy",)),
    Words("content_filter", "https://ai.google.dev/gemini-api/docs/safety-settings", "prohibited_content"),
    Words("content_filter", "https://openrouter.ai/docs/api-reference/errors", "moderation_blocked"),
    Words("content_filter", "https://help.aliyun.com/zh/model-studio/error-code", "data_inspection_failed datainspectionfailed"),
    Words("content_filter", "https://api-docs.deepseek.com", phrases=("content exists risk",)),
    Words("content_filter", "https://docs.z.ai/api-reference/api-code", "1301"),
)  # fmt: skip
