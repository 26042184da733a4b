"""The row that describes a provider type, and the outbound form of one configured provider.

A provider of the OpenAI family is data: a base URL, an auth header and a few quirks. ``compile_endpoint`` turns a
configured provider into the URL and the header block of one endpoint, once per snapshot; per request only the body
changes.

The rule that must not be broken: outbound headers are made from this module and the configuration alone (an
allow-list). No header of the client ever leaves (Q35).
"""

from __future__ import annotations

from dataclasses import dataclass

from .._version import __version__
from ..config.snapshot import ProviderSpec
from ..types import Endpoint

USER_AGENT = f"slipstream/{__version__}"


@dataclass(frozen=True, slots=True)
class ProviderType:
    """One row of the registry.

    ``default_base`` is the API root (OpenAI SDK's ``base_url``), ``None`` if only the user can know it. ``auth`` is the
    header that carries the key: ``bearer`` or a header name. ``ask_usage``: streams need
    ``stream_options.include_usage`` to report usage; ``False`` where the provider reports it anyway or refuses the
    field (PROTOCOLS.md 1.2). ``rename``: request keys it spells differently. ``requires_done`` is for documentation:
    all of the family end with ``[DONE]``.
    """

    name: str
    default_base: str | None = None
    needs_key: bool = True
    needs_base: bool = False
    auth: str = "bearer"
    ask_usage: bool = True
    rename: tuple[tuple[str, str], ...] = ()
    owned_by: str = ""

    @property
    def owner(self) -> str:
        """``owned_by`` of the models it serves, as ``/v1/models`` shows it."""
        return self.owned_by or self.name


_PATHS = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
}


def endpoint_url(spec: ProviderSpec, endpoint: Endpoint) -> str:
    return spec.api_base + _PATHS[endpoint]


def models_url(spec: ProviderSpec) -> str:
    return spec.api_base + "/models"


def outbound_headers(kind: ProviderType, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
    """The header block of every request to ``spec``. User-configured headers win over ours, but for the key's.

    ``accept-encoding: identity``: the bytes are passed on as they are, so a compressed reply would have to be unpacked
    only to be looked at; the CPU is worth more than the loopback or datacentre bandwidth it would save.
    """
    headers = {
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
    }
    if json_body:
        headers["Content-Type"] = "application/json"
    for name, value in spec.headers.items():
        _replace(headers, name, value.reveal())
    key = spec.api_key.reveal()
    if key:
        if kind.auth == "bearer":
            _replace(headers, "Authorization", f"Bearer {key}")
        else:
            _replace(headers, kind.auth, key)
    return headers


def _replace(headers: dict[str, str], name: str, value: str) -> None:
    """One field per name, whatever its case: of two, two parsers may believe different ones."""
    for other in [ours for ours in headers if ours.lower() == name.lower()]:
        del headers[other]
    headers[name] = value
