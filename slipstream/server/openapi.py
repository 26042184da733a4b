"""The description of our own surface: ``/openapi.json`` (OpenAPI 3.1) and ``/docs`` (a page without scripts).

Bodies of the data plane are the provider's dialect and pass through, so they are open objects here.
"""

from __future__ import annotations

from html import escape
from typing import Any

from .._version import __version__

_ROUTES: tuple[tuple[str, str, str, bool], ...] = (
    (
        "post",
        "/v1/chat/completions",
        "Chat completion in OpenAI's form; with stream: true as server-sent events.",
        True,
    ),
    ("post", "/v1/completions", "Legacy text completion.", True),
    ("post", "/v1/embeddings", "Embeddings.", True),
    ("post", "/v1/responses", "OpenAI's Responses API, stateless.", True),
    ("post", "/v1/messages", "Anthropic's Messages API; errors and streams in its form.", True),
    ("post", "/v1/messages/count_tokens", "Tokens of a Messages request; an estimate where nobody can count.", True),
    ("post", "/v1/infer", "A prompt in, a text out; errors as application/problem+json.", True),
    ("get", "/v1/models", "The models that the configured providers serve.", True),
    ("get", "/v1/models/{id}", "One model.", True),
    ("get", "/health", "Whether the process runs.", False),
    ("get", "/health/detailed", "State of every provider.", True),
    ("get", "/v1/healthz", "Liveness: the text ok.", False),
    ("get", "/v1/readyz", "Readiness: 200 ready, or 503 with application/problem+json.", False),
    ("get", "/metrics", "Prometheus metrics.", False),
    ("get", "/docs", "This page.", False),
    ("get", "/openapi.json", "This description as OpenAPI 3.1.", False),
)
_REQUIRED = {
    "/v1/chat/completions": ("model", "messages"),
    "/v1/completions": ("model", "prompt"),
    "/v1/embeddings": ("model", "input"),
    "/v1/responses": ("model",),
    "/v1/messages": ("model", "messages", "max_tokens"),
    "/v1/messages/count_tokens": ("model", "messages"),
    "/v1/infer": ("prompt",),
}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "td{padding:.3rem .8rem .3rem 0;vertical-align:top;border-bottom:1px solid #ddd}"
    "pre{background:#f4f4f4;padding:1rem;overflow:auto}"
)
_EXAMPLE = """curl http://HOST:PORT/v1/chat/completions \\
  -H 'Content-Type: application/json' -H 'Authorization: Bearer KEY' \\
  -d '{"model": "MODEL", "messages": [{"role": "user", "content": "Hi"}]}'"""


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document as a JSON value."""
    paths: dict[str, Any] = {}
    for method, path, text, locked in _ROUTES:
        paths.setdefault(path, {})[method] = _operation(method, path, text, locked)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Slipstream", "version": __version__, "description": "An LLM gateway."},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "responses": {
                "Error": {"description": "An error.", "content": {"application/json": {"schema": _ERROR_SCHEMA}}},
            },
        },
    }


def _operation(method: str, path: str, text: str, locked: bool) -> dict[str, Any]:
    name = "_".join(part.strip("{}") for part in path.replace(".", "/").split("/") if part)
    operation: dict[str, Any] = {
        "summary": text,
        "operationId": f"{method}_{name}",
        "responses": {"200": {"description": "Success."}, "default": {"$ref": "#/components/responses/Error"}},
    }
    if locked:
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
    if "{id}" in path:
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if method == "post":
        schema = {"type": "object", "required": list(_REQUIRED[path]), "additionalProperties": True}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def docs() -> str:
    """The same for people, as HTML."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td><td>{escape(text)}</td>"
        f"<td>{'key' if locked else ''}</td></tr>"
        for method, path, text, locked in _ROUTES
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Slipstream API</title>'
        f"<style>{_STYLE}</style><h1>Slipstream</h1>"
        "<p>An OpenAI-compatible gateway: point an OpenAI SDK's <code>base_url</code> at <code>/v1</code> of this "
        "address. Paths marked <em>key</em> want <code>Authorization: Bearer &lt;key&gt;</code> or "
        "<code>X-API-Key</code> when the server has a key. "
        'Machine-readable: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<table>{rows}</table><h2>Try it</h2><pre>{escape(_EXAMPLE)}</pre></html>"
    )
