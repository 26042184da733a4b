"""Canonical requests in Gemini's words: every row of PROTOCOLS.md 1.2 and sheet 2.4 that concerns the request; nothing
changed, nothing lost in silence (R59, R65)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ClientError
from slipstream.providers.gemini import TYPE
from slipstream.wire.canonical import Json
from slipstream.wire.gemini.contents import FOREIGN_SIGNATURE
from slipstream.wire.gemini.request import build_body
from slipstream.wire.gemini.schema import MAX_NODES, to_openapi
from slipstream.wire.gemini.traits import traits
from tests.fakes import spec

fuzz = settings(deadline=None, derandomize=True, max_examples=80)
GOOGLE = spec("g", type="gemini", api_base="https://g.test/v1beta")
VERTEX = spec("v", type="gemini", api_base="https://v.test/v1/projects/p/locations/l/publishers/google")
G1, G2, G25, G25PRO, G3, G3PRO = (
    "gemini-1.5-flash", "gemini-2.0-flash", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-flash-preview",
    "gemini-3-pro-preview",
)  # fmt: skip
HI: Json = {"role": "user", "content": "Hi"}


def body(model: str = G25, **request: Any) -> Json:
    """The body for a request that loses nothing."""
    made, dropped = build_body({"messages": [HI], **request}, model)
    assert dropped == []
    return made


def lost(model: str = G25, **request: Any) -> list[str]:
    return build_body({"messages": [HI], **request}, model)[1]


def config(model: str = G25, **request: Any) -> Json:
    made: Json = body(model, **request).get("generationConfig", {})
    return made


def contents(*messages: Any, model: str = G25) -> list[Json]:
    made: list[Json] = body(model, messages=list(messages))["contents"]
    return made


def mistake(model: str = G25, **request: Any) -> str | None:
    """The field that the client is told about."""
    with pytest.raises(ClientError) as caught:
        build_body({"messages": [HI], **request}, model)
    assert caught.value.status == 400
    return caught.value.param


def says(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def calls(*named: tuple[str, str, str], text: str | None = None, **more: Any) -> Json:
    """An assistant's message with calls ``(id, name, arguments)``."""
    made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in named]
    return {"role": "assistant", "content": text, "tool_calls": made, **more}


