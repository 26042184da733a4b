"""What providers' errors mean, row by row and over every recorded error; what may follow each class, and what the
client is told (R16, R54, R55; PROTOCOLS.md 1.5, 1.6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ConnectFailed, MalformedReply, TransportError, UpstreamError, UpstreamTimeout
from slipstream.resilience import failures
from slipstream.resilience.failures import BY_STATUS, NEVER, RETRY, ROWS, classify, client_status, refine
from slipstream.state.table import ERRORS
from slipstream.types import Endpoint, FailureClass
from slipstream.wire.ollama.reader import ChatReader
from slipstream.wire.openai_errors import error_body, read_error, read_error_in_200
from slipstream.wire.openai_stream import StreamTap, check_reply
from tests.harness import SHARED

F = FailureClass
Json = dict[str, Any]
fuzz = settings(deadline=None, derandomize=True, max_examples=200)
CORPUS = SHARED / "wire" / "dev"

# ---- the table -------------------------------------------------------------------------------------------------------

CASES: list[tuple[FailureClass, str, int, str | None, str | None, str]] = [
    # spent, or only too fast
    (F.QUOTA, "openai", 429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota"),
    (F.QUOTA, "openai", 200, "insufficient_quota", None, "You exceeded your current quota"),
    (F.QUOTA, "openai", 429, None, None, "please check your plan and billing details."),
    (F.QUOTA, "openai", 429, "billing_not_active", None, "Your account is not active"),
    (F.QUOTA, "anthropic", 400, None, "invalid_request_error", "Your credit balance is too low to access the API."),
    (F.QUOTA, "anthropic", 400, None, None, "You have reached your specified API usage limits."),
    (F.QUOTA, "bedrock", 400, "ServiceQuotaExceededException", None, "exceeds the service quota"),
    (F.QUOTA, "deepseek", 402, None, None, "Insufficient Balance"),
    (F.QUOTA, "openrouter", 402, "402", None, "requires more credits"),
    (F.QUOTA, "openrouter", 403, "403", None, "Key limit exceeded (total limit)."),
    (F.QUOTA, "openai", 403, None, None, "used all available credits or reached its monthly spending limit"),
    (F.QUOTA, "ollama", 429, None, None, "you have reached your weekly usage limit, upgrade for higher limits"),
    (F.QUOTA, "together", 402, None, "credit_limit", "Credit limit exceeded"),
    (F.QUOTA, "together", 200, None, "credit_limit", "Credit limit exceeded"),
    (F.RATE_LIMITED, "together", 429, None, "credit_limit", "You have been rate limited; settings/billing"),
    (F.RATE_LIMITED, "groq", 429, "rate_limit_exceeded", "tokens", "Rate limit reached. Upgrade at settings/billing"),
    (F.RATE_LIMITED, "gemini", 429, None, "RESOURCE_EXHAUSTED", "check your plan and billing details. Retry in 48s"),
    (F.RATE_LIMITED, "openai", 429, "rate_limit_exceeded", None, "too many tokens for the maximum context length"),
    (F.RATE_LIMITED, "bedrock", 200, "throttlingException", None, "Too many requests"),
    (F.RATE_LIMITED, "bedrock", 429, "ThrottlingException:http://internal/", None, "Too many requests"),
    (F.RATE_LIMITED, "openrouter", 200, "502", None, "Worker local total request limit reached (33/32)"),
    (F.RATE_LIMITED, "azure", 200, "429", None, "exceeded token rate limit"),
    # overloaded
    (F.OVERLOADED, "anthropic", 529, None, "overloaded_error", "Overloaded"),
    (F.OVERLOADED, "anthropic", 200, None, "overloaded_error", "Overloaded"),
    (F.OVERLOADED, "bedrock", 429, "ModelNotReadyException", None, "The model is not ready"),
    (F.OVERLOADED, "openai", 503, "service_unavailable", "server_error", "The engine is currently overloaded"),
    (F.OVERLOADED, "gemini", 200, "503", "UNAVAILABLE", "The model is overloaded."),
    (F.OVERLOADED, "gemini", 200, None, None, "The service is currently unavailable."),
    (F.OVERLOADED, "ollama", 200, None, None, "server busy, please try again."),
    (F.OVERLOADED, "openai", 500, None, "server_error", "The server is overloaded or not ready yet."),
    (F.OVERLOADED, "groq", 498, None, None, "Flex tier capacity exceeded"),
    # longer than the window, or than the body may be
    (F.CONTEXT, "groq", 413, "rate_limit_exceeded", "tokens", "Request too large for model"),
    (F.CONTEXT, "anthropic", 413, None, "request_too_large", "Request exceeds the maximum size"),
    (F.CONTEXT, "openai", 400, "context_length_exceeded", "invalid_request_error", "too long"),
    (F.CONTEXT, "anthropic", 400, None, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
    (F.CONTEXT, "anthropic", 400, None, None, "input length and `max_tokens` exceed context limit: 1 + 2 > 2"),
    (F.CONTEXT, "vllm", 400, "400", "BadRequestError", "This model's maximum context length is 40960 tokens"),
    (F.CONTEXT, "vllm", 400, None, None, "the model's context length is only 4096 tokens"),
    (F.CONTEXT, "gemini", 400, "400", "INVALID_ARGUMENT", "it exceeds the maximum number of tokens allowed (1)."),
    (F.CONTEXT, "bedrock", 400, "ValidationException", None, "Input is too long for requested model."),
    (F.CONTEXT, "bedrock", 400, "ValidationException", None, "expected maxLength: 42000, actual: 46735"),
    (F.CONTEXT, "bedrock", 200, "validationException", None, "Input is too long for requested model."),
    (F.CONTEXT, "ollama", 500, None, None, "the input length exceeds the context length"),
    (F.CONTEXT, "mistral", 400, None, None, "too large for model with 8 maximum context length"),
    (F.CONTEXT, "openai", 400, None, "exceed_context_size_error", "the request exceeds the available context size"),
    # refused for its content
    (F.CONTENT_FILTER, "azure", 400, "content_filter", None, "triggering Azure OpenAI's content management policy"),
    (F.CONTENT_FILTER, "azure", 400, None, None, "triggering Azure OpenAI's content management policy"),
    (F.CONTENT_FILTER, "openai", 400, "content_policy_violation", None, "rejected by our safety system"),
    (F.CONTENT_FILTER, "anthropic", 400, None, "invalid_request_error", "Output blocked by content filtering policy"),
    (F.CONTENT_FILTER, "bedrock", 400, "ValidationException", None, "blocked by our content filters."),
    (F.CONTENT_FILTER, "bedrock", 400, None, None, "Guardrail intervened"),
    (F.CLIENT_ERROR, "bedrock", 400, "ValidationException", None, "The guardrail version does not exist."),
    (F.CONTENT_FILTER, "openrouter", 403, "403", None, "requires moderation; your input was flagged for sexual"),
    (F.CONTENT_FILTER, "openai", 403, None, None, "Content violates usage guidelines."),
    # credentials and what they allow
    (F.AUTH, "openai", 401, "invalid_api_key", None, "Incorrect API key provided"),
    (F.AUTH, "gemini", 400, "API_KEY_INVALID", "INVALID_ARGUMENT", "API key not valid."),
    (F.AUTH, "gemini", 400, "400", "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
    (F.AUTH, "gemini", 403, None, "PERMISSION_DENIED", "Method doesn't allow unregistered callers"),
    (F.AUTH, "openai", 400, "invalid-argument", None, "Incorrect API key provided."),
    (F.AUTH, "bedrock", 403, "UnrecognizedClientException", None, "The security token is invalid."),
    (F.AUTH, "bedrock", 403, None, None, "The security token included in the request is expired"),
    (F.AUTH, "bedrock", 403, "aws#ExpiredTokenException", None, "expired"),
    (F.PERMISSION, "bedrock", 403, "AccessDeniedException", None, "You don't have access to the model"),
    (F.PERMISSION, "gemini", 403, None, "PERMISSION_DENIED", "Permission denied on resource"),
    (F.PERMISSION, "anthropic", 403, None, "permission_error", "Your API key does not have permission"),
    (F.PERMISSION, "gemini", 400, None, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    (F.PERMISSION, "anthropic", 200, None, "permission_error", "no"),
    # no such model
    (F.NOT_FOUND, "openai", 404, "model_not_found", None, "The model `x` does not exist"),
    (F.NOT_FOUND, "openai", 400, "model_not_found", "invalid_request_error", "The requested model 'x' does not exist."),
    (F.NOT_FOUND, "azure", 404, "DeploymentNotFound", None, "The API deployment does not exist."),
    (F.NOT_FOUND, "bedrock", 400, "ValidationException", None, "The provided model identifier is invalid."),
    (F.NOT_FOUND, "bedrock", 400, None, None, "on-demand throughput isn\u2019t supported."),
    (F.NOT_FOUND, "deepseek", 400, "invalid_request_error", None, "Model Not Exist"),
    (F.NOT_FOUND, "openrouter", 400, "400", None, "foo/bar is not a valid model ID"),
    (F.NOT_FOUND, "anthropic", 200, None, "not_found_error", "model: x"),
    # the request
    (F.CLIENT_ERROR, "openai", 400, None, "invalid_request_error", "bad"),
    (F.CLIENT_ERROR, "mistral", 422, None, "invalid_request_error", "Extra inputs are not permitted"),
    (F.CLIENT_ERROR, "groq", 200, "tool_use_failed", "invalid_request_error", "Tool call validation failed"),
    (F.CLIENT_ERROR, "openai", 409, None, None, "conflict"),
    # time-outs
    (F.TIMEOUT, "bedrock", 408, "ModelTimeoutException", None, "timed out"),
    (F.TIMEOUT, "anthropic", 504, None, "timeout_error", "timed out"),
    (F.TIMEOUT, "gemini", 504, None, "DEADLINE_EXCEEDED", "Deadline expired"),
    (F.TIMEOUT, "openrouter", 200, "502", None, "Upstream idle timeout exceeded"),
    (F.TIMEOUT, "openai", 524, None, None, "a timeout occurred"),
    # the provider itself
    (F.SERVER, "openai", 500, None, "server_error", "The server had an error"),
    (F.SERVER, "openai", 502, None, None, "Bad Gateway"),
    (F.SERVER, "bedrock", 424, "ModelErrorException", None, "The model failed"),
    (F.SERVER, "bedrock", 200, "modelStreamErrorException", None, "The model failed"),
    (F.SERVER, "ollama", 500, None, "api_error", "llama runner process has terminated: exit status 2"),
    (F.SERVER, "ollama", 200, None, None, "an error was encountered while running the model"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "provider", "status", "code", "kind", "message"), CASES)
def test_known_errors(failure: F, provider: str, status: int, code: str | None, kind: str | None, message: str) -> None:
    assert classify(provider, status, code, kind, message) is failure


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{ROWS.index(row)}-{row.failure.label}")
def test_every_row_has_evidence_and_decides_something(row: Any) -> None:
    """A row that no case above needs is a guess."""
    assert row.evidence
    assert row.statuses or row.names or row.texts
    assert all(word == word.lower() for word in row.names + row.texts)
    deciding = [case for case in CASES if deciding_row(*case[1:]) is row]
    assert deciding
    assert all(case[0] is row.failure for case in deciding)


def deciding_row(*error: Any) -> Any:
    found: list[Any] = []
    first_row = failures._first_row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "_first_row", lambda *args: found.append(first_row(*args)) or found[-1])
        classify(*error)
    return found[0]


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (400, F.CLIENT_ERROR), (401, F.AUTH), (402, F.QUOTA), (403, F.PERMISSION), (404, F.NOT_FOUND),
        (405, F.CLIENT_ERROR),
        (408, F.TIMEOUT), (409, F.CLIENT_ERROR), (413, F.CONTEXT), (415, F.CLIENT_ERROR), (422, F.CLIENT_ERROR),
        (424, F.SERVER), (429, F.RATE_LIMITED), (498, F.OVERLOADED), (499, F.CLIENT_ERROR),
        (500, F.SERVER), (501, F.SERVER),
        (502, F.SERVER), (503, F.OVERLOADED), (504, F.TIMEOUT), (520, F.SERVER), (522, F.TIMEOUT), (529, F.OVERLOADED),
        (599, F.SERVER), (200, F.SERVER),
    ],
)  # fmt: skip
def test_an_unknown_error_is_what_its_status_says(status: int, failure: F) -> None:
    """R54"""
    for provider in ("openai", "bedrock", "gemini", "somebody"):
        assert classify(provider, status, None, None, "") is failure
        assert classify(provider, status, "never_seen", "new", "Something happened.") is failure


@fuzz
@given(
    st.sampled_from(["openai", "bedrock", "gemini", "x"]), st.integers(0, 999),
    st.none() | st.text(max_size=8) |
    st.sampled_from(["429", "503", "\u0664\u0660\u0660", "400 ", "tokens", "a#b:c", "::"]),
    st.none() | st.text(max_size=8), st.text(max_size=30),
)  # fmt: skip
def test_any_error_has_a_class(provider: str, status: int, code: str | None, kind: str | None, message: str) -> None:
    failure = classify(provider, status, code, kind, message)
    assert failure not in (F.NONE, F.CONNECT, F.TRANSPORT, F.MALFORMED, F.CLIENT_GONE)
    assert 400 <= client_status(failure, status) <= 599


# ---- what may follow -------------------------------------------------------------------------------------------------


def test_every_class_has_a_rule_and_a_status() -> None:
    assert set(RETRY) == set(F)
    for failure in F:
        assert 400 <= client_status(failure, 0) <= 599


@pytest.mark.parametrize(
    "failure", [F.CLIENT_ERROR, F.NOT_FOUND, F.PERMISSION, F.CONTEXT, F.CONTENT_FILTER, F.CLIENT_GONE, F.NONE]
)
def test_what_the_request_is_the_reason_of_is_never_tried_again(failure: F) -> None:
    """R54, Q06d"""
    assert RETRY[failure] == NEVER
    assert not any(NEVER)


@pytest.mark.parametrize(
    "failure", [F.CONNECT, F.TIMEOUT, F.TRANSPORT, F.RATE_LIMITED, F.OVERLOADED, F.SERVER, F.MALFORMED]
)
def test_what_the_target_is_the_reason_of_goes_elsewhere(failure: F) -> None:
    """R16's defaults: 429, 5xx, time-outs, connection errors."""
    rule = RETRY[failure]
    assert rule.other
    assert rule.fallback
    assert rule.rests
    assert not rule.new_key


