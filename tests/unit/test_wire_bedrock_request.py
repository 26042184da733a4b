"""Canonical requests as bodies of Converse (PROTOCOLS.md 1.2, 2.5).

They are checked against the service model of botocore: its validator refuses unknown fields and wrong types.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import ClientError
from slipstream.providers.bedrock import TYPE
from slipstream.types import Secret
from slipstream.wire.bedrock.messages import FILLER, NO_OUTPUT, good_id, read_arguments
from slipstream.wire.bedrock.models import read_model, without_region_group
from slipstream.wire.bedrock.request import build_body, build_bytes

Json = dict[str, Any]
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
OPUS_4_7 = "global.anthropic.claude-opus-4-7"
NOVA = "us.amazon.nova-2-lite-v1:0"
DEEPSEEK = "deepseek.v3.2"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
PIXEL = "iVBORw0KGgoAAAANSUhEUg=="
USER: list[Json] = [{"role": "user", "content": "Hello"}]


def spec(**fields: Any) -> ProviderSpec:
    return ProviderSpec(**{"name": "aws", "type": "bedrock", "api_base": "", "api_key": Secret(""), **fields})


def build(request: Json, model: str = CLAUDE) -> tuple[Json, list[str]]:
    """The body, checked: the request is not changed, the second time gives the same (R59), the service model agrees."""
    before = copy.deepcopy(request)
    body, dropped = build_body(request, model)
    assert request == before
    assert build_body(request, model) == (body, dropped)
    body = json.loads(build_bytes(body))
    assert json.loads(TYPE.build(request, spec(), model).body) == body
    validate(body)
    return body, dropped


def built(model: str = CLAUDE, **fields: Any) -> Json:
    """The body of a request that loses nothing."""
    body, dropped = build({"messages": USER, **fields}, model)
    assert dropped == []
    return body


def lost(model: str = CLAUDE, **fields: Any) -> list[str]:
    return build({"messages": USER, **fields}, model)[1]


def turns(messages: list[Json], model: str = CLAUDE) -> list[Json]:
    found: list[Json] = build({"messages": messages}, model)[0]["messages"]
    return found


def refused(param: str, model: str = CLAUDE, **fields: Any) -> str:
    with pytest.raises(ClientError) as caught:
        build_body({"messages": USER, **fields}, model)
    assert caught.value.param == param
    return caught.value.message


_OPERATION: list[Any] = []


def validate(body: Json) -> None:
    """As botocore would before it sends the body."""
    if not _OPERATION:
        loaders = pytest.importorskip("botocore.loaders", reason="the extra 'bedrock' is not installed")
        from botocore.model import ServiceModel

        model = loaders.Loader().load_service_model("bedrock-runtime", "service-2")
        _OPERATION.append(ServiceModel(model).operation_model("ConverseStream").input_shape)
    from botocore.validate import ParamValidator

    report = ParamValidator().validate({**as_python(body), "modelId": "m"}, _OPERATION[0])
    assert not report.has_errors(), report.generate_report()
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
    for message in body["messages"]:
        assert message["content"]
        assert all(block["text"].strip() for block in message["content"] if "text" in block)


def as_python(value: Any) -> Any:
    """Blobs as bytes, as they are in the SDK."""
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner) if key in ("bytes", "redactedContent") else as_python(inner)
            for key, inner in value.items()
        }
    return [as_python(inner) for inner in value] if isinstance(value, list) else value


def call(call_id: str, name: str, arguments: Any) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: Any, **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **more}


def function(name: str, **more: Any) -> Json:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def test_a_plain_request() -> None:
    request = {"messages": USER, "max_completion_tokens": 64, "temperature": 0.5, "stop": "END", "stream": True}
    assert build(request, NOVA) == (
        {
            "messages": [{"role": "user", "content": [{"text": "Hello"}]}],
            "inferenceConfig": {"maxTokens": 64, "temperature": 0.5, "stopSequences": ["END"]},
        },
        [],
    )
    paths = built(stop=["a", "b"], top_p=0.5)["additionalModelResponseFieldPaths"]
    assert paths == ["/stop_sequence"], "Claude says which one it was, if it is asked"


def test_system_messages_go_apart() -> None:
    messages = [
        {"role": "system", "content": "One"},
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "\n"}]},
    ]
    body, _ = build({"messages": messages})
    assert body["system"] == [{"text": "One"}, {"text": "Two"}]
    assert body["messages"] == [{"role": "user", "content": [{"text": "Hi"}]}]
    assert turns([{"role": "system", "content": "Only"}]) == [{"role": "user", "content": [{"text": FILLER}]}]
    titan, _ = build({"messages": messages}, "amazon.titan-text-express-v1")
    assert titan["messages"] == [{"role": "user", "content": [{"text": "One"}, {"text": "Two"}, {"text": "Hi"}]}]
    assert "system" not in titan


def test_turns_alternate_begin_with_the_user_and_hold_no_blank_text() -> None:
    messages = [
        {"role": "assistant", "content": "Hi "},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": " "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "text", "text": "so: \n"}]},
    ]
    assert turns(messages) == [
        {"role": "user", "content": [{"text": FILLER}]},
        {"role": "assistant", "content": [{"text": "Hi "}]},
        {"role": "user", "content": [{"text": "a"}, {"text": "b"}, {"text": "c"}]},
        {"role": "assistant", "content": [{"text": "No."}, {"text": "so:"}]},
    ]


def test_parallel_results_in_one_turn_before_any_text() -> None:
    """#00156d67."""
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call("a", "w", '{"x":1}'), call("b", "w", "")]},
        result("a", "20 °C"),
        {"role": "user", "content": "and?"},
        result("b", [{"type": "text", "text": "oops"}], is_error=True),
    ]
    assert turns(messages)[1:] == [
        {
            "role": "assistant",
            "content": [
                {"text": "Let me see."},
                {"toolUse": {"toolUseId": "a", "name": "w", "input": {"x": 1}}},
                {"toolUse": {"toolUseId": "b", "name": "w", "input": {}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "a", "content": [{"text": "20 °C"}]}},
                {"toolResult": {"toolUseId": "b", "content": [{"text": "oops"}], "status": "error"}},
                {"text": "and?"},
            ],
        },
    ]


