"""The lesser endpoints of OpenAI's dialect for providers without them: legacy completions through chat, embeddings, and
lists of models (PROTOCOLS.md 2.1, 2.9)."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse

from slipstream.errors import ClientError, MalformedReply
from slipstream.wire import openai_completions, openai_embeddings
from slipstream.wire.canonical import Answer, Chunk, Reply
from slipstream.wire.openai_chat.reader import ChatReader
from slipstream.wire.openai_chat.reply import read_reply
from slipstream.wire.openai_completions import CompletionsWriter
from slipstream.wire.openai_models import read_models
from slipstream.wire.usage import Usage
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
FOLDER = SHARED / "wire" / "dev"
ANSWER = Answer("01", "asked-for", 1_700_000_000, {}, include_usage=True)
USAGE = Usage(3, 0, 0, 2, 0, "provider")


def recorded(api: str) -> list[Any]:
    paths = sorted(FOLDER.glob(f"*.{api}.*.json")) if FOLDER.is_dir() else []
    found = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    good = [exchange for exchange in found if exchange["expected"]["outcome"] == "ok" and exchange["api"] == api]
    skip = pytest.mark.skip(reason=f"no recorded exchanges in {FOLDER}")
    return [pytest.param(exchange, id=exchange["id"]) for exchange in good] or [pytest.param(None, marks=skip)]


# ---- legacy completions: the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Say hi", ["Say hi"]])
def test_a_prompt_is_a_user_message(prompt: Any) -> None:
    body = {"model": "m", "prompt": prompt, "stop": "\n", "stream": True, "seed": None, "echo": False, "suffix": ""}
    assert openai_completions.decode_request(body) == (
        {
            "model": "m",
            "stop": "\n",
            "stream": True,
            "messages": [{"role": "user", "content": "Say hi"}],
            "max_tokens": 16,
        },
        [],
    )


def test_logprobs_and_what_gets_lost() -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 0, "logprobs": 3, "best_of": 4, "top_k": 9}
    request, dropped = openai_completions.decode_request(body)
    assert (request["logprobs"], request["top_logprobs"], request["max_tokens"]) == (True, 3, 0)
    assert dropped == ["best_of", "top_k"]
    assert openai_completions.decode_request({"prompt": "x", "best_of": 2, "n": 2})[1] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
    ],
)
def test_what_chat_cannot_do_is_refused(body: Any, param: str) -> None:
    with pytest.raises(ClientError) as raised:
        openai_completions.decode_request(body)
    assert raised.value.param == param


# ---- legacy completions: the answer ----------------------------------------------------------------------------------

LOGPROBS = {"content": [{"token": "He", "logprob": -0.5, "top_logprobs": [{"token": "He", "logprob": -0.5}]}]}


def test_a_whole_completion() -> None:
    choices = [
        {"index": 0, "message": {"content": "He"}, "finish_reason": "tool_calls", "logprobs": LOGPROBS},
        {"index": 1, "message": {"content": None}, "finish_reason": "length"},
    ]
    body = openai_completions.encode_reply(Reply(choices, model="real", created=5, usage=USAGE), ANSWER)
    value = Completion.model_validate(json.loads(body), strict=True)
    assert (value.id, value.model, value.created, value.object) == ("cmpl-01", "real", 5, "text_completion")
    assert [(c.text, c.index, c.finish_reason) for c in value.choices] == [("He", 0, "stop"), ("", 1, "length")]
    assert value.choices[0].logprobs is not None
    assert value.choices[0].logprobs.model_dump() == {
        "tokens": ["He"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"He": -0.5}],
        "text_offset": [0],
    }
    assert value.usage is not None
    assert value.usage.total_tokens == 5


def events(stream: bytes) -> list[Any]:
    assert stream.endswith(b"data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in stream.split(b"\n\n") if line.startswith(b"data: {")]


def test_a_streamed_completion() -> None:
    reader, writer = ChatReader("p"), CompletionsWriter(ANSWER)
    reader.usage = USAGE
    chunks = [
        Chunk({"reasoning_content": "hm"}),
        Chunk({"content": "He"}, logprobs=LOGPROBS),
        Chunk({"content": "llo"}, 0, "stop", logprobs=LOGPROBS),
        Chunk({}, 0, "stop"),
        Chunk({"content": "x"}, 1),
    ]
    out = events(writer.write(chunks, reader) + writer.end(reader))
    for value in out:
        Completion.model_validate(
            {**value, "choices": [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in value["choices"]]}
        )
    found = [(c["text"], c["index"], c["finish_reason"]) for value in out for c in value["choices"]]
    assert found == [("He", 0, None), ("llo", 0, "stop"), ("x", 1, None), ("", 1, "stop")]
    assert out[1]["choices"][0]["logprobs"]["text_offset"] == [2]
    assert out[-1]["choices"] == []
    assert out[-1]["usage"]["total_tokens"] == 5
    assert out[0]["usage"] is None


def test_an_empty_stream_and_an_error() -> None:
    writer = CompletionsWriter(Answer("1", "m", 3, {}))
    out = events(writer.end(ChatReader("p")))
    assert [value["choices"][0]["finish_reason"] for value in out] == ["stop"]
    assert "usage" not in out[0]
    assert b"DONE" not in writer.error(MalformedReply("it broke"))


@pytest.mark.parametrize("exchange", recorded("completions"))
def test_recorded_completions_come_back_as_they_were(exchange: Any) -> None:
    """Read as canonical answers and written again: the text is that of the recording."""
    body = exchange["response"]["body"].encode()
    if exchange["endpoint"] == "stream":
        reader, writer = ChatReader("p"), CompletionsWriter(ANSWER)
        out = writer.write(reader.feed(body), reader) + writer.write(reader.end(), reader) + writer.end(reader)
        choices = [choice for value in events(out) for choice in value["choices"]]
    else:
        choices = json.loads(openai_completions.encode_reply(read_reply(body, "p"), ANSWER))["choices"]
    assert "".join(choice["text"] for choice in choices) == exchange["expected"]["text"]
    assert choices[-1]["finish_reason"] == exchange["expected"]["finish_reason"]


# ---- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["x", ["x", "y"], [1, 2], [[1], [2, 3]]])
def test_good_inputs(given: Any) -> None:
    body = {"model": "m", "input": given, "encoding_format": "base64", "dimensions": 3, "user": None}
    request = openai_embeddings.decode_request(body)
    assert request == {"model": "m", "input": given, "encoding_format": "base64", "dimensions": 3}
    many = isinstance(given, list) and not isinstance(given[0], int)
    assert openai_embeddings.inputs_of(request) == (given if many else [given])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": "3"}, "dimensions"),
    ],
)
def test_bad_inputs(body: Any, param: str) -> None:
    with pytest.raises(ClientError) as raised:
        openai_embeddings.decode_request(body)
    assert raised.value.param == param


@fuzz
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5), max_size=3))
def test_vectors_survive_both_forms(vectors: list[list[float]]) -> None:
    for form in ("float", "base64"):
        answer = Answer("1", "m", 3, {"encoding_format": form})
        value = json.loads(openai_embeddings.encode_reply(vectors, USAGE, answer))
        CreateEmbeddingResponse.model_validate(
            {**value, "data": [{**item, "embedding": []} for item in value["data"]]}, strict=True
        )
        assert [item["index"] for item in value["data"]] == list(range(len(vectors)))
        assert value["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        found = [item["embedding"] for item in value["data"]]
        if form == "base64":
            raw = [base64.b64decode(text) for text in found]
            found = [list(struct.unpack(f"<{len(data) // 4}f", data)) for data in raw]
        assert found == vectors


@pytest.mark.parametrize("vector", [[1e300], ["x"], [None]])
def test_vectors_that_are_none(vector: Any) -> None:  # R66
    with pytest.raises(MalformedReply):
        openai_embeddings.encode_reply([vector], None, Answer("1", "m", 3, {"encoding_format": "base64"}))


# ---- lists of models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exchange",
    [case for case in recorded("models") if not case.values[0] or "/v1" in case.values[0]["request"]["url"]],
)
def test_recorded_lists(exchange: Any) -> None:
    if exchange["provider"] in ("gemini", "ollama", "bedrock") and '"data"' not in exchange["response"]["body"]:
        return  # other dialects
    found = read_models(exchange["response"]["body"].encode())
    assert [model["id"] for model in found] == list(dict.fromkeys(exchange["expected"]["models"]))
    for model in found:
        assert model.get("context_window", 1) > 0


def test_windows_under_all_their_names() -> None:
    body = [
        {"id": "a", "context_length": 10, "organization": "o", "created": 7.0},
        {"id": "b", "max_model_len": 20, "owned_by": "vllm"},
        {"id": "c", "context_window": 30, "max_completion_tokens": 5},
        {"id": "d", "context_length": 0, "top_provider": {"context_length": 40, "max_completion_tokens": 6}},
        {"id": "a"},
        {"id": ""},
        7,
    ]
    wanted = [
        {"id": "a", "created": 7, "owned_by": "o", "context_window": 10},
        {"id": "b", "owned_by": "vllm", "context_window": 20},
        {"id": "c", "context_window": 30, "max_output_tokens": 5},
        {"id": "d", "context_window": 40, "max_output_tokens": 6},
    ]
    assert read_models(json.dumps(body).encode()) == wanted
    assert read_models(b"\n\n" + json.dumps({"object": "list", "data": body}).encode()) == wanted


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"data":{}}', b'"x"'])
def test_what_is_no_list(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_models(body)
