"""What is read of a request without decoding it, and the edits on its way out: refusals name the field, and whatever is
not edited is the client's own byte (R24, R59, Q41)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slipstream.errors import ClientError
from slipstream.types import Endpoint
from slipstream.wire.request import MAX_MODEL_BYTES, is_model_name, outbound_body, patch, peek

CHAT, COMPLETIONS, EMBEDDINGS = Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS
GOOD = {
    CHAT: b'{"model":"m","messages":[]}',
    COMPLETIONS: b'{"model":"m","prompt":"p"}',
    EMBEDDINGS: b'{"model":"m","input":"i"}',
    Endpoint.RESPONSES: b'{"model":"m","input":"i"}',
    Endpoint.MESSAGES: b'{"model":"m","messages":[],"max_tokens":1}',
    Endpoint.COUNT_TOKENS: b'{"model":"m","messages":[]}',
    Endpoint.INFER: b'{"model":"m","prompt":"p"}',
}
RENAME = (("max_completion_tokens", "max_tokens"),)
fuzz = settings(deadline=None, derandomize=True, max_examples=80)


def refused(body: bytes, endpoint: Endpoint = CHAT) -> ClientError:
    with pytest.raises(ClientError) as caught:
        peek(endpoint, body)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def chat(more: str) -> bytes:
    return b'{"model":"m","messages":[]' + more.encode() + b"}"


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", Endpoint)
def test_peek_reads_what_routing_needs(endpoint: Endpoint) -> None:
    call = peek(endpoint, GOOD[endpoint])
    assert (call.endpoint, call.model, call.stream, call.wants_usage) == (endpoint, "m", False, False)
    assert call.body is GOOD[endpoint]
    start, end = call.subject_span()
    assert call.body[start:end] in (b"[]", b'"p"', b'"i"')


@pytest.mark.parametrize(
    ("value", "stream"), [("true", True), ("false", False), ("null", False), (None, False)], ids=str
)
def test_stream_is_true_only_when_it_says_true(value: str | None, stream: bool) -> None:
    assert peek(CHAT, chat(f',"stream":{value}') if value else GOOD[CHAT]).stream is stream


def test_embeddings_are_never_streamed() -> None:
    assert peek(EMBEDDINGS, b'{"model":"m","input":"i","stream":true}').stream is False


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ('{"include_usage":true}', True),
        ('{"include_usage":false}', False),
        ('{"include_usage":null}', False),
        ('{"include_usage":"true"}', False),
        ('{"x":{"include_usage":true}}', False),
        ("{}", False),
        ("null", False),
    ],
)
def test_usage_is_wanted_only_when_it_says_true(options: str, wants: bool) -> None:  # R68
    assert peek(CHAT, chat(f',"stream":true,"stream_options":{options}')).wants_usage is wants


def test_an_escaped_key_is_the_same_key() -> None:  # Q41
    call = peek(CHAT, b'{"mo\\u0064el":"m","messages":[],"str\\u0065am":true}')
    assert (call.model, call.stream) == ("m", True)


@pytest.mark.parametrize("name", ["é", "日本", 'a"b', "a\\b", "a\nb"])
def test_a_model_is_decoded(name: str) -> None:
    assert peek(CHAT, json.dumps({"model": name, "messages": []}).encode()).model == name


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[]", b'"x"', b"{", b'{"model":"m",}', b"\xff", b'{"a":1}x', b"\xef\xbb\xbf{}", b"{'a':1}"]
)
def test_not_json_is_said_without_showing_the_body(body: bytes) -> None:  # S-60, Q36
    error = refused(body)
    assert error.code == "invalid_json"
    assert "byte " in error.message


def test_the_body_is_not_echoed() -> None:  # R84
    assert "canary" not in refused(b'{"model":"canary-secret","messages":[}').message


@pytest.mark.parametrize("key", ["model", "stream", "stream_options", "messages"])
def test_a_decisive_key_twice_is_refused(key: str) -> None:  # Q41, S-62
    values = {"model": '"m"', "stream": "true", "stream_options": "{}", "messages": "[]"}
    body = "{" + ",".join(f'"{k}":{v}' for k, v in values.items()) + f',"{key}":{values[key]}}}'
    assert refused(body.encode()).param == key
    escaped = "{" + ",".join(f'"{k}":{v}' for k, v in values.items()) + f',"\\u{ord(key[0]):04x}{key[1:]}":null}}'
    assert refused(escaped.encode()).param == key


@pytest.mark.parametrize(("endpoint", "key"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_the_subject_twice_is_refused(endpoint: Endpoint, key: str) -> None:
    assert refused(f'{{"model":"m","{key}":"a","{key}":"b"}}'.encode(), endpoint).param == key


def test_other_keys_may_repeat() -> None:
    assert peek(CHAT, chat(',"seed":1,"seed":2,"x":1,"x":2')).model == "m"


@pytest.mark.parametrize(
    ("endpoint", "key"), [(CHAT, "messages"), (COMPLETIONS, "prompt"), (EMBEDDINGS, "input")], ids=str
)
def test_a_missing_subject_is_named(endpoint: Endpoint, key: str) -> None:
    error = refused(b'{"model":"m"}', endpoint)
    assert (error.param, error.code) == (key, "missing_required_parameter")
    assert key in error.message


@pytest.mark.parametrize("value", ["null", '"x"', "{}", "1", "true"])
def test_messages_are_an_array(value: str) -> None:
    error = refused(f'{{"model":"m","messages":{value}}}'.encode())
    assert (error.param, error.code) == ("messages", "invalid_type")


@pytest.mark.parametrize("value", ['"true"', "1", "[]", "{}"])
def test_stream_is_a_bool(value: str) -> None:
    assert refused(chat(f',"stream":{value}')).param == "stream"


@pytest.mark.parametrize("value", ['"x"', "1", "[]", "true"])
def test_stream_options_are_an_object(value: str) -> None:
    assert refused(chat(f',"stream_options":{value}')).param == "stream_options"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (None, "missing_required_parameter"),
        ("null", "invalid_type"),
        ("1", "invalid_type"),
        ('["m"]', "invalid_type"),
        ('""', "invalid_value"),
        ('"\\ud800"', "invalid_value"),
        ('"a\\udfff"', "invalid_value"),
    ],
)
def test_a_bad_model_is_named(model: str | None, code: str) -> None:
    body = '{"messages":[]' + (f',"model":{model}' if model is not None else "") + "}"
    error = refused(body.encode())
    assert (error.param, error.code) == ("model", code)


def test_a_model_may_be_as_long_as_the_message_says() -> None:
    longest = b"m" * MAX_MODEL_BYTES
    assert peek(CHAT, b'{"messages":[],"model":"' + longest + b'"}').model == longest.decode()
    error = refused(b'{"messages":[],"model":"' + longest + b'x"}')
    assert (error.param, error.code) == ("model", "invalid_type")
    assert str(MAX_MODEL_BYTES) in error.message


# ---- names that may leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt-4o", "a", "meta-llama/Llama-3.1-8B", "anthropic.claude-v2:0", "x@y", "a+b", "a_b", "org/team/m:free"]
)
def test_plain_names_are_usable(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "..", ".", "/etc/passwd", "a/../b", "a/..", "../a", "a//b", "a/./b", "a/.hidden", "-x", ":x", "@x",
        "a b", "a\r\nx-injected: 1", "a\n", "\na", "a\0", "a\x1b[2J", "a%2e", "%", "a?b", "a#b", "a\\b", "a&b", "a;b",
        "é", "日本", "a\u2028b", "٣", "a\u200d", 'a"', "a'", "<a>", "{a}", "$HOME", "a|b", "`id`",
    ],
)  # fmt: skip
def test_names_that_could_become_a_path_a_header_or_a_log_line_are_not(name: str) -> None:  # Q40, S-75
    assert not is_model_name(name)


@fuzz
@given(st.text(max_size=40))
def test_a_usable_name_is_printable_ascii_without_dot_segments(name: str) -> None:  # Q40
    if is_model_name(name):
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set(" %?#\\\"'<>;&\r\n")
        assert not {".", ".."} & set(name.split("/"))


# ---- what leaves -----------------------------------------------------------------------------------------------------


def out(body: bytes, model: str = "m", *, ask: bool = False, rename: Any = (), endpoint: Endpoint = CHAT) -> bytes:
    return outbound_body(peek(endpoint, body), model, ask_usage=ask, rename=rename)


@pytest.mark.parametrize(
    "body",
    [
        GOOD[CHAT],
        chat(',"stream":true,"stream_options":{"include_usage":true}'),
        chat(',"stream":false'),
        chat(',"max_tokens":1'),
    ],
)
def test_nothing_to_change_is_the_same_object(body: bytes) -> None:  # R24
    assert out(body, ask=True, rename=RENAME) is body


def test_only_streams_are_asked_for_usage() -> None:
    assert out(GOOD[CHAT], ask=True) is GOOD[CHAT]
    embeddings = b'{"model":"m","input":"i","stream":true}'
    assert out(embeddings, ask=True, endpoint=EMBEDDINGS) is embeddings
    assert b"include_usage" in out(b'{"model":"m","prompt":"","stream":true}', ask=True, endpoint=COMPLETIONS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ',"stream_options":{"include_usage":true}'),
        (',"stream_options":{}', ',"stream_options":{"include_usage":true}'),
        (',"stream_options":{ }', ',"stream_options":{"include_usage":true }'),
        (',"stream_options":null', ',"stream_options":{"include_usage":true}'),
        (',"stream_options":{"include_usage":false}', ',"stream_options":{"include_usage":true}'),
        (',"stream_options":{"include_usage": null}', ',"stream_options":{"include_usage": true}'),
        (',"stream_options":{"include_usage":{"a":[1]}}', ',"stream_options":{"include_usage":true}'),
        (',"stream_options":{"x":1}', ',"stream_options":{"include_usage":true,"x":1}'),
        (',"stream_options":{"x":1,"include_usage":0,"y":2}', ',"stream_options":{"x":1,"include_usage":true,"y":2}'),
    ],
)
def test_usage_is_asked_for_in_place(before: str, after: str) -> None:  # R68
    assert out(chat(',"stream":true' + before), ask=True) == chat(',"stream":true' + after)


@pytest.mark.parametrize("name", ["other", 'a"b\\c', "é", "a/b"])
def test_the_model_is_renamed_and_quoted(name: str) -> None:
    body = b' {\n "messages" : [ ] ,"model" :  "m"\t, "n":1.10E+2}\n'
    assert out(body, name) == body.replace(b'"m"', json.dumps(name, ensure_ascii=False).encode())


def test_a_model_written_with_escapes_is_renamed_too() -> None:
    assert out(b'{"model":"\\u006d","messages":[]}', "m") == b'{"model":"\\u006d","messages":[]}'
    assert out(b'{"model":"\\u006d","messages":[]}', "n") == b'{"model":"n","messages":[]}'


def test_a_key_is_renamed_unless_both_are_there() -> None:
    assert out(chat(',"max_completion_tokens" : 5'), rename=RENAME) == chat(',"max_tokens" : 5')
    both = chat(',"max_completion_tokens":5,"max_tokens":6')
    assert out(both, rename=RENAME) is both


def test_numbers_and_unknown_fields_survive() -> None:  # R65
    body = chat(',"seed":12345678901234567890123,"x":{"model":"m","stream":1e400},"y":-0.0,"z":"\\u00e9\\/"')
    assert out(body, "n") == body.replace(b'{"model":"m",', b'{"model":"n",', 1)


def test_every_attempt_starts_from_the_original() -> None:  # R59
    call = peek(CHAT, chat(',"stream":true'))
    first = [outbound_body(call, name, ask_usage=True) for name in ("a", "b", "a")]
    assert first[0] == first[2]
    assert call.body == chat(',"stream":true')


# Values that JSON decodes to themselves, so that a decoded comparison is exact.
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
options = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["x", "y", "include_obfuscation"]), plain, max_size=2),
    st.fixed_dictionaries({"a": plain, "include_usage": st.sampled_from([True, False, None, 0, "true"])}),
)
requests = st.fixed_dictionaries(
    {"model": st.text(min_size=1, max_size=8), "messages": st.lists(plain, max_size=3)},
    optional={
        "stream": st.sampled_from([True, True, False, None]),
        "stream_options": options,
        "max_tokens": st.integers(0, 9),
        "max_completion_tokens": st.integers(0, 9),
        "é": plain,
        "x": plain,
    },
)


def wanted(value: dict[str, Any], model: str, ask: bool) -> dict[str, Any]:
    """The change, made the slow way."""
    new = {**value, "model": model}
    if ask and value.get("stream") is True:
        new["stream_options"] = {**(value.get("stream_options") or {}), "include_usage": True}
    if "max_completion_tokens" in value and "max_tokens" not in value:
        new["max_tokens"] = new.pop("max_completion_tokens")
    return new


@fuzz
@given(requests, st.permutations(range(8)), st.text(min_size=1, max_size=8), st.booleans(), st.booleans())
def test_any_body_is_edited_like_its_decoded_value(
    value: dict[str, Any], order: list[int], model: str, ask: bool, ascii_only: bool
) -> None:
    keys = list(value)
    value = {keys[i]: value[keys[i]] for i in order if i < len(keys)}
    try:
        body = json.dumps(value, ensure_ascii=ascii_only, indent=1 if ask else None).encode()
        call = peek(CHAT, body)
        model.encode()
    except (UnicodeEncodeError, ClientError):
        assume(False)
    result = outbound_body(call, model, ask_usage=ask, rename=RENAME)
    assert json.loads(result) == wanted(value, model, ask)


space = st.sampled_from(["", " ", "\n", "\t ", "\r\n"])
FREE = [
    '"x":1E+400',
    '"tools":[{"model" : "m"}]',
    '"user":"\\u0061"',
    '"seed":-0.0',
    '"y":{"stream":true,"max_tokens":1}',
]
OPTIONS = [
    (None, None),
    ("null", '{"include_usage":true}'),
    ("{%s}", '{"include_usage":true%s}'),
    ('{%s"z":[ ]}', '{"include_usage":true,%s"z":[ ]}'),
    ('{%s"include_usage" : false , "z":1}', '{%s"include_usage" : true , "z":1}'),
]


@fuzz
@given(
    st.lists(st.sampled_from(FREE), unique=True), st.sampled_from(OPTIONS), space, space, st.booleans(), st.randoms()
)
def test_every_other_byte_is_the_clients(
    free: list[str], options: tuple[str, str], a: str, b: str, rename: bool, random: Any
) -> None:
    pairs = [(text, text) for text in [*free, '"messages":[ {"role":"user"} ]', '"stream":true']]
    pairs.append((f'"model"{a}:{b}"m"', f'"model"{a}:{b}"n"'))
    if rename:
        pairs.append((f'"max_completion_tokens"{b}:1', f'"max_tokens"{b}:1'))
    random.shuffle(pairs)
    if options[0] is not None:
        at = random.randrange(len(pairs) + 1)
        old, new = (o.replace("%s", a) for o in options)
        pairs.insert(at, (f'"stream_options":{b}{old}', f'"stream_options":{b}{new}'))
    before, after = ((a + "," + b).join(column) for column in zip(*pairs, strict=True))
    if options[0] is None:
        after += b + ',"stream_options":{"include_usage":true}'
    else:
        after += b
    result = out(f"{a}{{{b}{before}{b}}}{a}".encode(), "n", ask=True, rename=RENAME)
    assert result == f"{a}{{{b}{after}}}{a}".encode()


@fuzz
@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=3)), max_size=5))
def test_patch_replaces_spans_and_nothing_else(body: bytes, cuts: list[tuple[int, bytes]]) -> None:
    borders = sorted({at for at, _ in cuts if at <= len(body)})
    spans = list(zip(borders[::2], borders[1::2], strict=False))
    edits = [(start, end, new) for (start, end), (_, new) in zip(spans, cuts, strict=False)]
    expected = body
    for start, end, new in sorted(edits, reverse=True):
        expected = expected[:start] + new + expected[end:]
    assert patch(body, list(reversed(edits))) == expected


def test_patch_inserts_at_the_ends() -> None:
    assert patch(b"ab", [(2, 2, b"z"), (0, 0, b"a"), (1, 1, b"-")]) == b"aa-bz"
    assert patch(b"ab", []) == b"ab"