def test_results_by_family() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages = [
        USER[0],
        {"role": "assistant", "tool_calls": [call(c, "f", "{}") for c in "abc"]},
        result("a", '{"n": 1}', is_error=True),
        result("b", [{"type": "text", "text": "[1]"}, image]),
        result("c", " "),
    ]
    picture = {"image": {"format": "png", "source": {"bytes": PIXEL}}}

    def contents(model: str) -> list[Any]:
        return [block["toolResult"]["content"] for block in turns(messages, model)[-1]["content"]]

    assert contents(CLAUDE) == [[{"text": '{"n": 1}'}], [{"text": "[1]"}, picture], [{"text": NO_OUTPUT}]]
    assert contents("mistral.mistral-large-2407-v1:0") == [
        [{"json": {"n": 1}}],
        [{"json": {"result": [1]}}, picture],
        [{"json": {"result": NO_OUTPUT}}],
    ]
    assert build({"messages": messages}, DEEPSEEK)[1] == ["messages[].is_error"]


def test_arguments_that_are_no_object_are_kept() -> None:
    assert read_arguments(None) == read_arguments(" ") == {}
    assert read_arguments({"a": 1}) == {"a": 1}
    assert read_arguments("[1]") == {"_raw": "[1]"}
    assert read_arguments('{"a": ') == {"_raw": '{"a": '}


def test_ids_of_calls_stay_one() -> None:
    odd = "functions.get weather:0/" + "x" * 80
    assert good_id("tooluse_a-1:b.c") == "tooluse_a-1:b.c"
    assert good_id(odd) == good_id(odd) != good_id(odd + "y")
    messages = [USER[0], {"role": "assistant", "tool_calls": [call(odd, "f", "{}")]}, result(odd, "r")]
    found = turns(messages)
    assert found[1]["content"][0]["toolUse"]["toolUseId"] == found[2]["content"][0]["toolResult"]["toolUseId"]