def result(ident: str, content: Any, **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": ident, "content": content, **more}


# ---- turns ---------------------------------------------------------------------------------------------------------


def test_roles_and_the_system_instruction() -> None:
    made = body(
        messages=[
            says("system", "Be terse."),
            says("developer", [{"type": "text", "text": "And kind."}]),
            HI,
            says("assistant", "Hello"),
            says("user", "Who?"),
        ]
    )
    assert made == {
        "systemInstruction": {"parts": [{"text": "Be terse."}, {"text": "And kind."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Hello"}]},
            {"role": "user", "parts": [{"text": "Who?"}]},
        ],
    }


def test_turns_of_one_role_are_one_turn_and_empty_ones_none() -> None:
    made = contents(HI, says("user", "there"), says("assistant", ""), says("assistant", None), says("user", "?"))
    assert made == [{"role": "user", "parts": [{"text": "Hi"}, {"text": "there"}, {"text": "?"}]}]


def test_a_lone_system_message_is_asked_as_a_question() -> None:
    made = body(messages=[says("system", "Say hello.")])
    assert made == {"contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]}


def test_gemma_has_no_system_instruction() -> None:
    made = body("gemma-3-27b-it", messages=[says("system", "Be kind."), HI])
    assert made == {"contents": [{"role": "user", "parts": [{"text": "Be kind."}, {"text": "Hi"}]}]}
    assert "systemInstruction" in body("gemma-4-31b-it", messages=[says("system", "Be kind."), HI])


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (None, "messages"),
        ([], "messages"),
        ([says("user", "")], "messages"),
        ([7], "messages[0]"),
        ([HI, says("robot", "x")], "messages[1].role"),
        ([says("user", 7)], "messages[0].content"),
        ([says("user", [7])], "messages[0].content[0]"),
        ([says("user", [{"type": "hologram"}])], "messages[0].content[0].type"),
        ([HI, result("c1", "x")], "messages[1].tool_call_id"),
        ([HI, {"role": "assistant", "tool_calls": {}}], "messages[1].tool_calls"),
        ([HI, {"role": "assistant", "tool_calls": [{"id": "c"}]}], "messages[1].tool_calls[0]"),
    ],
)
def test_mistakes_in_messages_name_the_place(messages: Any, field: str) -> None:
    assert mistake(messages=messages) == field


# ---- calls and results ---------------------------------------------------------------------------------------------


def test_results_find_the_names_of_their_calls_and_their_order() -> None:  # PROTOCOLS 2.4: back by order and name
    made = contents(
        HI,
        calls(("c1", "weather", '{"city":"Bonn"}'), ("c2", "weather", "{}"), text="Let me see."),
        result("c2", "rain"),
        result("c1", '{"sky": "blue"}'),
        says("user", "So?"),
    )
    assert made[1] == {
        "role": "model",
        "parts": [
            {"text": "Let me see."},
            {"functionCall": {"name": "weather", "args": {"city": "Bonn"}}},
            {"functionCall": {"name": "weather", "args": {}}},
        ],
    }
    assert made[2] == {
        "role": "user",
        "parts": [
            {"functionResponse": {"name": "weather", "response": {"sky": "blue"}}},
            {"functionResponse": {"name": "weather", "response": {"output": "rain"}}},
        ],
    }
    assert made[3] == {"role": "user", "parts": [{"text": "So?"}]}


def test_gemini_3_has_ids_and_wants_a_signature_for_each_step() -> None:
    signed = calls(("c1", "f", "{}"), ("c2", "g", "{}"))
    signed["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "c2ln"}}
    foreign = calls(("c3", "f", "{}"), ("c4", "g", "{}"))
    made = contents(HI, signed, result("c1", "1"), result("c2", "2"), foreign, result("c3", "3"), model=G3)
    first, second = made[1]["parts"], made[3]["parts"]
    assert [part.get("thoughtSignature") for part in first] == ["c2ln", None]
    assert [part.get("thoughtSignature") for part in second] == [FOREIGN_SIGNATURE, None]
    assert [part["functionCall"]["id"] for part in first] == ["c1", "c2"]
    assert [part["functionResponse"]["id"] for part in made[2]["parts"]] == ["c1", "c2"]


def test_a_signature_goes_back_on_gemini_2_5_too() -> None:
    signed = calls(("c1", "f", "{}"))
    signed["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "c2ln"}}
    assert contents(HI, signed)[1]["parts"] == [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize(
    ("arguments", "args"),
    [('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ({"a": 1}, {"a": 1}), ("[1]", {"arguments": "[1]"}),
     ('{"a": ', {"arguments": '{"a": '})],
)  # fmt: skip
def test_arguments_become_an_object_whatever_they_are(arguments: Any, args: Json) -> None:
    made = contents(HI, calls(("c", "f", arguments)))
    assert made[1]["parts"] == [{"functionCall": {"name": "f", "args": args}}]


@pytest.mark.parametrize(
    ("message", "response"),
    [
        (result("c", "text"), {"output": "text"}),
        (result("c", ""), {"output": ""}),
        (result("c", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), {"output": "a\nb"}),
        (result("c", "[1,2]"), {"output": "[1,2]"}),
        (result("c", "{broken"), {"output": "{broken"}),
        (result("c", '{"a": {"b": null}}'), {"a": {"b": None}}),
        (result("c", "it broke", is_error=True), {"error": "it broke"}),
        (result("c", '{"why": 1}', is_error=True), {"error": {"why": 1}}),
    ],
)
def test_results_are_objects(message: Json, response: Json) -> None:
    made = contents(HI, calls(("c", "f", "{}")), message)
    assert made[2]["parts"] == [{"functionResponse": {"name": "f", "response": response}}]


def test_a_picture_in_a_result() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    data = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}
    messages = [HI, calls(("c", "f", "{}")), result("c", [{"type": "text", "text": "see"}, picture])]
    response = {"name": "f", "response": {"output": "see"}}
    assert contents(*messages)[2]["parts"] == [{"functionResponse": response}, data]
    made = contents(*messages, model=G3)[2]["parts"]
    assert made == [{"functionResponse": {**response, "id": "c", "parts": [data]}}]


def test_the_old_function_messages() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    made = contents(HI, old, {"role": "function", "name": "f", "content": "7"})
    assert made[1]["parts"] == [{"functionCall": {"name": "f", "args": {}}}]
    assert made[2]["parts"] == [{"functionResponse": {"name": "f", "response": {"output": "7"}}}]


def test_what_history_cannot_say_is_reported() -> None:  # R65
    messages = [
        says("user", [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}], name="Ann"),
        says("assistant", "x", reasoning_content="hm", thinking_blocks=[{"type": "thinking"}], audio={"id": "a"}),
        HI,
    ]
    assert lost(messages=messages) == [
        "messages[].name",
        "cache_control",
        "messages[].reasoning_content",
        "messages[].thinking_blocks",
        "messages[].audio",
    ]


def test_a_refusal_stays_in_the_history() -> None:
    made = contents(
        HI, says("assistant", None, refusal="No."), says("assistant", [{"type": "refusal", "refusal": "!"}])
    )
    assert made[1]["parts"] == [{"text": "No."}, {"text": "!"}]


# ---- a round trip --------------------------------------------------------------------------------------------------

_text = st.text(min_size=1, max_size=8)
_json = st.dictionaries(st.text(max_size=4), st.integers(-9, 9) | st.text(max_size=4) | st.none(), max_size=3)


@st.composite
def _histories(draw: st.DrawFn) -> list[Json]:
    """Turns as a client would send them: a user, an answer with or without calls, results in any order."""
    out: list[Json] = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        out.append(says("user", draw(_text)))
        text = draw(st.none() | _text)
        count = draw(st.integers(0 if text else 1, 3))
        named = [(f"id{number + n}", draw(st.sampled_from("fg")), json.dumps(draw(_json))) for n in range(count)]
        number += count
        if not named:
            out.append(says("assistant", text))
            continue
        out.append(calls(*named, text=text))
        results = [result(ident, draw(_text.filter(lambda t: t[0] != "{"))) for ident, _, _ in named]
        out += draw(st.permutations(results))
    return out


def _back(made: list[Json]) -> list[Json]:
    """Gemini's contents as canonical messages: what a reader of Gemini requests would see."""
    out: list[Json] = []
    for turn in made:
        parts = turn["parts"]
        text = "".join(part.get("text", "") for part in parts) or None
        for part in parts:
            if "functionResponse" in part:
                given = part["functionResponse"]
                out.append(result(given["id"], given["response"]["output"]))
        named = [
            (c["id"], c["name"], json.dumps(c["args"]))
            for c in (p["functionCall"] for p in parts if "functionCall" in p)
        ]
        if turn["role"] == "model":
            out.append(calls(*named, text=text) if named else says("assistant", text))
        elif text is not None:
            out.append(says("user", text))
    return out


@fuzz
@given(_histories())
def test_a_history_survives_the_way_there_and_back(messages: list[Json]) -> None:
    ordered: list[Json] = []
    run: list[Json] = []
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool":
            run.append(message)
            continue
        ordered += sorted(run, key=lambda m: int(m["tool_call_id"][2:]))
        run = []
        if message is not None:
            ordered.append(message)
    assert _back(contents(*messages, model=G3)) == ordered


_keys = st.sampled_from([
    "role", "content", "text", "type", "image_url", "url", "file", "input_audio", "data", "tool_calls", "function",
    "name", "arguments", "id", "tool_call_id", "tools", "tool_choice", "parameters", "properties", "response_format",
    "json_schema", "schema", "stop", "seed", "n", "temperature", "thinking", "reasoning_effort", "max_tokens",
    "logprobs", "top_logprobs", "modalities", "extra_body", "google", "user", "$ref", "anyOf", "enum", "required",
])  # fmt: skip
_words = st.sampled_from(["user", "assistant", "tool", "text", "function", "json_schema", "object", "enabled", "#/x"])
_any = st.recursive(
    st.none() | st.booleans() | st.integers() | _words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=5),
    max_leaves=25,
)


@fuzz
@given(st.dictionaries(_keys, _any, max_size=6), st.lists(_any, max_size=3), st.sampled_from([G1, G25, G3]))
def test_no_request_raises_anything_but_a_client_error(request: Json, messages: list[Any], model: str) -> None:
    whole = {**request, "messages": [HI, *messages]}
    before = copy.deepcopy(whole)
    try:
        first = TYPE.build(whole, GOOGLE, model)
    except ClientError as error:
        assert error.param is not None  # noqa: PT017
    else:
        assert TYPE.build(whole, GOOGLE, model) == first  # R59
    assert whole == before


# ---- parts ---------------------------------------------------------------------------------------------------------


def part(**made: Any) -> Json:
    """The second part of a user's message: what became of this part."""
    [turn] = contents(says("user", [{"type": "text", "text": "x"}, made]))
    one: Json = turn["parts"][1]
    return one


def image(url: Any, **more: Any) -> Json:
    return part(type="image_url", image_url={"url": url, **more})


def test_pictures() -> None:  # PROTOCOLS 1.2
    assert image("data:image/webp;base64,QUJD") == {"inlineData": {"mimeType": "image/webp", "data": "QUJD"}}
    assert image("https://a.test/b/c.PNG?x=y.gif#z") == {
        "fileData": {"fileUri": "https://a.test/b/c.PNG?x=y.gif#z", "mimeType": "image/png"}
    }
    assert image("https://a.test/picture")["fileData"]["mimeType"] == "image/jpeg"
    assert image("gs://bucket/a.heic")["fileData"]["mimeType"] == "image/heic"
    assert image("https://a.test/x", format="image/gif")["fileData"]["mimeType"] == "image/gif"
    own = "https://generativelanguage.googleapis.com/v1beta/files/abc"
    assert image(own) == {"fileData": {"fileUri": own}}
    assert part(type="image_url", image_url="https://a.test/a.gif")["fileData"]["mimeType"] == "image/gif"
    assert part(type="video_url", video_url={"url": "https://a.test/a"})["fileData"]["mimeType"] == "video/mp4"


def test_sound_and_files() -> None:
    def inline(kind: str) -> Json:
        return {"inlineData": {"mimeType": kind, "data": "QUJD"}}

    assert part(type="input_audio", input_audio={"data": "QUJD", "format": "mp3"}) == inline("audio/mp3")
    assert part(type="input_audio", input_audio={"data": "QUJD", "format": "wav"}) == inline("audio/wav")
    assert part(type="input_audio", input_audio={"data": "data:audio/ogg;base64,QUJD"}) == inline("audio/ogg")
    pdf = inline("application/pdf")
    assert part(type="file", file={"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}) == pdf
    assert part(type="file", file={"file_data": "QUJD", "filename": "a.pdf"}) == pdf
    assert part(type="file", file={"file_data": "QUJD", "filename": "a.csv"}) == inline("text/csv")
    uri = "https://generativelanguage.googleapis.com/v1beta/files/abc"
    assert part(type="file", file={"file_id": "files/abc"}) == {"fileData": {"fileUri": uri}}
    assert part(type="file", file={"file_id": "gs://b/c.pdf"})["fileData"]["mimeType"] == "application/pdf"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"type": "image_url"}, "image_url"),
        ({"type": "image_url", "image_url": {"url": ""}}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg/>"}}, "image_url"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "file", "file": "x"}, "file"),
        ({"type": "file", "file": {"file_id": "file-abc"}}, "file"),
    ],
)
def test_mistakes_in_parts_name_the_place(given: Json, field: str) -> None:
    assert mistake(messages=[says("user", [given])]) == "messages[0].content[0]." + field


def test_the_detail_of_a_picture_is_reported() -> None:
    def message(detail: str) -> Json:
        return says("user", [{"type": "image_url", "image_url": {"url": "gs://a/b.png", "detail": detail}}])

    assert lost(messages=[message("low")]) == ["messages[].content[].image_url.detail"]
    assert lost(messages=[message("auto")]) == []


# ---- generationConfig ----------------------------------------------------------------------------------------------


def test_names_and_scales() -> None:  # PROTOCOLS 1.2
    assert config(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        presence_penalty=-1.5,
        frequency_penalty=1,
        max_completion_tokens=50,
        max_tokens=99,
        stop=["a", "", "b"],
        seed=7,
        n=2,
        logprobs=True,
        top_logprobs=3,
        stream=True,
        stream_options={"include_usage": True},
        user=None,
    ) == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "presencePenalty": -1.5,
        "frequencyPenalty": 1,
        "maxOutputTokens": 50,
        "stopSequences": ["a", "b"],
        "seed": 7,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
    }
    assert config(max_tokens=99, stop="x", n=1, logprobs=False, top_logprobs=None) == {
        "maxOutputTokens": 99,
        "stopSequences": ["x"],
    }
    assert config(logprobs=True, top_logprobs=0) == {"responseLogprobs": True}
    assert config() == {}


@fuzz
@given(st.integers())
def test_every_seed_fits_and_is_always_the_same(seed: int) -> None:
    made = config(seed=seed)["seed"]
    assert -(2**31) <= made < 2**31
    assert made == config(seed=seed)["seed"]
    assert made == seed or not -(2**31) <= seed < 2**31


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"), ("top_p", True), ("max_tokens", 0), ("max_completion_tokens", 1.5), ("seed", "x"),
        ("n", 0), ("stop", 7), ("stop", [7]), ("stop", list("abcdef")), ("logprobs", 3), ("top_logprobs", -1),
        ("response_format", "json"), ("response_format", {"type": "xml"}), ("reasoning_effort", "huge"),
        ("thinking", {"type": "maybe"}), ("thinking", True), ("modalities", "text"), ("safety_settings", {}),
        ("cached_content", 7), ("tools", {}), ("tool_choice", "required"), ("tool_choice", "perhaps"),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"tools": []}}),
    ],
)  # fmt: skip
def test_mistakes_name_the_field(field: str, value: Any) -> None:
    assert mistake(**{field: value}) == field


