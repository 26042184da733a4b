"""Every path of our own surface, on top of aiohttp's low-level server: a table, no middleware.

Owns routing by path, authentication order, request ids, CORS and the form of our own errors. The data plane's paths go
straight to ``engine.pipeline.serve``.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from urllib.parse import unquote

from aiohttp import web

from ..config.snapshot import Cors
from ..engine.exchange import ClientGone
from ..engine.pipeline import serve
from ..engine.runtime import Runtime
from ..errors import ClientError, GatewayError
from ..obs.log import Throttle
from ..types import Endpoint
from ..wire.codec import dumps
from ..wire.openai_errors import error_body, error_object
from . import openapi, pages
from .auth import Authenticator
from .exchange import AiohttpExchange
from .models import ModelList

log = logging.getLogger("slipstream.server")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_EXPOSED = "X-Request-ID, Retry-After, x-slipstream-provider, x-slipstream-attempts"
_JSON_TYPES = ("application/json", "text/json")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class App:
    """The surface of one process. ``handle`` is what the listener calls; ``decorate`` finishes every response."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.models = ModelList(runtime)
        self.auth = Authenticator(runtime.active.snapshot.server.master_api_key)
        self._throttle = Throttle()
        self._data = {endpoint.path: endpoint for endpoint in Endpoint}
        self._pages: dict[str, dict[str, tuple[bool, Handler]]] = {
            "/v1/models": {"GET": (True, self._models)},
            "/health": {"GET": (False, self._health)},
            "/health/detailed": {"GET": (True, self._health_detailed)},
            "/v1/healthz": {"GET": (False, self._healthz)},
            "/v1/readyz": {"GET": (False, self._readyz)},
            "/metrics": {"GET": (False, self._metrics)},
            "/docs": {"GET": (False, self._docs)},
            "/openapi.json": {"GET": (False, self._openapi)},
        }

    def configured(self) -> None:
        """The active configuration changed."""
        self.auth = Authenticator(self.runtime.active.snapshot.server.master_api_key)

    # ------------------------------------------------------------------ requests
    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            endpoint = self._data.get(request.rel_url.raw_path)
            if endpoint is not None and request.method == "POST":
                return await self._serve(request, endpoint)
            return await self._page(request)
        except GatewayError as error:
            return error_response(error)

    async def _serve(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        key_name = self.auth.check(request.headers)
        _check_media_type(request.headers.get("Content-Type"))
        exchange = AiohttpExchange(request, request_id(request), self.runtime.active.snapshot.server.max_body_bytes)
        try:
            await serve(self.runtime, exchange, endpoint, key_name)
        except ClientGone:
            if exchange.response is None:
                raise ConnectionResetError("the client is gone") from None
        assert exchange.response is not None
        return exchange.response

    async def _page(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.rel_url.raw_path, request.method
        if method == "OPTIONS" and "Origin" in request.headers:
            return web.Response(status=204)  # preflight: decorate() adds what is allowed
        methods = self._pages.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": (True, self._model)}
        if methods is None and path in self._data:
            methods = {}
        if methods is None:
            raise ClientError(f"Unknown request URL: {method} {path[:200]}. See /docs.", status=404, code="unknown_url")
        found = methods.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = ", ".join(methods) or "POST"
            raise ClientError(
                f"Method not allowed; use {allowed}.", status=405, code="method_not_allowed", headers={"Allow": allowed}
            )
        locked, handler = found
        if locked:
            self.auth.check(request.headers)
        return await handler(request)

    # ------------------------------------------------------------------ pages
    async def _models(self, _request: web.BaseRequest) -> web.StreamResponse:
        return json_response({"object": "list", "data": await self.models.all()})

    async def _model(self, request: web.BaseRequest) -> web.StreamResponse:
        name = unquote(request.rel_url.raw_path.removeprefix("/v1/models/"))
        model = await self.models.one(name)
        if model is None:
            raise ClientError(
                f"The model {name[:256]!r} does not exist.", status=404, param="model", code="model_not_found"
            )
        return json_response(model)

    async def _health(self, _request: web.BaseRequest) -> web.StreamResponse:
        return json_response({"status": "ok"})

    async def _health_detailed(self, _request: web.BaseRequest) -> web.StreamResponse:
        return json_response(pages.health_detailed(self.runtime))

    async def _healthz(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        problem = pages.not_ready(self.runtime)
        if problem is None:
            return web.Response(text="ready")
        problem["request_id"] = request_id(request)
        return web.Response(status=503, body=dumps(problem), content_type="application/problem+json")

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        body, content_type = pages.metrics(self.runtime, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _docs(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=openapi.docs(), content_type="text/html")

    async def _openapi(self, _request: web.BaseRequest) -> web.StreamResponse:
        return json_response(openapi.openapi())

    # ------------------------------------------------------------------ every response
    def decorate(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Request id and CORS, on every response, errors included."""
        headers = response.headers
        headers["X-Request-ID"] = request_id(request)
        if self.runtime.draining:
            headers["Connection"] = "close"
        origin = request.headers.get("Origin")
        if origin is not None:
            self._cors(self.runtime.active.snapshot.server.cors, origin, request, headers)

    def _cors(self, cors: Cors, origin: str, request: web.BaseRequest, headers: MutableMapping[str, str]) -> None:
        if "*" in cors.origins:
            headers["Access-Control-Allow-Origin"] = "*"
        elif origin in cors.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Vary"] = "Origin"
        else:
            return
        if request.method != "OPTIONS":
            headers["Access-Control-Expose-Headers"] = _EXPOSED
            return
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        headers["Access-Control-Allow-Headers"] = (
            wanted if wanted and _TOKENS.fullmatch(wanted) else "Authorization, Content-Type, X-API-Key, X-Request-ID"
        )
        headers["Access-Control-Max-Age"] = str(cors.max_age_s)

    # ------------------------------------------------------------------ malformed requests
    def bad_request(self, status: int, reason: str, peer: str) -> None:
        """One short line per malformed request, at most ten a second; the rest is counted (Q32)."""
        metrics = self.runtime.metrics
        key = str(status)
        metrics.bad_requests[key] = metrics.bad_requests.get(key, 0) + 1
        if self._throttle.admit(self.runtime.clock()):
            log.info("malformed request", extra={"fields": {"status": status, "reason": reason, "peer": peer}})
        else:
            metrics.log_suppressed += 1


def request_id(request: web.BaseRequest) -> str:
    """The client's ``X-Request-ID`` if it is a short plain token, else a new one; the same for the whole request."""
    known = request.get("request_id")
    if known is None:
        given = request.headers.get("X-Request-ID")
        known = given if given is not None and _REQUEST_ID.fullmatch(given) else new_request_id()
        request["request_id"] = known
    return str(known)


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)


def json_response(value: object) -> web.Response:
    return web.Response(body=dumps(value), content_type="application/json")


def error_response(error: GatewayError) -> web.Response:
    return web.Response(
        status=error.status, body=error_body(error), content_type="application/json", headers=error.headers
    )


def malformed_body(status: int, reason: str, _request_id: str) -> tuple[bytes, str]:
    """The answer to bytes that are not a request we take (RFC 9112), in OpenAI's error form."""
    kind = "server_error" if status >= 500 and status not in (501, 505) else "invalid_request_error"
    error = ClientError(reason, status=status, type=kind, code="malformed_request" if status < 500 else None)
    return dumps(error_object(error)), "application/json"


def _check_media_type(value: str | None) -> None:
    """Only JSON (or nothing said); anything else is refused, which also forces browsers to ask first (CORS
    preflight).
    """
    if value is None:
        return
    media = value.partition(";")[0].strip().lower()
    if media in _JSON_TYPES or (media.startswith("application/") and media.endswith("+json")):
        return
    raise ClientError(
        "The body must be JSON: send 'Content-Type: application/json'.", status=415, code="unsupported_media_type"
    )