@pytest.mark.parametrize("failure", [F.AUTH, F.QUOTA])
def test_a_dead_or_spent_key_goes_to_another_key_only(failure: F) -> None:
    """Q06d, S-28: nobody who shares the key is asked; R56: the others are."""
    rule = RETRY[failure]
    assert rule.new_key
    assert rule.other
    assert not rule.same


@pytest.mark.parametrize("failure", [F.RATE_LIMITED, F.OVERLOADED, F.QUOTA])
def test_too_much_is_no_illness(failure: F) -> None:
    """Q03: a cooldown, no mark against the target."""
    assert RETRY[failure].rests
    assert not RETRY[failure].counts


def test_health_counts_what_the_shared_table_counts() -> None:
    assert {failure for failure in F if RETRY[failure].counts} == {failure for failure in F if ERRORS >> failure & 1}


def test_what_may_have_been_billed_is_marked() -> None:
    """Q06c"""
    assert {failure for failure in F if RETRY[failure].ambiguous} == {F.TIMEOUT, F.TRANSPORT, F.MALFORMED}


# ---- what the client is told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "upstream", "status"),
    [
        (F.AUTH, 401, 502), (F.AUTH, 400, 502), (F.AUTH, 403, 502),
        (F.RATE_LIMITED, 429, 429), (F.RATE_LIMITED, 502, 429),
        (F.OVERLOADED, 503, 503), (F.OVERLOADED, 529, 529), (F.OVERLOADED, 429, 503), (F.OVERLOADED, 200, 503),
        (F.QUOTA, 429, 429), (F.QUOTA, 402, 402), (F.QUOTA, 400, 429), (F.TIMEOUT, 408, 504), (F.TIMEOUT, 504, 504),
        (F.SERVER, 500, 500), (F.SERVER, 502, 502), (F.SERVER, 424, 502), (F.SERVER, 599, 502), (F.CONTEXT, 400, 400),
        (F.CONTEXT, 413, 413), (F.CONTEXT, 500, 400), (F.NOT_FOUND, 404, 404), (F.NOT_FOUND, 400, 400),
        (F.PERMISSION, 403, 403), (F.CLIENT_ERROR, 422, 422), (F.CLIENT_ERROR, 200, 400), (F.CONTENT_FILTER, 403, 403),
        (F.CONTENT_FILTER, 200, 400), (F.CONNECT, 0, 502), (F.TRANSPORT, 0, 502), (F.MALFORMED, 200, 502),
    ],
)  # fmt: skip
def test_the_clients_status(failure: F, upstream: int, status: int) -> None:
    """R21, R55, R56"""
    assert client_status(failure, upstream) == status


