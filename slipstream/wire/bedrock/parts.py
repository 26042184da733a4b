"""Content parts of a message as blocks of Converse: text, images, documents, audio (PROTOCOLS.md 1.2).

Converse fetches nothing from the web: images and files must come as data. Bytes are base64 in the JSON body, which is
what a data URL holds, so they are passed on without being looked at. It could read from S3, but with the gateway's own
permissions: a client that could name an object could read whatever the gateway may read, so it cannot.

The rule that must not be broken: names of documents are unique in a request and made of the few characters that are
allowed; anything else is a 400 for the whole conversation.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import ClientError
from ..canonical import Json, split_data_url
from .dropped import Dropped

_IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
    "text/x-markdown": "md",
}
_DOCUMENT_FORMATS = frozenset(_DOCUMENTS.values())
_AUDIO_FORMATS = frozenset({"mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "m4a", "pcm", "webm"})
_EXTENSIONS = {"jpg": "jpeg", "htm": "html", "markdown": "md", "text": "txt"}
_PDF_MAGIC = "JVBERi0"
"""``%PDF-`` in base64: many clients forget the ``data:`` before it."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9 ()\[\]-]+")
_BLANKS = re.compile(r"[ -]{2,}")
_MAX_NAME_CHARS = 180
"""200 are allowed (service model); the rest is for the number that makes a name unique."""


class Parts:
    """Turns parts into blocks. Knows the names of documents so far."""

    __slots__ = ("_dropped", "_names")

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped
        self._names: set[str] = set()

    def block(self, part: object, where: str) -> Json | None:
        """The block for ``part``, which is at ``where`` in the request; ``None`` for blank text, which is refused
        upstream (PROTOCOLS.md 2.5)."""
        if isinstance(part, str):
            return text_block(part)
        if not isinstance(part, dict):
            raise ClientError("A content part must be an object with a 'type'.", param=where, code="invalid_type")
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            return text_block(_string(part, "text", where))
        if kind == "refusal":
            return text_block(_string(part, "refusal", where))
        if kind == "image_url":
            return self._image(part, where)
        if kind == "file":
            return self._document(part, where)
        if kind == "input_audio":
            return _audio(part, where)
        raise ClientError(
            "Bedrock takes content parts of type text, image_url, file and input_audio.",
            param=f"{where}.type",
            code="invalid_value",
        )

    def _image(self, part: Json, where: str) -> Json:
        image = part.get("image_url")
        if isinstance(image, str):
            image = {"url": image}
        where = f"{where}.image_url"
        if not isinstance(image, dict):
            raise ClientError("'image_url' must be an object with a 'url'.", param=where, code="invalid_type")
        if image.get("detail") not in (None, "auto"):
            self._dropped.add("messages[].content[].image_url.detail")
        url = _string(image, "url", where)
        media, data = _data_url(url, f"{where}.url", "an image")
        kind = _IMAGES.get(media)
        if kind is None:
            raise ClientError(
                "Bedrock takes images as PNG, JPEG, GIF or WebP.", param=f"{where}.url", code="invalid_value"
            )
        return {"image": {"format": kind, "source": {"bytes": data}}}

    def _document(self, part: Json, where: str) -> Json:
        file = part.get("file")
        where = f"{where}.file"
        if not isinstance(file, dict):
            raise ClientError("'file' must be an object with 'file_data'.", param=where, code="invalid_type")
        if file.get("file_data") is None and file.get("file_id") is not None:
            raise ClientError(
                "Bedrock has no stored files; send the content as a data URL in 'file_data'.",
                param=f"{where}.file_id",
                code="invalid_value",
            )
        data = _string(file, "file_data", where)
        name = file.get("filename")
        name = name if isinstance(name, str) else ""
        media = "application/pdf"
        if not data.startswith(_PDF_MAGIC):
            media, data = _data_url(data, f"{where}.file_data", "a file")
            if media in _IMAGES:
                return {"image": {"format": _IMAGES[media], "source": {"bytes": data}}}
        kind = _DOCUMENTS.get(media) or _extension(name)
        if kind not in _DOCUMENT_FORMATS:
            raise ClientError(
                "Bedrock takes documents as pdf, csv, doc, docx, xls, xlsx, html, txt or md.",
                param=f"{where}.file_data",
                code="invalid_value",
            )
        return {"document": {"format": kind, "name": self._name(name), "source": {"bytes": data}}}

    def _name(self, filename: str) -> str:
        stem = filename.rpartition(".")[0] or filename
        plain = _BLANKS.sub(" ", _NOT_IN_NAMES.sub("-", stem)).strip(" -")[:_MAX_NAME_CHARS].rstrip() or "document"
        name, n = plain, 1
        while name in self._names:
            n += 1
            name = f"{plain} ({n})"
        self._names.add(name)
        return name


def text_block(text: str) -> Json | None:
    return {"text": text} if text.strip() else None


def _audio(part: Json, where: str) -> Json:
    audio = part.get("input_audio")
    where = f"{where}.input_audio"
    if not isinstance(audio, dict):
        raise ClientError("'input_audio' must hold 'data' and 'format'.", param=where, code="invalid_type")
    kind = audio.get("format")
    if not isinstance(kind, str) or kind not in _AUDIO_FORMATS:
        raise ClientError(
            f"Bedrock takes audio as {', '.join(sorted(_AUDIO_FORMATS))}.",
            param=f"{where}.format",
            code="invalid_value",
        )
    return {"audio": {"format": kind, "source": {"bytes": _string(audio, "data", where)}}}


def _data_url(url: str, where: str, what: str) -> tuple[str, str]:
    split = split_data_url(url)
    if split is None:
        raise ClientError(
            f"Bedrock fetches nothing from the web; send {what} as a base64 data URL.",
            param=where,
            code="invalid_value",
        )
    if not split[1].strip():
        raise ClientError("The data URL is empty.", param=where, code="invalid_value")
    return split[0], split[1].strip()


def _extension(name: str) -> str:
    kind = name.rpartition(".")[2].lower()
    return _EXTENSIONS.get(kind, kind)


def _string(holder: dict[Any, Any], name: str, where: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise ClientError(f"{name!r} must be a string.", param=f"{where}.{name}", code="invalid_type")
    return value
