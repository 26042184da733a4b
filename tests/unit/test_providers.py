"""The rows of the OpenAI family and the header block of each provider: made from the configuration alone (Q35); and the
string that never shows itself (R84)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from slipstream.providers.base import USER_AGENT, ProviderType, endpoint_url, models_url, outbound_headers
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.types import Endpoint, Secret
from slipstream.wire.request import outbound_body, peek
from tests.fakes import spec

OPENAI = PROVIDER_TYPES["openai"]


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (Endpoint.CHAT, "/chat/completions"),
        (Endpoint.COMPLETIONS, "/completions"),
        (Endpoint.EMBEDDINGS, "/embeddings"),
    ],
)
def test_urls_are_the_sdks_base_url_and_a_path(endpoint: Endpoint, path: str) -> None:
    assert endpoint_url(spec("a"), endpoint) == "https://a.test/v1" + path
    assert models_url(spec("a")) == "https://a.test/v1/models"


def test_the_header_block() -> None:
    assert outbound_headers(OPENAI, spec("a")) == {
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
        "Content-Type": "application/json",
        "Authorization": "Bearer canary-key-a",
    }
    assert "Content-Type" not in outbound_headers(OPENAI, spec("a"), json_body=False)


def test_without_a_key_there_is_no_auth_header() -> None:
    assert "Authorization" not in outbound_headers(OPENAI, spec("a", api_key=Secret("")))


def test_another_auth_header() -> None:
    headers = outbound_headers(ProviderType("x", auth="api-key"), spec("a"))
    assert headers["api-key"] == "canary-key-a"
    assert "Authorization" not in headers


@pytest.mark.parametrize("name", ["user-agent", "User-Agent", "ACCEPT-ENCODING", "content-type", "X-Extra"])
def test_configured_headers_replace_ours_whatever_their_case(name: str) -> None:
    headers = outbound_headers(OPENAI, spec("a", headers={name: Secret("mine")}))
    assert [value for key, value in headers.items() if key.lower() == name.lower()] == ["mine"]


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_the_key_has_one_header_and_it_is_the_keys(name: str) -> None:
    """Two Authorization fields would let two parsers choose differently."""
    headers = outbound_headers(OPENAI, spec("a", headers={name: Secret("Basic mine")}))
    assert [v for k, v in headers.items() if k.lower() == "authorization"] == ["Bearer canary-key-a"]
    keyless = outbound_headers(OPENAI, spec("a", api_key=Secret(""), headers={name: Secret("Basic mine")}))
    assert [v for k, v in keyless.items() if k.lower() == "authorization"] == ["Basic mine"]


@pytest.mark.parametrize("kind", PROVIDER_TYPES.values(), ids=lambda k: k.name)
def test_every_row_is_usable(kind: ProviderType) -> None:
    assert PROVIDER_TYPES[kind.name] is kind
    assert kind.owner
    if kind.default_base is not None:
        assert kind.default_base.startswith(("https://", "http://127.0.0.1:"))
        assert not kind.default_base.endswith("/")
        assert not kind.needs_base
    body = b'{"model":"m","messages":[],"stream":true,"max_completion_tokens":1}'
    assert outbound_body(peek(Endpoint.CHAT, body), "m", ask_usage=kind.ask_usage, rename=kind.rename)


def test_mistrals_owner_is_what_its_api_says() -> None:
    assert PROVIDER_TYPES["mistral"].owner == "mistralai"
    assert OPENAI.owner == "openai"


SECRET = Secret("canary-value")


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r:>20}".format, "%s".__mod__, lambda s: f"{[s]}"])
def test_a_secret_never_shows_itself(show: Any) -> None:  # R84
    assert "canary" not in show(SECRET)


def test_a_secret_compares_and_is_not_pickled() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert (bool(Secret("")), bool(SECRET)) == (False, True)
    assert SECRET.reveal() == "canary-value"
    for copied in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            copied(SECRET)