def test_refine_finds_the_class_and_the_status() -> None:
    body = b'{"error":{"message":"Your credit balance is too low","type":"invalid_request_error"}}'
    error = refine(read_error(400, body, provider="a", retry_after_s=3.0), "anthropic", "a")
    assert (error.failure, error.status, error.upstream_status, error.retry_after_s) == (F.QUOTA, 429, 400, 3.0)


def test_refine_hides_what_shows_a_key() -> None:
    """R56, R84: xAI and Gemini answer 400 to a bad key."""
    body = b'{"code":"invalid-argument","error":"Incorrect API key provided: sk-secret."}'
    error = refine(read_error(400, body, provider="x"), "openai", "x")
    assert (error.failure, error.status, error.code) == (F.AUTH, 502, "upstream_auth_error")
    assert b"sk-secret" not in error_body(error)
    assert "'x'" in error.message


def test_refine_of_an_error_in_a_success() -> None:
    body = b'{"error":{"message":"Overloaded","type":"overloaded_error"}}'
    error = refine(read_error_in_200(body, provider="a"), "anthropic", "a")
    assert (error.failure, error.status) == (F.OVERLOADED, 503)
    error = refine(read_error_in_200(b'{"error":"unexpected EOF"}', provider="o"), "ollama", "o")
    assert (error.failure, error.status) == (F.SERVER, 502)


