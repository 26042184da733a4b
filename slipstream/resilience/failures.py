"""All knowledge of what providers' errors mean, what may follow each kind, and what the client is told. Tables.

``classify`` reads a provider's error: its rows are asked in order and the first that fits decides; if none does, the
status decides. ``RETRY`` says what may follow a failure (R16, R54; reliability.md Q03, Q06). ``client_status`` says
which status the client sees. ``refine`` applies the first and the last to an error as ``wire`` has read it.

The order of the rows is knowledge too: a 429 is settled before any text is looked at (Groq's rate-limit message names a
billing page, Together's has the type ``credit_limit``), and words that only count inside a 200 come last.

Evidence: ``#xxxxxxxx`` and ``#d-name`` are exchanges of the wire corpus, section numbers are PROTOCOLS.md's, (doc) is
the provider's own documentation, (src) its or its SDK's source, "issue" a public report with the provider's text.

The rule that must not be broken: a class never says more than the evidence does. An error that nobody knows is what its
status says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..errors import UpstreamError
from ..types import FailureClass
from ..wire.openai_errors import status_class

ANY = "*"
IN_200 = 200
"""Stands for every status below 400: the error came in the body or the stream of a success."""


class Row(NamedTuple):
    """An error fits if all that is given fits: one of ``providers``, one of ``statuses``, ``code`` or ``type`` being
    one of ``names`` (lower case), one of ``texts`` (lower case) being in the message."""

    failure: FailureClass
    evidence: str
    providers: tuple[str, ...] = (ANY,)
    statuses: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def fits(self, provider: str, status: int, names: tuple[str, ...], message: str) -> bool:
        return (
            (self.providers == (ANY,) or provider in self.providers)
            and (not self.statuses or status in self.statuses)
            and (not self.names or any(name in self.names for name in names))
            and (not self.texts or any(text in message for text in self.texts))
        )


ROWS: tuple[Row, ...] = (
    # ---- 413: too large, whatever the code says
    Row(FailureClass.CONTEXT, "Groq: rate_limit_exceeded, #d-too-large; Anthropic: #d-large", statuses=(413,)),
    # ---- 429: a plan that is spent, a model that is not ready, else a rate
    Row(
        FailureClass.RATE_LIMITED,
        "Gemini's rates have OpenAI's quota text, and a retryDelay of seconds: #0d4b01b1",
        providers=("gemini", "vertex"),
        statuses=(429,),
    ),
    Row(FailureClass.OVERLOADED, "Bedrock 429 ModelNotReadyException, 1.5 (src)", names=("modelnotreadyexception",)),
    Row(
        FailureClass.QUOTA,
        "OpenAI 429 insufficient_quota, #d-quota; in a 200 stream, #501de15e; billing_* (doc)",
        statuses=(429, 403, IN_200),
        names=("insufficient_quota", "billing_not_active", "billing_hard_limit_reached"),
    ),
    Row(
        FailureClass.QUOTA,
        'OpenAI #d-quota; xAI "used all available credits or reached its monthly spending limit" (issue); Ollama cloud '
        '"reached your weekly usage limit, upgrade" (issue)',
        statuses=(429, 403),
        texts=(
            "check your plan and billing details", "used all available credits", "monthly spending limit",
            "usage limit,",
        ),
    ),
    Row(FailureClass.RATE_LIMITED, "every 429 else, 1.5; Together: type credit_limit, #d-rate", statuses=(429,)),
    # ---- spent, with other statuses
    Row(
        FailureClass.QUOTA,
        "Bedrock 400 ServiceQuotaExceededException, #d-quota",
        providers=("bedrock",),
        names=("servicequotaexceededexception",),
    ),
    Row(
        FailureClass.QUOTA,
        'Anthropic 400 "Your credit balance is too low", claude-code issue 66314; 400 "You have reached your specified '
        'API usage limits. You will regain access on ..." (issue)',
        statuses=(400, 403, IN_200),
        texts=("credit balance is too low", "specified api usage limits"),
    ),
    Row(
        FailureClass.QUOTA,
        'OpenRouter 403 "Key limit exceeded" (doc: limits of a key)',
        providers=("openrouter",),
        statuses=(403, IN_200),
        texts=("limit exceeded", "requires more credits"),
    ),
    # ---- credentials, where the status does not say so
    Row(
        FailureClass.AUTH,
        "Gemini 400 API_KEY_INVALID, 1.5",
        names=("api_key_invalid", "invalid_api_key", "authentication_error", "unauthenticated"),
    ),
    Row(
        FailureClass.AUTH,
        'Gemini 400 "API key not valid" and "expired", 403 "unregistered callers" and "reported as leaked", 1.5 '
        "(issues); xAI 400 #7dd7366c",
        statuses=(400, 403, IN_200),
        texts=(
            "api key not valid", "api key not found", "api key expired", "incorrect api key", "invalid api key",
            "unregistered callers", "api key was reported as leaked",
        ),
    ),
    Row(
        FailureClass.AUTH,
        "Bedrock 403 UnrecognizedClient, #f2df511f; ExpiredToken, 1.5; the signature's own errors (AWS common errors)",
        providers=("bedrock",),
        names=(
            "unrecognizedclientexception", "expiredtokenexception", "expiredtoken", "invalidsignatureexception",
            "signaturedoesnotmatch", "incompletesignature", "incompletesignatureexception", "invalidclienttokenid",
            "missingauthenticationtoken", "missingauthenticationtokenexception", "requestexpired",
        ),
    ),
    Row(
        FailureClass.AUTH,
        "Bedrock 403 with a text only, #f2df511f",
        providers=("bedrock",),
        statuses=(403,),
        texts=("security token", "signature"),
    ),
    # ---- refused for what is in the prompt
    Row(
        FailureClass.CONTENT_FILTER,
        "Azure 400 content_filter, 1.5; OpenAI content_policy_violation (doc)",
        names=("content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"),
    ),
    Row(
        FailureClass.CONTENT_FILTER,
        'Azure "content management policy", 1.5; Anthropic 400 "Output blocked by content filtering policy" (issue); '
        'Bedrock "blocked by our content filters" (issue); OpenAI invalid_prompt "flagged as potentially violating" '
        '(issue); xAI 403 "Content violates usage guidelines" (issue)',
        statuses=(400, 403, 422, IN_200),
        texts=(
            "content management policy", "content filtering policy", "blocked by our content filters",
            "flagged as potentially violating", "content violates usage guidelines",
        ),
    ),
    Row(
        FailureClass.CONTENT_FILTER,
        "Bedrock: a guardrail stepped in (doc); not: a guardrail that does not exist",
        providers=("bedrock",),
        texts=("guardrail intervened", "blocked by guardrail", "blocked by the guardrail"),
    ),
    Row(
        FailureClass.CONTENT_FILTER,
        "OpenRouter 403 moderation, 1.5 (doc: the model requires moderation and the input was flagged)",
        providers=("openrouter",),
        statuses=(403, IN_200),
        texts=("moderation", "flagged"),
    ),
    # ---- longer than the model's window
    Row(
        FailureClass.CONTEXT,
        "OpenAI context_length_exceeded, Anthropic request_too_large, 1.5; llama.cpp exceed_context_size_error (src)",
        names=("context_length_exceeded", "request_too_large", "exceed_context_size_error"),
    ),
    Row(
        FailureClass.CONTEXT,
        'OpenAI, DeepSeek #1f945b02, OpenRouter #794b3aea, vLLM #d-wrapped "maximum context length"; vLLM #f781ff60 '
        '"context length is only"; Anthropic "prompt is too long", "exceed context limit" (doc); Bedrock "Input is too '
        'long", "expected maxLength" (issues), "Input Tokens Exceeded" #0dd6ad59; Gemini "exceeds the maximum number '
        'of tokens allowed", gemini-cli issue 6678; Ollama "exceeds the context length", "exceeds maximum context '
        'length", "exceeded max context length" (src); llama.cpp "exceeds the available context size" (src); vLLM "too '
        'long to fit into the model", issue 12165; OpenAI Responses "exceeds the context window" (issue)',
        statuses=(400, 422, 500, IN_200),
        texts=(
            "maximum context length", "max context length", "context length is only", "prompt is too long",
            "exceed context limit", "input is too long", "input tokens exceeded", "expected maxlength",
            "exceeds the maximum number of tokens allowed", "exceeds the context length",
            "exceeds the available context size", "too long to fit into the model", "exceeds the context window",
            "too many input tokens", "reduce the length of the messages",
        ),
    ),
    # ---- no such model, where the status does not say so
    Row(
        FailureClass.NOT_FOUND,
        "OpenAI Responses 400 model_not_found, 1.5; Azure DeploymentNotFound, 1.5; Mistral 400 invalid_model (doc)",
        names=(
            "model_not_found", "deploymentnotfound", "invalid_model", "unknown_model", "modelnotfoundexception",
            "model_not_available",
        ),
    ),
    Row(
        FailureClass.NOT_FOUND,
        'Bedrock 400 "The provided model identifier is invalid", "on-demand throughput isn\'t supported" (issues: the '
        'id works as an inference profile only); DeepSeek 400 "Model Not Exist" (doc); OpenRouter 400 "is not a valid '
        'model ID" (issue)',
        statuses=(400, 422, IN_200),
        texts=("model identifier is invalid", "on-demand throughput", "model not exist", "is not a valid model"),
    ),
    # ---- permission, where the status does not say so
    Row(
        FailureClass.PERMISSION,
        'Gemini 400 FAILED_PRECONDITION "User location is not supported for the API use" (doc)',
        statuses=(400,),
        texts=("user location is not supported",),
    ),
    # ---- time-outs and overload, where the status says less
    Row(
        FailureClass.TIMEOUT,
        "Bedrock ModelTimeoutException, 1.5; Anthropic 504 timeout_error (doc); Gemini DEADLINE_EXCEEDED (doc)",
        names=("modeltimeoutexception", "timeout_error", "deadline_exceeded", "request_timeout", "timeout"),
    ),
    Row(
        FailureClass.TIMEOUT,
        'OpenRouter "Upstream idle timeout exceeded", in a 200, #d-in-body',
        statuses=(500, 502, IN_200),
        texts=("idle timeout exceeded", "request timed out"),
    ),
    Row(
        FailureClass.OVERLOADED,
        "Anthropic overloaded_error, also as the first event, #d-overloaded-first; DeepSeek #d-busy; Together, OpenAI "
        "service_unavailable #d-over #d-overloaded; Gemini UNAVAILABLE #d-bare-json; Bedrock 503, 1.5",
        statuses=(500, 502, 503, 504, 529, IN_200),
        names=(
            "overloaded_error", "overloaded", "service_unavailable", "service_unavailable_error", "unavailable",
            "serviceunavailableexception", "serviceunavailable", "engine_overloaded", "engine_overloaded_error",
            "capacity_exceeded",
        ),
    ),
    Row(
        FailureClass.RATE_LIMITED,
        'OpenRouter 502 "Worker local total request limit reached", #d-empty-choices',
        statuses=(502, IN_200),
        texts=("request limit reached",),
    ),
    Row(
        FailureClass.OVERLOADED,
        'Gemini "The model is overloaded" #d-bare-json, OpenAI #d-overloaded, Ollama "server busy" #d-busy, DeepSeek '
        '"Service is too busy" #d-busy',
        statuses=(500, 502, IN_200),
        texts=("overloaded", "server busy", "too busy", "service is currently unavailable"),
    ),
    # ---- words that decide only where there is no status: errors inside a 200 (1.6)
    Row(
        FailureClass.RATE_LIMITED,
        "OpenAI rate_limit_exceeded, Anthropic rate_limit_error, Mistral rate_limited #d-1300, Bedrock "
        "throttlingException #d-throttli, Gemini RESOURCE_EXHAUSTED",
        statuses=(IN_200,),
        names=(
            "rate_limit_exceeded", "rate_limit_error", "rate_limited", "rate_limit", "too_many_requests", "tokens",
            "requests", "throttlingexception", "toomanyrequestsexception", "resource_exhausted",
        ),
    ),
    Row(
        FailureClass.QUOTA,
        "Together 402 credit_limit, #d-credit",
        statuses=(IN_200,),
        names=("credit_limit", "insufficient_balance"),
    ),
    Row(
        FailureClass.NOT_FOUND,
        "Anthropic not_found_error #e8f8d677, Gemini NOT_FOUND #15f35567, vLLM NotFoundError #d-model, Bedrock "
        "ResourceNotFoundException (src)",
        statuses=(IN_200,),
        names=("not_found_error", "not_found", "notfounderror", "resourcenotfoundexception"),
    ),
    Row(
        FailureClass.PERMISSION,
        "Anthropic permission_error #d-perm, Gemini PERMISSION_DENIED #0c8cb9fd, Bedrock AccessDenied, 1.5",
        statuses=(IN_200,),
        names=("permission_error", "permission_denied", "accessdeniedexception"),
    ),
    Row(
        FailureClass.CLIENT_ERROR,
        "Groq tool_use_failed in a stream, #b75f859e; OpenAI, Anthropic invalid_request_error; vLLM BadRequestError; "
        "Gemini INVALID_ARGUMENT; Bedrock validationException (1.5, 1.6)",
        statuses=(IN_200,),
        names=(
            "tool_use_failed", "invalid_request_error", "badrequesterror", "invalid_argument", "invalid-argument",
            "failed_precondition", "validationexception",
        ),
    ),
)  # fmt: skip

BY_STATUS: Mapping[int, FailureClass] = MappingProxyType(
    {
        401: FailureClass.AUTH,
        402: FailureClass.QUOTA,  # OpenRouter, Together, DeepSeek: credit and balance (1.5)
        403: FailureClass.PERMISSION,
        404: FailureClass.NOT_FOUND,
        407: FailureClass.AUTH,
        408: FailureClass.TIMEOUT,
        424: FailureClass.SERVER,  # Bedrock ModelErrorException (src): the model failed, not the request
        425: FailureClass.OVERLOADED,
        498: FailureClass.OVERLOADED,  # Groq: capacity of the flex tier (doc)
        503: FailureClass.OVERLOADED,
        504: FailureClass.TIMEOUT,
        522: FailureClass.TIMEOUT,  # Cloudflare, in front of several providers: the origin did not answer
        524: FailureClass.TIMEOUT,
        529: FailureClass.OVERLOADED,  # Anthropic (1.5)
    }
)


def classify(provider_type: str, status: int, code: str | None, type: str | None, message: str) -> FailureClass:
    """What a provider's error means. ``status`` is its own, or below 400 for an error inside a success.

    ``code`` and ``type`` are its machine-readable words, in whichever field it has them (Bedrock: the exception's name,
    Gemini: ``status`` or ``details[].reason``).
    """
    names = tuple(_word(name) for name in (code, type) if name)
    if status < 400:
        status = _status_in(names)
    row = _first_row(provider_type, status, names, message.lower())
    return row.failure if row is not None else _by_status(status)


def _first_row(provider: str, status: int, names: tuple[str, ...], message: str) -> Row | None:
    return next((row for row in ROWS if row.fits(provider, status, names, message)), None)


def _by_status(status: int) -> FailureClass:
    known = BY_STATUS.get(status)
    if known is not None:
        return known
    return FailureClass.CLIENT_ERROR if 400 <= status < 500 else FailureClass.SERVER


def _status_in(names: tuple[str, ...]) -> int:
    """A number as the code is the status that the error would have had (OpenRouter, Gemini, Azure; 1.5, 1.6)."""
    return next((int(n) for n in names if len(n) == 3 and n.isascii() and n.isdigit() and n[0] in "45"), IN_200)


def _word(name: str) -> str:
    """AWS writes ``prefix#ThrottlingException`` and ``ValidationException:http://...``."""
    return name.rpartition("#")[2].partition(":")[0].strip().lower()


