"""Every path of our own surface, on top of aiohttp's low-level server: a table, no middleware.

Owns routing by path, authentication order, request ids, CORS and the form of our own errors. The data plane's paths go
straight to ``engine.pipeline.serve``.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from urllib.parse import unquote

from aiohttp import web

from ..config.snapshot import Cors
from ..engine import account
from ..engine.context import RequestContext
from ..engine.exchange import ClientGone
from ..engine.pipeline import serve
from ..engine.runtime import Runtime
from ..errors import ClientError, GatewayError
from ..obs.families import AUTH_FAILURES, BAD_REQUESTS, CONNECTIONS_REFUSED, LOG_SUPPRESSED
from ..obs.log import Throttle
from ..obs.metrics import CLIENT_GONE_STATUS
from ..resilience.bulkhead import Waiter
from ..types import Endpoint
from ..wire.codec import dumps
from ..wire.faces import FACES, face_of_request
from ..wire.openai_errors import error_object
from . import openapi, pages
from .auth import ANYBODY, REASONS, Authenticator
from .exchange import AiohttpExchange
from .faults import is_ours, where
from .fields import check_media_type, choose_request_id
from .gate import Gate, Refusal
from .load import Load
from .models import ModelList
from .request import Request

log = logging.getLogger("slipstream.server")
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{0,2048}")
_EXPOSED = "X-Request-ID, Retry-After, x-slipstream-provider, x-slipstream-attempts, x-slipstream-trail"
BUSY_S = 1
"""When a client that is one too many is told to come back."""
SHORT_BODY_BYTES = 64 * 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class App:
    """The surface of one process. ``handle`` is what the listener calls; ``decorate`` finishes every response."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.models = ModelList(runtime)
        self.load = Load(runtime)
        self.gate = Gate(runtime, self.load.admission, self.load.clock, self._left)
        self.auth = self._authenticator()
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
        self.auth = self._authenticator()
        self.load.configure(self.runtime.active.snapshot.resilience.admission)

    def _authenticator(self) -> Authenticator:
        metrics, key = self.runtime.metrics, self.runtime.active.snapshot.server.master_api_key
        if key:
            for reason in REASONS:  # shown as 0 from the start
                metrics.slot(AUTH_FAILURES, (reason,))
        return Authenticator(key, lambda reason: metrics.count(AUTH_FAILURES, (reason,)))

    def settle(
        self,
        endpoint: Endpoint,
        request_id: str,
        status: int,
        key_name: str = ANYBODY,
        error: GatewayError | None = None,
    ) -> None:
        """Count and log a request of the data plane that ends before its body is read: refused by its head
        (``error``), broken on its way, or left (R2). The engine has not seen it."""
        runtime = self.runtime
        now = runtime.clock()
        ctx = RequestContext(endpoint, endpoint.label, request_id, key_name, now, now)
        ctx.status, ctx.error = status, error if isinstance(error, ClientError) else None
        account.settle(runtime, runtime.active, ctx)

    # ------------------------------------------------------------------ requests
    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = self._data.get(request.rel_url.raw_path)
        try:
            if endpoint is not None and request.method == "POST":
                return await self._serve(request, endpoint)
            response = await self._page(request)
        except GatewayError as error:
            response = error_response(error, endpoint, request_id(request))
        await _discard_body(request)
        return response

    async def _serve(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        key_name = self._admit(request, endpoint)
        exchange = AiohttpExchange(request, request_id(request), self.runtime.active.snapshot.server.max_body_bytes)
        place, refusal = self.gate.ask(exchange, endpoint, key_name)
        if refusal is not None:
            return await self._refused(request, endpoint, refusal)
        try:
            waited_s = 0.0
            if isinstance(place, Waiter):
                told = await self.gate.wait(place, exchange, endpoint, key_name)
                if isinstance(told, Refusal):
                    place = False
                    return await self._refused(request, endpoint, told)
                place, waited_s = True, told
            await serve(self.runtime, exchange, endpoint, key_name, waited_s)
        except ClientGone:
            if exchange.response is None:
                raise ConnectionResetError("the client is gone") from None
        except BaseException as exc:
            if exchange.response is not None or not is_ours(exc) or _is_lost(request):
                raise
            log.error("the request handler failed: %s", where(exc))
            failed = error_response(GatewayError("internal error"), endpoint, request_id(request))
            failed.force_close()
            return failed
        finally:
            self.gate.admission.give_back(place)
        assert exchange.response is not None
        return exchange.response

    async def _refused(self, request: web.BaseRequest, endpoint: Endpoint, refusal: Refusal) -> web.StreamResponse:
        await _discard_body(request)
        return error_response(refusal, endpoint, request_id(request))

    def _left(self, endpoint: Endpoint, request_id: str, key_name: str) -> None:
        """The client went away while it waited to be let in."""
        self.settle(endpoint, request_id, CLIENT_GONE_STATUS, key_name)

    def _admit(self, request: web.BaseRequest, endpoint: Endpoint) -> str:
        """The caller's name; a request that is refused by its head is counted."""
        try:
            key_name = self.auth.check(request.headers)
            media_type = request.headers.get("Content-Type")
            check_media_type(None if media_type is None else media_type.encode("latin-1", "replace"))
        except GatewayError as error:
            self.settle(endpoint, request_id(request), error.status, error=error)
            raise
        return key_name

    def unserved(self, request: web.BaseRequest, status: int) -> None:
        """The body of ``request`` was malformed before ``handle`` was called: it is a request all the same."""
        endpoint = self._data.get(request.rel_url.raw_path)
        if endpoint is not None and request.method == "POST":
            with contextlib.suppress(GatewayError):
                self.settle(endpoint, request_id(request), status, self._admit(request, endpoint))

    async def _page(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.rel_url.raw_path, request.method
        if method == "OPTIONS" and "Origin" in request.headers:
            return web.Response(status=204)  # preflight: decorate() adds what is allowed
        methods = self._pages.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": (True, self._model)}
        if methods is None and path in self._data:
            methods = {}
        if path == "*":  # the server as a whole (RFC 9110 9.3.7), which says no more than its pages do
            raise not_allowed("GET, HEAD, POST")
        if methods is None:
            raise ClientError(f"Unknown request URL: {method} {path[:200]}. See /docs.", status=404, code="unknown_url")
        found = methods.get("GET" if method == "HEAD" else method)
        if found is None:
            raise not_allowed(", ".join(methods) or "POST")
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
        return json_response(pages.health_detailed(self.runtime, self.load))

    async def _healthz(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        problem = pages.not_ready(self.runtime, self.load)
        if problem is None:
            return web.Response(text="ready")
        problem["request_id"] = request_id(request)
        return web.Response(status=503, body=dumps(problem), content_type="application/problem+json")

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        body, content_type = pages.metrics(self.runtime, request.headers.get("Accept", ""), self.load)
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
            cors = self.runtime.active.snapshot.server.cors
            if request.method == "OPTIONS":
                headers.update(preflight_headers(cors, origin, request.headers.get("Access-Control-Request-Headers")))
            else:
                headers.update(cors_headers(cors, origin))

    # ------------------------------------------------------------------ malformed requests
    def bad_request(self, status: int, reason: str, peer: str) -> None:
        """One short line per malformed request, at most ten a second; the rest is counted (Q32)."""
        self.runtime.metrics.count(BAD_REQUESTS, (str(status),))
        if self._throttle.admit(self.runtime.clock()):
            log.info("malformed request", extra={"fields": {"status": status, "reason": reason, "peer": peer}})
        else:
            self.runtime.metrics.count(LOG_SUPPRESSED)

    # ------------------------------------------------------------------ too many connections
    def refuse_connection(self, beginning: bytes) -> bytes:
        """Count a connection beyond ``server.max_connections``; the whole answer to a request that begins so (S-80)."""
        self.runtime.metrics.count(CONNECTIONS_REFUSED)
        error = GatewayError(
            "The gateway has as many connections as it may have. Try again in a moment.",
            status=503,
            type="overloaded_error",
            code="overloaded",
        )
        face, request_id = face_of_request(beginning), choose_request_id(None)
        body = face.error_body(error, request_id)
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {face.error_type}\r\nContent-Length: {len(body)}\r\n"
        head += f"Retry-After: {BUSY_S}\r\nConnection: close\r\nX-Request-ID: {request_id}\r\n"
        return f"{head}Date: {formatdate(usegmt=True)}\r\n\r\n".encode() + body


def not_allowed(allowed: str) -> ClientError:
    """405: the method is not among those that are ``allowed`` here (RFC 9110 15.5.6)."""
    return ClientError(
        f"Method not allowed; use {allowed}.", status=405, code="method_not_allowed", headers={"Allow": allowed}
    )


def _is_lost(request: web.BaseRequest) -> bool:
    """Whether its client is gone, or it turned out malformed (of which the listener tells the client)."""
    if isinstance(request, Request) and request.connection.fault_of(request) is not None:
        return True
    return request.transport is None or request.transport.is_closing()


async def _discard_body(request: web.BaseRequest) -> None:
    """Take a short body off the connection before an answer that does not depend on it, so that no answer goes out for
    a request that never becomes whole. A long one is answered at once: nobody uploads 50 MB to be told 401."""
    size = request.content_length
    if not request.body_exists or "Expect" in request.headers or (size is not None and size > SHORT_BODY_BYTES):
        return
    taken = 0
    while taken <= SHORT_BODY_BYTES and (part := await request.content.readany()):
        taken += len(part)


def request_id(request: web.BaseRequest) -> str:
    """The id of a request, the same for its whole life."""
    known = request.get("request_id")
    if known is None:
        given = request.headers.get("X-Request-ID")
        known = choose_request_id(None if given is None else given.encode("latin-1", "replace"))
        request["request_id"] = known
    return str(known)


def cors_headers(cors: Cors, origin: str) -> dict[str, str]:
    """What a browser needs to see before a page of ``origin`` may read the answer (Fetch, "CORS protocol")."""
    if "*" in cors.origins:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
    if origin in cors.origins:
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }
    return {}


def preflight_headers(cors: Cors, origin: str, wanted: str | None) -> dict[str, str]:
    """The answer to a preflight: methods, the fields that were asked for, and how long it holds."""
    headers = cors_headers(cors, origin)
    if headers:
        del headers["Access-Control-Expose-Headers"]
        headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        headers["Access-Control-Allow-Headers"] = (
            wanted if wanted and _TOKENS.fullmatch(wanted) else "Authorization, Content-Type, X-API-Key, X-Request-ID"
        )
        headers["Access-Control-Max-Age"] = str(cors.max_age_s)
    return headers


def json_response(value: object) -> web.Response:
    return web.Response(body=dumps(value), content_type="application/json")


def error_response(error: GatewayError, endpoint: Endpoint | None = None, request_id: str = "") -> web.Response:
    """An error in the dialect of the endpoint that was called; OpenAI's for every other path."""
    face = FACES[Endpoint.CHAT if endpoint is None else endpoint]
    return web.Response(
        status=error.status,
        body=face.error_body(error, request_id),
        content_type=face.error_type,
        headers=error.headers,
    )


def malformed(status: int, reason: str, max_body: int) -> GatewayError:
    """What is wrong with bytes that are not a request we take (RFC 9112); 500 is a failure of our own. A body that is
    too large is told how large it may be (R26)."""
    if status == 500:
        return GatewayError(reason)
    if status == 413:
        reason = f"The request body is larger than the limit of {max_body} bytes (server.max_body_bytes)."
    return ClientError(reason, status=status, code="malformed_request")


def malformed_body(status: int, reason: str, _request_id: str, *, max_body: int) -> tuple[bytes, str]:
    """The reference listener's ``error_body``."""
    return dumps(error_object(malformed(status, reason, max_body))), "application/json"