def test_refine_keeps_what_a_reader_knew_better() -> None:
    known = UpstreamError("hm", failure=F.RATE_LIMITED, status=429, upstream_status=200, code=None)
    assert refine(known, "p", "p").failure is F.RATE_LIMITED


@pytest.mark.parametrize(
    "error",
    [
        ConnectFailed("x"), TransportError(), MalformedReply("rate_limit_exceeded"), UpstreamTimeout("idle", 1),
        read_error(302, b"", provider="p"), read_error(101, b"", provider="p"),
    ],
    ids=repr,
)  # fmt: skip
def test_refine_leaves_our_own_findings_alone(error: UpstreamError) -> None:
    before = (error.failure, error.status, error.code)
    assert refine(error, "openai", "p") is error
    assert (error.failure, error.status, error.code) == before


# ---- recorded errors -------------------------------------------------------------------------------------------------

CLASSES = {
    "rate_limited": F.RATE_LIMITED, "quota_exhausted": F.QUOTA, "overloaded": F.OVERLOADED, "auth": F.AUTH,
    "permission": F.PERMISSION, "not_found": F.NOT_FOUND, "bad_request": F.CLIENT_ERROR, "context_too_long": F.CONTEXT,
    "content_filter": F.CONTENT_FILTER, "too_large": F.CONTEXT, "timeout": F.TIMEOUT, "server_error": F.SERVER,
}  # fmt: skip
STATUSES = {  # what ACCEPT.md allows for a class; the native status is always right
    "rate_limited": {429}, "overloaded": {503, 529, 502}, "quota_exhausted": {402, 403, 429}, "auth": {401, 403, 502},
    "permission": {403, 401, 502}, "not_found": {404, 400}, "bad_request": {400, 422}, "context_too_long": {400, 413},
    "content_filter": {400, 403}, "too_large": {413, 400}, "timeout": {408, 504, 502, 503},
    "server_error": {500, 502, 503},
}  # fmt: skip