def test_legacy_functions() -> None:
    messages = [
        USER[0],
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x":"1"}'}},
        {"role": "function", "name": "f", "content": "r"},
    ]
    body, dropped = build(
        {"messages": messages, "functions": [function("f")["function"]], "function_call": {"name": "f"}}
    )
    assert dropped == []
    assert body["messages"][2]["content"][0]["toolResult"]["toolUseId"] == "call_1"
    assert body["toolConfig"]["toolChoice"] == {"tool": {"name": "f"}}


def test_images_documents_and_audio() -> None:
    url = f"data:image/jpg;base64,{PIXEL}"
    content = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {
            "type": "file",
            "file": {"filename": "my  Report_№1.PDF", "file_data": f"data:application/pdf;base64,{PIXEL}"},
        },
        {"type": "file", "file": {"filename": "my Report-1.md", "file_data": f"data:;base64,{PIXEL}"}},
        {"type": "file", "file": {"filename": "my Report-1.txt", "file_data": f"data:text/plain;base64,{PIXEL}"}},
        {"type": "file", "file": {"file_data": "JVBERi0xLjQ="}},
        {"type": "file", "file": {"filename": "x", "file_data": f"data:image/webp;base64,{PIXEL}"}},
        {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
    ]
    body, dropped = build({"messages": [{"role": "user", "content": content}]})
    assert dropped == ["messages[].content[].image_url.detail"]
    source = {"bytes": PIXEL}
    assert body["messages"][0]["content"] == [
        {"text": "see"},
        {"image": {"format": "jpeg", "source": source}},
        {"document": {"format": "pdf", "name": "my Report-1", "source": source}},
        {"document": {"format": "txt", "name": "my Report-1 (2)", "source": source}},
        {"document": {"format": "txt", "name": "my Report-1 (3)", "source": source}},
        {"document": {"format": "pdf", "name": "document", "source": {"bytes": "JVBERi0xLjQ="}}},
        {"image": {"format": "webp", "source": source}},
        {"audio": {"format": "wav", "source": source}},
    ]
    only = turns([{"role": "user", "content": content[2:3]}])
    assert only[0]["content"][1:] == [{"text": FILLER}], "a document needs a text beside it"


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "s3://bucket/a.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {}}, "image_url.url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {"file_data": "https://example.com/a.pdf"}}, "file.file_data"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}}, "file.file_data"),
        ({"type": "file"}, "file"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "midi"}}, "input_audio.format"),
        ({"type": "input_audio"}, "input_audio"),
        ({"type": "hologram"}, "type"),
        ({"type": "text"}, "text"),
        (7, ""),
    ],
)
def test_parts_that_are_refused(part: Any, field: str) -> None:
    where = "messages[1].content[0]" + (f".{field}" if field else "")
    refused(where, messages=[USER[0], {"role": "user", "content": [part]}])


def test_messages_that_are_refused() -> None:
    for messages, param in (
        (None, "messages"),
        ([], "messages"),
        (["x"], "messages[0]"),
        ([{"role": "oracle"}], "messages[0].role"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "system", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]}],
         "messages[0].content[0].type"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}],
         "messages[0].tool_calls[0].function.name"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "messages[0].tool_calls[0].id"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].name"),
    ):  # fmt: skip
        refused(param, messages=messages)