class Rule(NamedTuple):
    """What may follow a failure as long as the client has seen nothing (Q07).

    ``same``: another try of this target helps when nobody else is left; ``broken``: over a new connection, and soon.
    ``other``: another target of the model may be tried; ``new_key``: only one with other credentials. ``fallback``:
    another model may be tried when the targets of this one are used up (R16; ``routing.retry_on`` may leave some out).
    ``counts``: it is a mark against the target's health (Q03). ``rests``: the target is left alone for a while (Q11).
    ``ambiguous``: the failed attempt may have been billed (Q06c).
    """

    same: bool = False
    other: bool = False
    new_key: bool = False
    fallback: bool = False
    counts: bool = False
    rests: bool = False
    ambiguous: bool = False
    broken: bool = False


NEVER = Rule()
"""The request is the reason (R54: 400 and 404 are never retried), or there is nobody left to serve."""

RETRY: Mapping[FailureClass, Rule] = MappingProxyType(
    {
        FailureClass.NONE: NEVER,
        # nothing was sent: always safe (Q06a)
        FailureClass.CONNECT: Rule(same=True, broken=True, other=True, fallback=True, counts=True, rests=True),
        # a second wait as long as the first has no place in the deadline (Q09, Q18)
        FailureClass.TIMEOUT: Rule(other=True, fallback=True, counts=True, rests=True, ambiguous=True),
        FailureClass.TRANSPORT: Rule(
            same=True, broken=True, other=True, fallback=True, counts=True, rests=True, ambiguous=True
        ),
        # 429 and 529 make a target rest, they are no sign of illness (Q03, Q11)
        FailureClass.RATE_LIMITED: Rule(same=True, other=True, fallback=True, rests=True),
        FailureClass.OVERLOADED: Rule(same=True, other=True, fallback=True, rests=True),
        FailureClass.SERVER: Rule(same=True, other=True, fallback=True, counts=True, rests=True),
        FailureClass.MALFORMED: Rule(other=True, fallback=True, counts=True, rests=True, ambiguous=True),
        # the end for all who share the key (Q06d), not for the others (R56)
        FailureClass.AUTH: Rule(other=True, new_key=True, fallback=True, counts=True, rests=True),
        FailureClass.QUOTA: Rule(other=True, new_key=True, fallback=True, rests=True),
        FailureClass.CLIENT_ERROR: NEVER,
        FailureClass.CLIENT_GONE: NEVER,
        FailureClass.NOT_FOUND: NEVER,
        FailureClass.PERMISSION: NEVER,
        FailureClass.CONTEXT: NEVER,
        FailureClass.CONTENT_FILTER: NEVER,
    }
)