def recorded() -> list[Path]:
    """Errors that came as an answer of their own, in a JSON body."""
    paths = sorted(CORPUS.glob("*.error-[0-9]*.json"))
    return [path for path in paths if ".error-200." not in path.name]


def words(exchange: Json) -> tuple[str | None, str | None, str]:
    """The code, the type and the message, as the provider's own reader hands them over."""
    response = exchange["response"]
    try:
        value = json.loads(response["body"])
    except ValueError:
        return None, None, ""
    value = value[0] if isinstance(value, list) else value
    inner = value.get("error", value)
    if isinstance(inner, str):
        inner = {"message": inner, "code": value.get("code")}
    code = inner.get("code") or response["headers"].get("x-amzn-errortype")
    kind = inner.get("type") or inner.get("status")
    message = inner.get("message") or inner.get("detail") or ""
    return None if code is None else str(code), kind, message if isinstance(message, str) else json.dumps(message)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the wire corpus is not beside this tree")
@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.stem)
def test_recorded_errors(path: Path) -> None:
    exchange = json.loads(path.read_text())
    expected, status = exchange["expected"]["error"], exchange["response"]["status"]
    accepted = expected.get("class_accept") or [expected["class"]]
    failure = classify(exchange["provider"], status, *words(exchange))
    assert failure in {CLASSES[name] for name in accepted}
    assert client_status(failure, status) in {status}.union(*(STATUSES[name] for name in accepted))


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the wire corpus is not beside this tree")
@pytest.mark.parametrize(
    "path", [p for p in recorded() if not p.name.startswith(("bedrock", "gemini"))], ids=lambda path: path.stem
)
def test_recorded_errors_as_the_common_reader_hands_them_over(path: Path) -> None:
    """All but those whose words stand in places of their own (Bedrock's header, Gemini's ``status``)."""
    exchange = json.loads(path.read_text())
    expected, response = exchange["expected"]["error"], exchange["response"]
    error = refine(read_error(response["status"], response["body"].encode(), provider="p"), exchange["provider"], "p")
    accepted = expected.get("class_accept") or [expected["class"]]
    assert error.failure in {CLASSES[name] for name in accepted}
    assert error.status in {response["status"]}.union(*(STATUSES[name] for name in accepted))