def test_cache_points() -> None:
    mark = {"type": "ephemeral"}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {**mark, "ttl": "1h"}}]},
        {"role": "user", "content": [{"type": "text", "text": "u", "cache_control": {**mark, "ttl": "5m"}}]},
        {"role": "assistant", "content": "a", "tool_calls": [call("c", "f", "{}")], "cache_control": mark},
        result("c", "r", cache_control=mark),
    ]
    request = {"messages": messages, "tools": [{**function("f"), "cache_control": mark}], "cache_control": mark}
    point = {"cachePoint": {"type": "default"}}
    for model in (CLAUDE, NOVA, PROFILE):
        body, dropped = build(request, model)
        assert dropped == []
        assert body["system"] == [{"text": "s"}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
        assert body["messages"][0]["content"][1] == point
        assert body["messages"][1]["content"][2] == point
        assert body["messages"][2]["content"][1:] == [point, point]
        assert body["toolConfig"]["tools"][1] == point
    body, dropped = build(request, DEEPSEEK)
    assert dropped == ["cache_control"]
    assert b"cachePoint" not in build_bytes(body)


def test_reasoning_goes_back_unchanged() -> None:
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "hm",
        "thinking_blocks": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "redacted_thinking", "data": "QUJD"},
            {"type": "thinking", "thinking": "unsigned", "signature": ""},
            "odd",
        ],
    }
    messages = [USER[0], message, USER[0]]
    expected = [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
        {"reasoningContent": {"redactedContent": "QUJD"}},
        {"text": "Hi"},
    ]
    assert turns(messages)[1]["content"] == expected
    assert turns(messages, PROFILE)[1]["content"] == expected
    body, dropped = build({"messages": messages}, DEEPSEEK)
    assert (body["messages"][1]["content"], dropped) == ([{"text": "Hi"}], ["messages[].thinking_blocks"])
    unsigned = [USER[0], {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}, USER[0]]
    assert build({"messages": unsigned})[1] == ["messages[].reasoning_content"]


# ---- tools