_STATUS: Mapping[FailureClass, tuple[int, frozenset[int]]] = MappingProxyType(
    {
        # class: (what the client sees, upstream statuses that it sees as they are)
        FailureClass.NONE: (500, frozenset()),
        FailureClass.CONNECT: (502, frozenset()),
        FailureClass.TIMEOUT: (504, frozenset()),  # R21; a 408 would blame the client
        FailureClass.TRANSPORT: (502, frozenset()),
        FailureClass.RATE_LIMITED: (429, frozenset()),
        FailureClass.OVERLOADED: (503, frozenset({529})),
        FailureClass.SERVER: (502, frozenset({500})),
        FailureClass.MALFORMED: (502, frozenset()),
        FailureClass.AUTH: (502, frozenset()),  # R56: the client's own key was fine
        FailureClass.CLIENT_ERROR: (400, frozenset(range(400, 500)) - {401, 402, 403, 407, 408, 429, 499}),
        FailureClass.CLIENT_GONE: (499, frozenset()),
        FailureClass.QUOTA: (429, frozenset({402, 403})),
        FailureClass.NOT_FOUND: (404, frozenset({400})),
        FailureClass.PERMISSION: (403, frozenset({400})),
        FailureClass.CONTEXT: (400, frozenset({413})),
        FailureClass.CONTENT_FILTER: (400, frozenset({403})),
    }
)