def test_a_mistake_inside_a_field_names_it() -> None:
    assert mistake(response_format={"type": "json_schema"}) == "response_format.json_schema"
    assert mistake(thinking={"type": "enabled", "budget_tokens": "x"}) == "thinking.budget_tokens"
    assert mistake(tools=[7]) == "tools[0]"
    assert mistake(tools=[{"type": "function"}]) == "tools[0].function"
    assert mistake(tools=[{"type": "function", "function": {}}]) == "tools[0].function.name"
    bad = {"type": "function", "function": {"name": "f", "parameters": [1]}}
    assert mistake(tools=[bad]) == "tools[0].function.parameters"


SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}, "additionalProperties": False}


def test_answer_formats() -> None:  # recorded: #c537e1d1
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    mime = {"responseMimeType": "application/json"}
    assert config(response_format={"type": "text"}) == {}
    assert config(response_format={"type": "json_object"}) == mime
    assert config(response_format=wanted) == {**mime, "responseJsonSchema": SCHEMA}
    assert config(G2, response_format=wanted) == {
        **mime,
        "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "INTEGER", "nullable": True}}},
    }
    wanted["json_schema"]["description"] = "About it"  # type: ignore[index]
    assert config(response_format=wanted)["responseJsonSchema"] == {**SCHEMA, "description": "About it"}
    assert "description" not in SCHEMA


