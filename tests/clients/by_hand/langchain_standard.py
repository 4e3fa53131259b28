"""LangChain's standard integration tests for chat models, with its OpenAI and Anthropic packages.

The tests of PDF, audio and image inputs load files from public sites, and are skipped.
"""

import os

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

HEADERS = {"x-job-id": os.environ["JOB"], "x-agent-name": "langchain"}


class TestChatCompletions(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        url = os.environ["GATEWAY"] + "/v1"
        return {
            "model": "gpt-5.4-mini",
            "base_url": url,
            "api_key": "unused",
            "default_headers": HEADERS,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-5.4"


class TestResponses(TestChatCompletions):
    @property
    def chat_model_params(self) -> dict[str, object]:
        return super().chat_model_params | {"use_responses_api": True}


class TestMessages(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": "claude-opus-4.6",
            "base_url": os.environ["GATEWAY"],
            "api_key": "unused",
            "default_headers": HEADERS,
        }

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "claude-sonnet-4.6"
