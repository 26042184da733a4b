"""Canonical content parts to Gemini's ``Part`` (PROTOCOLS.md 1.2, 2.4): text, images, audio, video, files.

Bytes travel as ``inlineData`` without the ``data:...;base64,`` prefix, everything else as ``fileData`` with its URI:
the Gemini API fetches public URLs, its own Files API and Cloud Storage itself; nothing is fetched here.
"""

from __future__ import annotations

from typing import Any

from ...errors import ClientError
from ..canonical import Json, split_data_url

_KINDS = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "xml": "text/xml",
    "json": "application/json",
    "mp3": "audio/mp3",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "aac": "audio/aac",
    "m4a": "audio/m4a",
    "aiff": "audio/aiff",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "mpeg": "video/mpeg",
    "webm": "video/webm",
}
_AUDIO = {"pcm16": "audio/pcm", "mpeg": "audio/mpeg"}
_KNOWS_ITSELF = ("https://generativelanguage.googleapis.com/", "https://www.youtube.com/", "https://youtu.be/")
"""URIs whose type Google knows better than their name tells."""


def note(dropped: list[str], name: str) -> None:
    """Report ``name`` once."""
    if name not in dropped:
        dropped.append(name)


def wrong(param: str, message: str, code: str = "invalid_value") -> ClientError:
    """A mistake of the client in the field ``param``."""
    return ClientError(f"{message} (in {param!r})", param=param, code=code)


def to_parts(content: Any, where: str, dropped: list[str]) -> list[Json]:
    """A message's ``content`` as parts; empty texts are left out, because Gemini refuses them."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}] if content else []
    if not isinstance(content, list):
        raise wrong(where, "The content of a message must be a string or an array of parts.", "invalid_type")
    parts = []
    for n, part in enumerate(content):
        made = _part(part, f"{where}[{n}]", dropped)
        if made is not None:
            parts.append(made)
    return parts


def _part(part: Any, where: str, dropped: list[str]) -> Json | None:
    if isinstance(part, str):
        return {"text": part} if part else None
    if not isinstance(part, dict):
        raise wrong(where, "A content part must be an object with a 'type'.", "invalid_type")
    if part.get("cache_control") is not None:
        note(dropped, "cache_control")
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        return {"text": text} if isinstance(text, str) and text else None
    if kind in ("image_url", "video_url"):
        return _linked(part.get(kind), f"{where}.{kind}", dropped)
    if kind == "input_audio":
        return _audio(part.get("input_audio"), f"{where}.input_audio")
    if kind == "file":
        return _file(part.get("file"), f"{where}.file")
    if kind in ("thinking", "redacted_thinking"):
        note(dropped, "messages[].thinking_blocks")
        return None
    raise wrong(
        f"{where}.type", "This provider takes parts of type text, image_url, video_url, input_audio and file only."
    )


def _linked(value: Any, where: str, dropped: list[str]) -> Json:
    """``{"url", "detail"?}`` or a bare URL."""
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise wrong(where, "An image or video needs a 'url': an http(s), gs or data URL.")
    given = value.get("format") if isinstance(value, dict) else None
    if isinstance(value, dict) and value.get("detail") not in (None, "auto"):
        note(dropped, "messages[].content[].image_url.detail")
    fallback = "video/mp4" if where.endswith("video_url") else "image/jpeg"
    return media(url, where, given if isinstance(given, str) else None, fallback)


def media(url: str, where: str, kind: str | None, fallback: str) -> Json:
    """A part for what ``url`` holds or points at. ``kind`` is its media type if the client said so."""
    if url[:5].lower() == "data:":
        split = split_data_url(url)
        if split is None:
            raise wrong(where, "A data URL must be in base64: 'data:<media type>;base64,<data>'.")
        return {"inlineData": {"mimeType": kind or split[0], "data": split[1]}}
    data: Json = {"fileUri": url}
    kind = kind or _by_suffix(url)
    if kind is None and not url.startswith(_KNOWS_ITSELF):
        kind = fallback
    if kind is not None:
        data["mimeType"] = kind
    return {"fileData": data}


def _by_suffix(name: str) -> str | None:
    """The media type that the end of a file's name or of a URL's path tells."""
    path = name.partition("?")[0].partition("#")[0]
    return _KINDS.get(path.rpartition("/")[2].rpartition(".")[2].lower())


def _audio(value: Any, where: str) -> Json:
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, str) or not data:
        raise wrong(where, "Audio needs its bytes in 'data', in base64.")
    if data[:5].lower() == "data:":
        return media(data, where, None, "audio/wav")
    name = value.get("format")
    name = name.lower() if isinstance(name, str) and name else "wav"
    kind = _AUDIO.get(name) or _KINDS.get(name) or f"audio/{name}"
    return {"inlineData": {"mimeType": kind, "data": data}}


def _file(value: Any, where: str) -> Json:
    """``file_data`` (a data URL, or bare base64 with a telling ``filename``), ``file_id`` or ``file_url``."""
    if not isinstance(value, dict):
        raise wrong(where, "A file must be an object with 'file_data' or 'file_id'.", "invalid_type")
    name, given = value.get("filename"), value.get("format")
    kind = given if isinstance(given, str) else (_by_suffix(name) if isinstance(name, str) else None)
    data = value.get("file_data")
    if isinstance(data, str) and data:
        if data[:5].lower() == "data:":
            return media(data, f"{where}.file_data", None, "application/pdf")
        return {"inlineData": {"mimeType": kind or "application/pdf", "data": data}}
    uri = value.get("file_id") or value.get("file_url")
    if isinstance(uri, str) and uri.startswith("files/"):
        uri = _KNOWS_ITSELF[0] + "v1beta/" + uri
    if isinstance(uri, str) and uri.startswith(("https://", "http://", "gs://")):
        return media(uri, where, kind, "application/pdf")
    raise wrong(
        where,
        "This provider cannot read that file: send its bytes in 'file_data' as a data URL, or a URI in 'file_id'.",
    )
