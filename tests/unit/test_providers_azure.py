"""Azure OpenAI and Foundry: where requests go, what authenticates them, what its errors mean (PROTOCOLS.md 1.1, 1.5,
2.6)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipstream.config.snapshot import ProviderSpec
from slipstream.providers.azure import TYPE
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.types import Endpoint, FailureClass, Secret
from tests.fakes import spec
from tests.harness import SHARED

CHAT, EMBEDDINGS, RESPONSES = Endpoint.CHAT, Endpoint.EMBEDDINGS, Endpoint.RESPONSES
R = "https://r.openai.azure.com"
JWT = "eyJhbGciOi.eyJhdWQi.c2ln"


def at(base: str, version: str | None = None, key: str = "0123abcd", **more: Any) -> ProviderSpec:
    return spec("azure", type="azure", api_base=base, api_version=version, api_key=Secret(key), **more)


@pytest.mark.parametrize("base", [R, R + "/openai", R + "/openai/v1"])
def test_without_a_version_it_is_the_v1_api(base: str) -> None:
    assert TYPE.url(at(base), CHAT, "my model", True) == f"{R}/openai/v1/chat/completions"
    assert TYPE.url(at(base), RESPONSES, "m", False) == f"{R}/openai/v1/responses"
    assert TYPE.url(at(base, "preview"), EMBEDDINGS, "m", False) == f"{R}/openai/v1/embeddings?api-version=preview"
    assert TYPE.url(at(base, "v1"), CHAT, "m", False) == f"{R}/openai/v1/chat/completions"
    assert TYPE.models_url(at(base)) == f"{R}/openai/v1/models"


@pytest.mark.parametrize("base", [R, R + "/openai"])
def test_a_dated_version_means_deployments(base: str) -> None:
    there = at(base, "2024-10-21")
    deployments = f"{R}/openai/deployments"
    assert TYPE.url(there, CHAT, "gpt-4o", True) == f"{deployments}/gpt-4o/chat/completions?api-version=2024-10-21"
    assert TYPE.url(there, EMBEDDINGS, "a/b?c", False) == f"{deployments}/a%2Fb%3Fc/embeddings?api-version=2024-10-21"
    assert TYPE.models_url(there) == f"{R}/openai/models?api-version=2024-10-21"


def test_the_base_may_say_it_all() -> None:
    there = at(f"{R}/openai/deployments/d", "2024-10-21")
    assert TYPE.url(there, CHAT, "m", False) == f"{R}/openai/deployments/d/chat/completions?api-version=2024-10-21"
    assert TYPE.url(at(R + "/openai/v1", "2024-10-21"), CHAT, "m", False) == f"{R}/openai/v1/chat/completions"


def test_responses_need_a_version_that_knows_them() -> None:
    assert TYPE.url(at(R, "2024-10-21"), RESPONSES, "m", True) == f"{R}/openai/v1/responses"
    new = at(f"{R}/openai", "2025-04-01-preview")
    assert TYPE.url(new, RESPONSES, "m", True) == f"{R}/openai/responses?api-version=2025-04-01-preview"


def test_foundrys_models() -> None:
    base = "https://r.services.ai.azure.com/models"
    assert TYPE.url(at(base), CHAT, "grok-4", True) == f"{base}/chat/completions?api-version=2024-05-01-preview"
    assert TYPE.url(at(base, "2025-05-01"), CHAT, "m", True) == f"{base}/chat/completions?api-version=2025-05-01"
    assert TYPE.models_url(at(base)) == ""


def test_a_key_and_a_token() -> None:
    assert TYPE.headers(at(R))["api-key"] == "0123abcd"
    assert "Authorization" not in TYPE.headers(at(R))
    for key in ("Bearer " + JWT, "bearer  " + JWT, JWT):
        headers = TYPE.headers(at(R, key=key, headers={"authorization": Secret("Basic x")}))
        assert headers["Authorization"] == "Bearer " + JWT
        assert not {"api-key", "authorization"} & set(headers)
    assert not {"api-key", "Authorization"} & set(TYPE.headers(at(R, key="")))


def test_requests_are_written_as_for_openai() -> None:
    built = TYPE.build({"messages": [{"role": "developer", "content": "x"}], "max_tokens": 3}, at(R), "gpt-5")
    assert built.url == f"{R}/openai/v1/chat/completions"
    assert json.loads(built.body) == {
        "model": "gpt-5",
        "messages": [{"role": "developer", "content": "x"}],
        "max_completion_tokens": 3,
    }
    assert TYPE.by_model
    assert PROVIDER_TYPES["azure"] is TYPE


FILTERED = {
    "message": "The response was filtered",
    "code": "content_filter",
    "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
}


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        (400, FILTERED, FailureClass.CONTENT_FILTER),
        (404, {"code": "DeploymentNotFound", "message": "no such"}, FailureClass.NOT_FOUND),
        (429, {"code": "429", "message": "slow down"}, FailureClass.RATE_LIMITED),
        (401, {"code": "401", "message": "Access denied"}, FailureClass.AUTH),
    ],
)
def test_errors(status: int, error: Any, failure: FailureClass) -> None:
    found = TYPE.error(status, {}, json.dumps({"error": error}).encode(), at(R), 3.0)
    assert found.failure is failure
    assert found.upstream_status == status
    if error is FILTERED:
        assert found.body is not None
        assert json.loads(found.body)["error"]["innererror"] == FILTERED["innererror"]


def test_every_recorded_address_can_be_written() -> None:
    paths = sorted((SHARED / "wire" / "dev").glob("azure.*.json"))
    if not paths:
        pytest.skip(f"no recorded exchanges in {SHARED}")
    endpoints = {
        "chat-completions": CHAT,
        "completions": Endpoint.COMPLETIONS,
        "embeddings": EMBEDDINGS,
        "responses": RESPONSES,
    }
    for path in paths:
        exchange = json.loads(path.read_text(encoding="utf-8"))
        url = exchange["request"]["url"]
        if exchange["api"] not in endpoints:
            continue
        version = url.partition("api-version=")[2] or None
        model = url.partition("/deployments/")[2].partition("/")[0] or "m"
        base = R + "/models" if url.startswith("/models/") else R
        assert TYPE.url(at(base, version), endpoints[exchange["api"]], model, False) == R + url