def test_what_an_old_models_schema_cannot_say_is_reported() -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"not": {}, "type": "object"}}}
    assert lost(G2, response_format=wanted) == ["response_format.json_schema.schema.not"]


def test_modalities() -> None:
    assert config(modalities=["text"]) == {}
    assert config(modalities=["text", "image"]) == {"responseModalities": ["TEXT", "IMAGE"]}
    assert lost(modalities=["text", "audio"]) == ["modalities"]


# ---- thinking ------------------------------------------------------------------------------------------------------

BUDGET = {"type": "enabled", "budget_tokens": 5000}
ON, OFF = {"type": "adaptive"}, {"type": "disabled"}


@pytest.mark.parametrize(
    ("model", "request_", "thinking"),
    [
        (G25, {"reasoning_effort": "low"}, {"includeThoughts": True, "thinkingBudget": 1024}),
        (G25, {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingBudget": 8192}),
        (G25, {"reasoning_effort": "max"}, {"includeThoughts": True, "thinkingBudget": 24576}),
        (G25PRO, {"reasoning_effort": "max"}, {"includeThoughts": True, "thinkingBudget": 32768}),
        (G25, {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        (G25, {"thinking": OFF}, {"thinkingBudget": 0}),
        (G25, {"thinking": ON}, {"includeThoughts": True, "thinkingBudget": -1}),
        (G25, {"thinking": BUDGET, "reasoning_effort": "low"}, {"includeThoughts": True, "thinkingBudget": 5000}),
        (G25PRO, {"thinking": {**BUDGET, "budget_tokens": 7}}, {"includeThoughts": True, "thinkingBudget": 128}),
        ("gemini-2.5-flash-lite", {"thinking": {**BUDGET, "budget_tokens": 7}},
         {"includeThoughts": True, "thinkingBudget": 512}),
        (G3, {"reasoning_effort": "minimal"}, {"includeThoughts": True, "thinkingLevel": "minimal"}),
        (G3, {"reasoning_effort": "xhigh"}, {"includeThoughts": True, "thinkingLevel": "high"}),
        (G3, {"thinking": BUDGET}, {"includeThoughts": True, "thinkingLevel": "medium"}),
        (G3, {"thinking": {**BUDGET, "budget_tokens": 1024}}, {"includeThoughts": True, "thinkingLevel": "low"}),
        (G3, {"thinking": {**BUDGET, "budget_tokens": 30000}}, {"includeThoughts": True, "thinkingLevel": "high"}),
        (G3, {"thinking": ON}, {"includeThoughts": True}),
        (G3PRO, {"reasoning_effort": "minimal"}, {"includeThoughts": True, "thinkingLevel": "low"}),
        (G3PRO, {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingLevel": "high"}),
        ("gemini-3.1-pro", {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingLevel": "medium"}),
        (G25, {"extra_body": {"google": {"thinking_config": {"thinking_budget": 9}}}}, {"thinking_budget": 9}),
        (G2, {"reasoning_effort": "none"}, None),
        (G25, {}, None),
    ],
)  # fmt: skip
def test_thinking(model: str, request_: Json, thinking: Json | None) -> None:  # PROTOCOLS 1.2
    assert config(model, **request_).get("thinkingConfig") == thinking


@pytest.mark.parametrize(
    ("model", "request_", "field", "thinking"),
    [
        (G2, {"reasoning_effort": "high"}, "reasoning_effort", None),
        (G2, {"thinking": BUDGET}, "thinking", None),
        (G25PRO, {"reasoning_effort": "none"}, "reasoning_effort", {"thinkingBudget": 128}),
        (G3, {"thinking": OFF}, "thinking", {"thinkingLevel": "minimal"}),
        (G3PRO, {"reasoning_effort": "none"}, "reasoning_effort", {"thinkingLevel": "low"}),
    ],
)
def test_thinking_that_cannot_be_had_is_reported(model: str, request_: Json, field: str, thinking: Any) -> None:
    made, dropped = build_body({"messages": [HI], **request_}, model)
    assert dropped == [field]
    assert made.get("generationConfig", {}).get("thinkingConfig") == thinking


@pytest.mark.parametrize(
    ("model", "generation"),
    [
        ("gemini-1.5-pro", (1, 5)), ("gemini-pro", (1, 0)), ("gemini-2.0-flash-001", (2, 0)), ("gemini-3", (3, 0)),
        ("models/gemini-2.5-pro", (2, 5)), ("gemini-3.1-flash-lite", (3, 1)), ("gemini-flash-latest", (3, 1)),
        ("my-tuned-model", (3, 1)), ("gemma-3-27b-it", (3, 0)), ("gemma-3n-e4b-it", (3, 0)),
    ],
)  # fmt: skip
def test_generations(model: str, generation: tuple[int, int]) -> None:
    assert traits(model).generation == generation


# ---- tools ---------------------------------------------------------------------------------------------------------


def tool(name: str = "f", **more: Any) -> Json:
    return {"type": "function", "function": {"name": name, **more}}


def test_tools_and_their_schemas() -> None:
    tools = [tool("f", description="Does it", parameters=SCHEMA), tool("g", parameters={}), tool("h")]
    assert body(tools=tools)["tools"] == [
        {
            "functionDeclarations": [
                {"name": "f", "description": "Does it", "parametersJsonSchema": SCHEMA},
                {"name": "g"},
                {"name": "h"},
            ]
        }
    ]
    old = body(G1, tools=[*tools, tool("e", parameters={"type": "object", "properties": {}})])["tools"]
    declared = old[0]["functionDeclarations"]
    assert declared[0]["parameters"]["properties"] == {"a": {"type": "INTEGER", "nullable": True}}
    assert declared[3] == {"name": "e"}  # an OBJECT without properties is refused
    assert body(functions=[{"name": "f"}])["tools"] == [{"functionDeclarations": [{"name": "f"}]}]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "f"}}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        ({"name": "f"}, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("f")]}},
            {"mode": "VALIDATED", "allowedFunctionNames": ["f"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("f")]}},
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
    ],
)
def test_tool_choice(choice: Any, wanted: Json) -> None:  # PROTOCOLS 1.2
    assert body(tools=[tool()], tool_choice=choice)["toolConfig"] == {"functionCallingConfig": wanted}


def test_a_choice_without_tools_is_left_out() -> None:
    assert "toolConfig" not in body(tool_choice="auto")
    assert "toolConfig" not in body(tool_choice="none", tools=[])


def test_googles_own_tools() -> None:
    tools = [{"google_search": {}}, {"type": "code_execution"}, {"urlContext": {}}, {"type": "web_search_preview"}]
    assert body(tools=tools)["tools"] == [
        {"google_search": {}},
        {"code_execution": {}},
        {"urlContext": {}},
        {"googleSearch": {}},
    ]
    assert body(web_search_options={})["tools"] == [{"googleSearch": {}}]
    assert lost(web_search_options={"search_context_size": "low"}) == ["web_search_options"]


def test_what_tools_cannot_say_is_reported() -> None:
    tools = [tool(strict=True), {**tool(), "cache_control": {"type": "ephemeral"}}, {"type": "custom", "custom": {}}]
    assert lost(tools=tools, parallel_tool_calls=False) == [
        "tools[].strict",
        "cache_control",
        "tools[].type",
        "parallel_tool_calls",
    ]
    assert lost(tools=[tool()], parallel_tool_calls=True) == []
    assert lost(parallel_tool_calls=False) == []


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_googles_own_fields() -> None:
    settings_ = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    made = body(safety_settings=settings_, cached_content="cachedContents/x")
    assert made["safetySettings"] == settings_
    assert made["cachedContent"] == "cachedContents/x"
    extra = {"google": {"safety_settings": settings_, "cached_content": "cachedContents/y"}}
    made = body(extra_body=extra)
    assert made["safetySettings"] == settings_
    assert made["cachedContent"] == "cachedContents/y"
    assert lost(extra_body={"google": {"x": 1}, "y": 2}) == ["extra_body", "extra_body.google"]


def test_what_gemini_has_no_word_for_is_reported() -> None:  # R65
    fields = {
        "user": "me",
        "metadata": {"a": "b"},
        "logit_bias": {"1": 2},
        "min_p": 0.1,
        "service_tier": "flex",
        "x": 0,
    }
    assert lost(**fields) == list(fields)


def test_what_asks_for_nothing_is_not_reported() -> None:
    assert (
        lost(
            user=None,
            metadata={},
            logit_bias={},
            store=False,
            service_tier="auto",
            repetition_penalty=1.0,
            min_p=0,
            verbosity="medium",
            parallel_tool_calls=True,
        )
        == []
    )


def test_counting() -> None:  # recorded: #9e43ab6e
    request = {"messages": [says("system", "Be terse."), HI], "tools": [tool()], "tool_choice": "auto", "user": "me"}
    built = TYPE.build_count(request, GOOGLE, "models/gemini-3.5-flash")
    assert built is not None
    assert json.loads(built.body) == {
        "generateContentRequest": {
            "model": "models/gemini-3.5-flash",
            "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
            "systemInstruction": {"parts": [{"text": "Be terse."}]},
            "tools": [{"functionDeclarations": [{"name": "f"}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
        }
    }
    flat = TYPE.build_count(request, VERTEX, "gemini-3.5-flash")
    assert flat is not None
    assert set(json.loads(flat.body)) == {"contents", "systemInstruction", "tools"}


# ---- JSON Schema in the OpenAPI subset -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "made", "keywords"),
    [
        ({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, []),
        ({"type": "string", "format": "email"}, {"type": "STRING"}, ["format"]),
        ({"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, []),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}, []),
        ({"enum": ["a", None]}, {"type": "STRING", "enum": ["a"], "nullable": True}, []),
        ({"type": "integer", "enum": [1, 2]}, {"type": "INTEGER"}, ["enum"]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"type": "STRING", "nullable": True}, []),
        (
            {"anyOf": [{"type": "string"}, {"type": "number"}]},
            {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}]},
            [],
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]},
                       {"type": "object", "properties": {"b": {}}, "required": ["a", "b"]}]},
            {"type": "OBJECT", "properties": {"a": {"type": "STRING"}, "b": {}}, "required": ["a", "b"]},
            [],
        ),
        (
            {"$defs": {"x": {"type": "string"}}, "type": "array", "items": {"$ref": "#/$defs/x", "title": "X"}},
            {"type": "ARRAY", "items": {"type": "STRING", "title": "X"}},
            [],
        ),
        ({"type": "array"}, {"type": "ARRAY", "items": {}}, []),
        ({"$ref": "#/nowhere"}, {}, ["$ref"]),
        ({"$ref": "https://a.test/schema"}, {}, ["$ref"]),
        ({"$schema": "x", "$id": "y", "additionalProperties": False}, {}, []),
        ({"additionalProperties": {}, "uniqueItems": True}, {}, ["additionalProperties", "uniqueItems"]),
    ],
)  # fmt: skip
def test_schemas(schema: Json, made: Json, keywords: list[str]) -> None:
    before = copy.deepcopy(schema)
    assert to_openapi(schema) == (made, keywords)
    assert schema == before


def test_a_recursive_schema_ends() -> None:
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "string"}}}
    made, keywords = to_openapi(schema)
    assert made["properties"]["next"]["properties"]["next"] == {"type": "OBJECT"}
    assert keywords == ["$ref"]


def test_a_schema_that_explodes_is_cut() -> None:
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(20)}
    made, keywords = to_openapi({"$defs": {**definitions, "d20": {"type": "string"}}, "$ref": "#/$defs/d0"})
    assert "depth" in keywords
    assert len(json.dumps(made)) < MAX_NODES * 60