def test_tools_and_choices() -> None:
    tools = [function("f", description="does"), {"type": "function", "function": {"name": "g", "description": " "}}]
    body = built(tools=tools)
    assert body["toolConfig"] == {
        "tools": [
            {
                "toolSpec": {
                    "name": "f",
                    "description": "does",
                    "inputSchema": {"json": tools[0]["function"]["parameters"]},
                }
            },
            {"toolSpec": {"name": "g", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
        ]
    }
    named = {"type": "function", "function": {"name": "f"}}
    for choice, expected in (("auto", None), ("required", {"any": {}}), (named, {"tool": {"name": "f"}})):
        assert built(tools=tools, tool_choice=choice)["toolConfig"].get("toolChoice") == expected
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    config = built(tools=tools, tool_choice=allowed)["toolConfig"]
    assert ([tool["toolSpec"]["name"] for tool in config["tools"]], config["toolChoice"]) == (["f"], {"any": {}})
    assert built(tools=tools, tool_choice={"type": "any"})["toolConfig"]["toolChoice"] == {"any": {}}
    assert "toolConfig" not in built(tools=tools, tool_choice="none")
    assert lost("meta.llama3-1-70b-instruct-v1:0", tools=tools, tool_choice="required") == ["tool_choice"]
    assert lost("us.anthropic.claude-opus-5-5", tools=tools, tool_choice="required") == ["tool_choice"]


def test_a_history_with_calls_keeps_its_tools() -> None:
    """PROTOCOLS.md 2.5: toolConfig must be there whenever the history holds calls."""
    messages = [USER[0], {"role": "assistant", "tool_calls": [call("a", "f", "{}")]}, result("a", "r")]
    body, dropped = build({"messages": messages})
    assert [tool["toolSpec"]["name"] for tool in body["toolConfig"]["tools"]] == ["f"]
    assert dropped == []
    body, dropped = build({"messages": messages, "tools": [function("g")], "tool_choice": "none"})
    assert [tool["toolSpec"]["name"] for tool in body["toolConfig"]["tools"]] == ["g"]
    assert dropped == ["tool_choice"]
    body, _ = build({"messages": [result("a", "r")]})
    assert body["toolConfig"]["tools"][0]["toolSpec"]["name"] == "tool"


def test_strict_parallel_and_foreign_tools() -> None:
    assert built(tools=[function("f", strict=True)])["toolConfig"]["tools"][0]["toolSpec"]["strict"] is True
    assert lost(NOVA, tools=[function("f", strict=True)]) == ["tools[].function.strict"]
    extra = built(tools=[function("f")], parallel_tool_calls=False)["additionalModelRequestFields"]
    assert extra == {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    named = {"type": "function", "function": {"name": "f"}}
    extra = built(tools=[function("f")], tool_choice=named, parallel_tool_calls=False)["additionalModelRequestFields"]
    assert extra == {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}}
    assert lost(NOVA, tools=[function("f")], parallel_tool_calls=False) == ["parallel_tool_calls"]
    assert lost(tools=[{"type": "custom", "custom": {"name": "c"}}, function("f")]) == ["tools[0].type"]
    assert "toolConfig" not in build({"messages": USER, "tools": [{"type": "web_search"}]})[0]


def test_tools_that_are_refused() -> None:
    refused("tools", tools={})
    refused("tools[0]", tools=["f"])
    refused("tools[0].function", tools=[{"type": "function"}])
    refused("tools[0].function.name", tools=[{"type": "function", "function": {}}])
    refused("tools[0].function.parameters", tools=[{"type": "function", "function": {"name": "f", "parameters": 1}}])
    for choice in ("sometimes", {"type": "function"}, 7):
        refused("tool_choice", tools=[function("f")], tool_choice=choice)


# ---- parameters


def test_thinking_of_claude() -> None:
    body = built(thinking={"type": "enabled", "budget_tokens": 2000}, max_tokens=4000)
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert body["inferenceConfig"] == {"maxTokens": 4000}
    body = built(reasoning_effort="low")
    budget = body["additionalModelRequestFields"]["thinking"]["budget_tokens"]
    assert 1024 <= budget < body["inferenceConfig"]["maxTokens"]
    body = built(OPUS_4_7, reasoning_effort="medium")
    assert body["additionalModelRequestFields"]["thinking"]["type"] == "adaptive"
    assert body["outputConfig"] == {"effort": "medium"}
    assert "additionalModelRequestFields" not in built(reasoning_effort="none")
    assert built(PROFILE, thinking={"type": "enabled", "budget_tokens": 5})["additionalModelRequestFields"]
    refused("reasoning_effort", reasoning_effort="much")


def test_sampling_that_claude_refuses() -> None:
    assert lost(OPUS_4_7, temperature=0.5, top_p=0.5, top_k=5) == ["temperature", "top_p", "top_k"]
    assert lost(OPUS_4_7, temperature=1, top_p=1) == []
    thinking = {"type": "enabled", "budget_tokens": 2000}
    assert lost(thinking=thinking, max_tokens=4000, temperature=0.5, top_p=0.9, top_k=5) == [
        "temperature",
        "top_p",
        "top_k",
    ]
    assert built(thinking=thinking, max_tokens=4000, top_p=0.97)["inferenceConfig"]["topP"] == 0.97
    assert lost(temperature=0.5, top_p=0.5) == ["top_p"]
    assert lost("anthropic.claude-3-haiku-20240307-v1:0", temperature=0.5, top_p=0.5) == []
    body, dropped = build({"messages": USER, "temperature": 1.7})
    assert (body["inferenceConfig"], dropped) == ({"temperature": 1}, ["temperature"])


def test_thinking_of_others() -> None:
    fields = "additionalModelRequestFields"
    assert built(NOVA, reasoning_effort="low")[fields] == {
        "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}
    }
    assert lost(NOVA, reasoning_effort="high", max_tokens=9, temperature=0.5) == ["max_tokens", "temperature"]
    thinking = {"type": "enabled", "budget_tokens": 4096}
    assert built("openai.gpt-oss-120b-1:0", thinking=thinking)[fields] == {"reasoning_effort": "medium"}
    assert built("us.openai.gpt-5.4", reasoning_effort="minimal")[fields] == {"reasoning": {"effort": "low"}}
    assert lost(DEEPSEEK, reasoning_effort="high") == ["reasoning_effort"]
    assert lost(DEEPSEEK, reasoning_effort="none") == lost(NOVA, thinking={"type": "disabled"}) == []
    assert lost("us.deepseek.r1-v1:0", thinking={"type": "disabled"}) == ["thinking"]
    assert built(NOVA, thinking={"type": "enabled"}, reasoning_effort="low")[fields]["reasoningConfig"]
    refused("thinking", NOVA, thinking=True)
    refused("reasoning_effort", NOVA, reasoning_effort=3)


def test_top_k() -> None:
    fields = "additionalModelRequestFields"
    assert built(top_k=7)[fields] == {"top_k": 7}
    assert built(NOVA, top_k=7)[fields] == {"inferenceConfig": {"topK": 7}}  # as in #c515ee80
    assert built("cohere.command-r-v1:0", top_k=7)[fields] == {"k": 7}
    assert lost(DEEPSEEK, top_k=7) == ["top_k"]
    assert lost(DEEPSEEK, top_k=-1) == []


def test_stop() -> None:
    body, dropped = build({"messages": USER, "stop": ["\n", "", "END"]})
    assert (body["inferenceConfig"]["stopSequences"], dropped) == (["END"], ["stop"])
    assert built(NOVA, stop=["\n", ""])["inferenceConfig"]["stopSequences"] == ["\n"]
    refused("stop", stop=7)
    refused("stop", stop=[7])


def test_structured_output() -> None:
    """#2cc72229: the schema is a JSON text."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True, "description": ""}}
    for model in (CLAUDE, DEEPSEEK, PROFILE):
        found = built(model, response_format=wanted)["outputConfig"]["textFormat"]
        definition = found["structure"]["jsonSchema"]
        assert (found["type"], definition["name"], json.loads(definition["schema"])) == ("json_schema", "n", schema)
    assert lost(NOVA, response_format=wanted) == ["response_format"]
    assert lost(response_format={"type": "json_object"}) == ["response_format"]
    assert "outputConfig" not in built(response_format={"type": "text"})
    refused("response_format", response_format="json")
    refused("response_format.json_schema", response_format={"type": "json_schema", "json_schema": {"name": "n"}})


def test_fields_of_converse_itself() -> None:
    guardrail = {"guardrailIdentifier": "abc", "guardrailVersion": "DRAFT", "trace": "enabled"}
    body = built(
        guardrailConfig=guardrail,
        performanceConfig={"latency": "optimized"},
        requestMetadata={"team": "a"},
        additionalModelRequestFields={"top_k": 9, "anthropic_beta": ["x"]},
        additionalModelResponseFieldPaths=["/x"],
        service_tier="flex",
        top_k=7,
        stop="s",
    )
    assert body["guardrailConfig"] == guardrail
    assert body["performanceConfig"] == {"latency": "optimized"}
    assert body["requestMetadata"] == {"team": "a"}
    assert body["additionalModelRequestFields"] == {"top_k": 9, "anthropic_beta": ["x"]}
    assert body["additionalModelResponseFieldPaths"] == ["/x"]
    assert body["serviceTier"] == {"type": "flex"}
    refused("guardrailConfig", guardrailConfig="abc")
    refused("additionalModelRequestFields", additionalModelRequestFields=[])
    refused("additionalModelResponseFieldPaths", additionalModelResponseFieldPaths={})


def test_what_is_dropped_is_named_and_nothing_else() -> None:  # R65
    said = {
        "seed": 0,
        "logit_bias": {"1": 2},
        "logprobs": True,
        "presence_penalty": 0.5,
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "scale",
        "verbosity": "low",
        "prompt_cache_key": "k",
        "bad\r\nname": 1,
    }
    unsaid = {
        "seed": None,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "n": 1,
        "store": False,
        "modalities": ["text"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "service_tier": "auto",
        "tools": [],
        "tool_choice": None,
        "parallel_tool_calls": True,
        "max_tokens": None,
        "model": "m",
    }
    expected = [name for name in said if name.isidentifier() and name != "service_tier"] + ["(other)", "service_tier"]
    assert sorted(lost(**said)) == sorted(expected)
    assert lost(**unsaid) == []
    many, dropped = build_body({"messages": USER, **{f"x{i}": 1 for i in range(500)}}, CLAUDE)
    assert len(dropped) < 50
    assert set(many) == {"messages"}


def test_parameters_that_are_refused() -> None:
    assert "leave 'n' out" in refused("n", n=2)
    for name in ("max_tokens", "max_completion_tokens", "top_k", "n"):
        refused(name, **{name: "7"})
        refused(name, **{name: True})
    refused("max_tokens", max_tokens=0)
    for name in ("temperature", "top_p"):
        refused(name, **{name: "hot"})
    assert built(max_tokens=10.0)["inferenceConfig"] == {"maxTokens": 10}
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(ClientError, match="nested"):
        TYPE.build({"messages": USER, "tools": [function("f", parameters=deep)]}, spec(), CLAUDE)


def test_what_messages_say_beside_their_content() -> None:
    custom = {"id": "a", "type": "custom", "custom": {"name": "c", "input": "free text"}}
    messages = [
        {"role": "user", "name": "Ann", "content": ["plain", {"type": "text", "text": "t"}]},
        {
            "role": "assistant",
            "audio": {"id": "x"},
            "content": [{"type": "refusal", "refusal": "No"}],
            "tool_calls": [custom],
        },
        result("a", "r"),
    ]
    body, dropped = build({"messages": messages})
    assert dropped == ["messages[].name", "messages[].audio"]
    assert body["messages"][0]["content"] == [{"text": "plain"}, {"text": "t"}]
    use = {"toolUseId": "a", "name": "c", "input": {"_raw": "free text"}}
    assert body["messages"][1]["content"] == [{"text": "No"}, {"toolUse": use}]


def test_a_string_is_an_image_url() -> None:
    part = {"type": "image_url", "image_url": f"data:image/gif;base64,{PIXEL}"}
    image = turns([{"role": "user", "content": [part]}])[0]["content"][0]["image"]
    assert image == {"format": "gif", "source": {"bytes": PIXEL}}


def test_models_by_id() -> None:
    assert read_model(CLAUDE) == ("anthropic", "claude-sonnet-4-5-20250929-v1:0")
    arn = f"arn:aws:bedrock:us-east-1:1:inference-profile/{CLAUDE}"
    assert read_model(arn) == read_model(CLAUDE)
    assert read_model("deepseek.v3.2") == ("deepseek", "v3.2")
    assert read_model("claude-opus-4-7").claude
    assert read_model(PROFILE).opaque
    assert without_region_group(CLAUDE) == CLAUDE[3:]
    assert without_region_group("us-gov.anthropic.claude-x") == "anthropic.claude-x"
    assert without_region_group("deepseek.v3.2") == "deepseek.v3.2"
    assert without_region_group("amazon.nova-lite-v1:0") == "amazon.nova-lite-v1:0"


# ---- anything


texts = st.sampled_from(["", " ", "a", "b ", "\n", "é"])
text_parts = st.lists(st.builds(lambda t: {"type": "text", "text": t}, texts), max_size=3)
ids = st.sampled_from(["a", "b", "call with space"])
messages_of = st.one_of(
    st.builds(
        lambda r, c: {"role": r, "content": c}, st.sampled_from(["system", "user", "assistant"]), texts | text_parts
    ),
    st.builds(
        lambda c, calls: {"role": "assistant", "content": c, "tool_calls": [call(i, "f", "{}") for i in calls]},
        texts | st.none(),
        st.lists(ids, max_size=2),
    ),
    st.builds(result, ids, texts | text_parts),
)


@settings(max_examples=80)
@given(st.lists(messages_of, min_size=1, max_size=7), st.sampled_from([CLAUDE, NOVA, DEEPSEEK, "mistral.mistral-7b"]))
def test_any_conversation_is_one_that_converse_takes(messages: list[Json], model: str) -> None:
    body, _ = build({"messages": messages}, model)
    if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        assert body["toolConfig"]["tools"]