def client_status(failure: FailureClass, upstream_status: int) -> int:
    """The HTTP status of the client's answer: the provider's own where it says the same, else the class's."""
    usual, kept = _STATUS[failure]
    return upstream_status if upstream_status in kept else usual


def refine(error: UpstreamError, provider_type: str, provider: str) -> UpstreamError:
    """``error`` with the class and the status that its provider's words mean; others than a provider's own errors stay.

    ``provider`` is the configured name. An error that turns out to be about our credentials is replaced by one without
    the provider's text, which may show a part of the key (R56, R84).
    """
    failure: FailureClass = error.failure
    if type(error) is not UpstreamError or not error.upstream_status or failure is FailureClass.MALFORMED:
        return error
    if error.upstream_status < 400 or failure is status_class(error.upstream_status):  # else its reader knew more
        failure = classify(provider_type, error.upstream_status, error.code, error.type, error.message)
    if failure is FailureClass.SERVER and error.upstream_status < 400:
        failure = error.failure  # its reader saw the whole error, and no word here says more
    if failure is FailureClass.AUTH:
        return UpstreamError(
            f"the provider {provider!r} refused the gateway's credentials",
            failure=failure,
            code="upstream_auth_error",
            upstream_status=error.upstream_status,
        )
    error.failure = failure
    error.status = client_status(failure, error.upstream_status if error.upstream_status >= 400 else error.status)
    return error
