"""Content parts of a canonical message as Anthropic's content blocks (PROTOCOLS.md 1.2; API reference, "Messages").

The API refuses text that is empty or only blanks, images of other types than four, and documents that are neither PDF
nor text; so blank text is left out here and the rest is refused with the name of the part.
"""

from __future__ import annotations

import base64
import binascii
import re

from ...errors import ClientError
from ..canonical import Json, split_data_url
from ..codec import dumps

_IMAGES = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
}
_TEXTS = frozenset(("application/json", "application/xml", "application/yaml", "application/x-yaml"))
_OWN = frozenset(("image", "document", "search_result"))
"""Blocks in Anthropic's own form are taken as they are: some chat clients write them."""
_PDF_MAGIC = "JVBERi0"
"""``%PDF-`` in base64: many clients forget the ``data:`` prefix."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def note(dropped: list[str], name: str) -> None:
    """Report ``name`` once. A name that is no plain word would become a response header: it is not repeated."""
    if not _PLAIN_NAME.fullmatch(name.replace("[]", "")):
        name = "(other)"
    if name not in dropped:
        dropped.append(name)


def refuse(message: str, where: str) -> ClientError:
    return ClientError(message, param=where, code="unsupported_value")


def written(value: object) -> bytes:
    """``value`` as JSON. Raises ``ClientError`` for a client's value that is nested beyond what can be written."""
    try:
        return dumps(value)
    except TypeError:
        raise ClientError("The request is nested too deeply.", code="invalid_value") from None


def cached(block: Json, source: Json) -> Json:
    """``block`` with the cache mark of ``source``, if it has one."""
    mark = source.get("cache_control")
    if isinstance(mark, dict):
        block["cache_control"] = mark
    return block


def text_block(text: str) -> Json:
    return {"type": "text", "text": text}


def content_blocks(content: object, where: str, dropped: list[str]) -> list[Json]:
    """The blocks of a user's or a tool's message. Raises ``ClientError`` naming the part."""
    if content is None:
        return []
    if isinstance(content, str):
        return [text_block(content)] if content.strip() else []
    if not isinstance(content, list):
        raise ClientError("'content' must be a string or a list of parts.", param=where, code="invalid_type")
    blocks = (_block(part, f"{where}[{n}]", dropped) for n, part in enumerate(content))
    return [block for block in blocks if block is not None]


def text_blocks(content: object, where: str) -> list[Json]:
    """The blocks of a message that may hold text only: system and developer."""
    blocks = content_blocks(content, where, [])
    if any(block["type"] != "text" for block in blocks):
        raise refuse("A system message may hold text only.", where)
    return blocks


def _block(part: object, where: str, dropped: list[str]) -> Json | None:
    if isinstance(part, str):
        return text_block(part) if part.strip() else None
    if not isinstance(part, dict):
        raise ClientError("A content part must be an object.", param=where, code="invalid_type")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ClientError("'text' must be a string.", param=f"{where}.text", code="invalid_type")
        return cached(text_block(text), part) if text.strip() else None
    if kind == "image_url":
        return cached(_image(part.get("image_url"), where, dropped), part)
    if kind == "file":
        return cached(_file(part.get("file"), where), part)
    if isinstance(kind, str) and kind in _OWN:
        return dict(part)
    if kind == "input_audio":
        raise refuse("This provider takes no audio; send the text of it instead.", where)
    raise refuse("A content part of this type cannot be sent to this provider; use text, image_url or file.", where)


def _image(image: object, where: str, dropped: list[str]) -> Json:
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str) or not url:
        raise ClientError("'image_url.url' must be a URL.", param=f"{where}.image_url", code="invalid_type")
    if isinstance(image, dict) and image.get("detail") not in (None, "auto"):
        note(dropped, "messages[].content[].image_url.detail")
    data = split_data_url(url)
    if data is not None:
        return _inline(*data, f"{where}.image_url")
    if url[:8].lower().startswith(("http://", "https://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    raise refuse("'image_url.url' must be an http(s) URL or a data URL in base64.", f"{where}.image_url")


def _file(file: object, where: str) -> Json:
    where = f"{where}.file"
    if not isinstance(file, dict):
        raise ClientError("'file' must be an object.", param=where, code="invalid_type")
    name, data, identity = file.get("filename"), file.get("file_data"), file.get("file_id")
    if isinstance(data, str) and data:
        block = _file_data(data, where)
    elif isinstance(identity, str) and identity:
        block = {"type": "document", "source": {"type": "file", "file_id": identity}}
    else:
        raise ClientError("'file' needs 'file_data' or 'file_id'.", param=where, code="invalid_value")
    if isinstance(name, str) and name and block["type"] == "document":
        block["title"] = name
    return block


def _file_data(data: str, where: str) -> Json:
    inline = split_data_url(data)
    if inline is not None:
        return _inline(*inline, where)
    if data[:8].lower().startswith(("http://", "https://")):
        return {"type": "document", "source": {"type": "url", "url": data}}
    if data.startswith(_PDF_MAGIC):
        return _inline("application/pdf", data, where)
    raise refuse("'file_data' must be a data URL in base64, e.g. 'data:application/pdf;base64,...'.", where)


def _inline(kind: str, data: str, where: str) -> Json:
    """The block for base64 ``data`` of a media type."""
    image = _IMAGES.get(kind)
    if image is not None:
        return {"type": "image", "source": {"type": "base64", "media_type": image, "data": data}}
    if kind == "application/pdf":
        return {"type": "document", "source": {"type": "base64", "media_type": kind, "data": data}}
    if kind.startswith("text/") or kind in _TEXTS:
        return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": _text(data, where)}}
    raise refuse("This provider takes images (png, jpeg, gif, webp), PDF and text files only.", where)


def _text(data: str, where: str) -> str:
    try:
        return base64.b64decode(data, validate=False).decode()
    except (binascii.Error, ValueError):
        raise refuse("The file is not UTF-8 text in base64.", where) from None
