"""The registry of provider types: rows are there at once, files are imported when they are asked for (R80)."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from slipstream.providers.base import OPENAI_ENDPOINTS, ProviderType
from slipstream.providers.registry import _FILES, PROVIDER_TYPES
from slipstream.types import Endpoint
from tests.fakes import spec

FILES = _FILES
ROWS = [name for name in PROVIDER_TYPES if name not in FILES]


def test_names_cost_no_import() -> None:
    code = (
        "import sys\n"
        "from slipstream.providers.registry import PROVIDER_TYPES as types\n"
        "assert 'azure' in types and 'nobody' not in types and len(types) == len(list(types))\n"
        "types['openai'], types.get('nobody')\n"
        f"files = {FILES!r}\n"
        "assert set(files) <= set(types)\n"
        "loaded = [m for m in sys.modules if m.startswith('slipstream.providers.') and m.rpartition('.')[2] in files]\n"
        "assert not loaded, loaded\n"
        "types['azure']\n"
        "assert 'slipstream.providers.azure' in sys.modules\n"
        "heavy = [m for m in sys.modules if m.startswith('slipstream.wire.openai_chat.') and 'quirks' not in m]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_names_are_key_errors() -> None:
    with pytest.raises(KeyError):
        PROVIDER_TYPES["nobody"]
    assert PROVIDER_TYPES.get("nobody") is None
    assert list(dict.fromkeys(PROVIDER_TYPES)) == list(PROVIDER_TYPES)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_whole(name: str) -> None:
    kind = PROVIDER_TYPES[name]
    assert isinstance(kind, ProviderType)
    assert kind.name == name
    assert Endpoint.CHAT in kind.natives
    assert kind.natives <= OPENAI_ENDPOINTS | {Endpoint.RESPONSES}
    assert kind.default_base is None or urlsplit(kind.default_base).scheme == "https"
    assert (kind.default_base is None) is (kind.needs_base or name == "mock")
    there = spec("a")
    for endpoint in kind.natives:
        assert kind.url(there, endpoint, "m", False).startswith(there.api_base)
    assert kind.models_url(there) == ("https://a.test/v1/models" if kind.lists_models else "")
    assert kind.signer(there) is None
    chat = kind.chat
    assert chat.fields is None or {"model", "messages", "stream", "temperature", "max_tokens"} <= chat.fields
    if chat.fields is not None and kind.ask_usage:
        assert "stream_options" in chat.fields
    assert list(chat.efforts) == sorted(chat.efforts, key=("none minimal low medium high xhigh max").index)


@pytest.mark.parametrize("name", ["openai", "azure", "openrouter", "deepseek", "xai", "fireworks"])
def test_who_speaks_responses_gets_them_as_they_are(name: str) -> None:
    assert Endpoint.RESPONSES in PROVIDER_TYPES[name].natives


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("fireworks", "https://api.fireworks.ai/inference/v1"),
        ("xai", "https://api.x.ai/v1"),
        ("perplexity", "https://api.perplexity.ai"),
        ("cerebras", "https://api.cerebras.ai/v1"),
    ],
)
def test_default_addresses(name: str, base: str) -> None:
    assert PROVIDER_TYPES[name].default_base == base