def in_success() -> list[Path]:
    """Errors inside a 200 of the dialects that this tree reads without a provider's own reader, and Ollama's."""
    kinds = ("*.chat-completions.error-200", "*.chat-completions.error-midstream", "ollama.ollama-chat.error-midstream")
    return sorted(path for kind in kinds for path in CORPUS.glob(f"{kind}.*.json"))


def failure_in(exchange: Json) -> UpstreamError:
    body = exchange["response"]["body"].encode()
    if body.lstrip().startswith(b"{") and exchange["api"] == "chat-completions":
        with pytest.raises(UpstreamError) as caught:
            check_reply(Endpoint.CHAT, body, provider="p")
        return caught.value
    native = exchange["api"] == "ollama-chat"
    reader: Any = ChatReader(provider="p") if native else StreamTap(provider="p", keep_usage=True)
    reader.feed(body)
    reader.end()
    found: UpstreamError = reader.failure
    assert found is not None
    return found


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the wire corpus is not beside this tree")
@pytest.mark.parametrize("path", in_success(), ids=lambda path: path.stem)
def test_recorded_errors_inside_a_success(path: Path) -> None:
    exchange = json.loads(path.read_text())
    expected = exchange["expected"]["error"]
    error = refine(failure_in(exchange), exchange["provider"], "p")
    assert error.failure in {CLASSES[name] for name in expected.get("class_accept") or [expected["class"]]}


def test_the_usual_rule_stands_in_no_table() -> None:
    assert BY_STATUS.get(400) is None
    assert BY_STATUS.get(500) is None
