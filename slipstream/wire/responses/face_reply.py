"""A whole reply in the Responses dialect: the canonical message taken apart into output items.

The order is that of the API (PROTOCOLS.md 3.2): reasoning, message, calls. Only the first choice is shown; this API has
no ``n``.

The rule that must not be broken: an answer that was cut says so (``status: incomplete`` and why), also in the item that
was being written.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Answer, Json, Reply, make_id
from ..codec import dumps
from .items import (
    call_item,
    custom_input,
    custom_item,
    custom_names,
    finish_status,
    flat_annotations,
    flat_logprobs,
    is_whole,
    item_id,
    message_item,
    reasoning_item,
    refusal_part,
    response_object,
    text_part,
    wants_encrypted,
)


def encode_reply(reply: Reply, answer: Answer) -> bytes:
    """The response object for ``reply``."""
    choice = reply.choices[0] if reply.choices else {}
    status, reason = finish_status(choice.get("finish_reason"))
    body = response_object(
        answer,
        model=reply.model or answer.model,
        status=status,
        output=_output(choice, answer, status),
        usage=reply.usage,
        reason=reason,
        extra=reply.extra,
    )
    return dumps(body)


def _output(choice: Json, answer: Answer, status: str) -> list[Json]:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {}
    output = _reasoning(message, answer)
    parts = _parts(message, choice)
    calls = message.get("tool_calls") or []
    if parts or (not calls and status == "completed"):
        # An answer that says nothing is an empty message, not no item at all: clients look for one.
        output.append(message_item(item_id(answer, "msg_", len(output)), parts or [text_part("", [], [])], "completed"))
    if calls:
        custom = custom_names(answer.request)
        output += [_call(call, answer, len(output) + at, custom) for at, call in enumerate(calls)]
    if status == "incomplete" and output:
        _cut(output[-1])
    return output


def _cut(item: Json) -> None:
    """The last item is the one that was cut, unless it is a call that is whole."""
    if "status" in item and not is_whole(item.get("arguments") or ""):
        item["status"] = "incomplete"


def _reasoning(message: Json, answer: Answer) -> list[Json]:
    blocks = message.get("thinking_blocks") or []
    text = message.get("reasoning_content") or "".join(block.get("thinking") or "" for block in blocks)
    encrypted = wants_encrypted(answer.request)
    if not text and not (blocks and encrypted):
        return []
    return [reasoning_item(item_id(answer, "rs_", 0), text, blocks, encrypted)]


def _parts(message: Json, choice: Json) -> list[Json]:
    parts = []
    content, refusal = message.get("content"), message.get("refusal")
    if content:
        annotations = flat_annotations(message.get("annotations"))
        parts.append(text_part(_text(content), annotations, flat_logprobs(choice.get("logprobs"))))
    if refusal:
        parts.append(refusal_part(refusal))
    return parts


def _text(content: Any) -> str:
    """A reply's content is a string; parts would be joined as the model wrote them."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _call(call: Json, answer: Answer, index: int, custom: frozenset[str]) -> Json:
    call_id = call.get("id") or make_id("call_")
    extra = call.get("extra_content")
    if call.get("type") == "custom":
        inner = call.get("custom") or {}
        name, text = inner.get("name") or "", inner.get("input") or ""
        return custom_item(item_id(answer, "ctc_", index), call_id, name, text, "completed", extra)
    function = call.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or "{}"
    if name in custom:
        text = custom_input(arguments)
        return custom_item(item_id(answer, "ctc_", index), call_id, name, text, "completed", extra)
    return call_item(item_id(answer, "fc_", index), call_id, name, arguments, "completed", extra)
