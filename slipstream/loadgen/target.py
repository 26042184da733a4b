"""Where the requests go and what they say: the URL taken apart, and each request built once, before the run. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .._version import __version__
from ..wire.codec import dumps

PATHS = {"chat": "/v1/chat/completions", "infer": "/v1/infer"}
DEFAULT_MODEL = "demo"
"""Served by ``serve --demo``, by ``slipstream mock``, and by ``ENABLE_MOCK_PROVIDER=1``."""
DEFAULT_PROMPT = "Say hello in one short sentence."

_PORTS = {"http": 80, "https": 443}
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_PATH = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the path in front of the API's own."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_base_url(url: str) -> Target:
    """A base URL, with or without the ``/v1`` that OpenAI's SDK wants. Raises ``ValueError``."""
    parts = urlsplit(url.strip())
    if parts.scheme not in _PORTS:
        raise ValueError("it begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds no user and no password; use --api-key")
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise ValueError("it names no host, or one that is not ASCII")
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise ValueError("it has only a host, a port and a path")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("its port is a number from 1 to 65535")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Target(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], prefix)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for. ``policy`` goes out to ``/v1/infer`` only: no chat API has such a field."""

    endpoint: str = "chat"
    model: str | None = None
    policy: str | None = None
    max_tokens: int | None = None
    stream: bool = False
    api_key: str | None = None


def build_requests(target: Target, ask: Ask, prompts: Sequence[str]) -> list[bytes]:
    """One whole request, head and body, per prompt. Raises ``ValueError`` for a key that cannot be sent."""
    if ask.api_key is not None and not _HEADER_VALUE.fullmatch(ask.api_key):
        raise ValueError("an API key is printable ASCII on one line")
    lines = [
        f"POST {target.prefix}{PATHS[ask.endpoint]} HTTP/1.1",
        f"Host: {target.authority}",
        f"User-Agent: slipstream-loadgen/{__version__}",
        f"Accept: {'text/event-stream' if ask.stream else 'application/json'}",
        "Content-Type: application/json",
    ]
    if ask.api_key is not None:
        # contracts E: tenants' keys are in X-API-Key; everybody else's are bearer tokens
        lines.append(f"X-API-Key: {ask.api_key}" if ask.endpoint == "infer" else f"Authorization: Bearer {ask.api_key}")
    head = "\r\n".join(lines)
    bodies = (dumps(_body(ask, prompt)) for prompt in prompts)
    return [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii") + body for body in bodies]


def _body(ask: Ask, prompt: str) -> dict[str, Any]:
    body: dict[str, Any]
    if ask.endpoint == "infer":
        body = {"model": ask.model, "prompt": prompt, "policy": ask.policy}
    else:
        body = {"model": ask.model or DEFAULT_MODEL, "messages": [{"role": "user", "content": prompt}]}
    body["max_tokens"] = ask.max_tokens
    if ask.stream:
        body["stream"] = True
    return {name: value for name, value in body.items() if value is not None}
