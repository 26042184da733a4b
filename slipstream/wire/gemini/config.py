"""``generationConfig``: sampling, lengths, answer format and thinking (PROTOCOLS.md 1.2).

Owns the tables of names and scales. Types are checked here, because Gemini answers a wrong one with a text about
protobuf that names none of the client's fields; ranges are the provider's business.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Json
from .parts import note, wrong
from .schema import to_openapi
from .traits import Traits

MAX_STOPS = 5
"""API reference, "GenerationConfig.stopSequences"."""
_NUMBERS = (
    ("temperature", "temperature"),
    ("top_p", "topP"),
    ("top_k", "topK"),
    ("presence_penalty", "presencePenalty"),
    ("frequency_penalty", "frequencyPenalty"),
)
_INT32 = 1 << 31
_EFFORTS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 32768}
"""Google's own table for its OpenAI face (API docs, "OpenAI compatibility", "Thinking"); what is above ``high`` is the
largest budget of any model."""
_MODALITIES = {"text": "TEXT", "image": "IMAGE"}


def generation_config(request: Json, traits: Traits, dropped: list[str]) -> Json:
    """The ``generationConfig`` of a canonical request; empty if it says nothing."""
    out: Json = {}
    for name, ours in _NUMBERS:
        value = _number(request, name) if name in request else None
        if value is not None:
            out[ours] = value
    longest = _whole(request, "max_completion_tokens")
    if longest is None:
        longest = _whole(request, "max_tokens")
    if longest is not None:
        out["maxOutputTokens"] = longest
    seed = _whole(request, "seed", low=None)
    if seed is not None:
        out["seed"] = seed if -_INT32 <= seed < _INT32 else seed % _INT32  # int32 on the wire
    choices = _whole(request, "n")
    if choices is not None and choices > 1:
        out["candidateCount"] = choices
    _stops(request, out)
    _logprobs(request, out)
    _format(request, traits, out, dropped)
    _modalities(request, out, dropped)
    thinking = _thinking(request, traits, dropped)
    if thinking:
        out["thinkingConfig"] = thinking
    return out


def _number(request: Json, name: str) -> int | float | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, f"{name!r} must be a number.", "invalid_type")
    return value


def _whole(request: Json, name: str, low: int | None = 1, where: str = "") -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(where + name, f"{name!r} must be a whole number.", "invalid_type")
    if low is not None and value < low:
        raise wrong(where + name, f"{name!r} must be at least {low}.")
    return value


def _stops(request: Json, out: Json) -> None:
    stop = request.get("stop")
    if stop is None:
        return
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise wrong("stop", "'stop' must be a string or an array of strings.", "invalid_type")
    stops = [text for text in stops if text]
    if len(stops) > MAX_STOPS:
        raise wrong("stop", f"This provider takes at most {MAX_STOPS} stop sequences.")
    if stops:
        out["stopSequences"] = stops


def _logprobs(request: Json, out: Json) -> None:
    wanted = request.get("logprobs")
    top = _whole(request, "top_logprobs", low=0)
    if wanted is None or wanted is False:
        return
    if wanted is not True:
        raise wrong("logprobs", "'logprobs' must be true or false.", "invalid_type")
    out["responseLogprobs"] = True
    if top:
        out["logprobs"] = top


def _format(request: Json, traits: Traits, out: Json, dropped: list[str]) -> None:
    """``response_format``. Gemini's decoding is always constrained by the schema: ``strict`` needs no word."""
    wanted = request.get("response_format")
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise wrong("response_format", "'response_format.type' must be text, json_object or json_schema.")
    out["responseMimeType"] = "application/json"
    if kind == "json_object":
        return
    holder = wanted.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or not isinstance(schema, dict | None):
        raise wrong("response_format.json_schema", "'json_schema' must be an object with a 'schema'.", "invalid_type")
    if not schema:
        return
    about = holder.get("description")
    if isinstance(about, str) and about and "description" not in schema:
        schema = {**schema, "description": about}
    if traits.json_schema:
        out["responseJsonSchema"] = schema
        return
    out["responseSchema"], lost = to_openapi(schema)
    for keyword in lost:
        note(dropped, f"response_format.json_schema.schema.{keyword}")


def _modalities(request: Json, out: Json, dropped: list[str]) -> None:
    """What the answer may hold. Speech is not translated: Gemini sends raw PCM and no transcript."""
    wanted = request.get("modalities")
    if wanted is None:
        return
    if not isinstance(wanted, list):
        raise wrong("modalities", "'modalities' must be an array.", "invalid_type")
    known = [_MODALITIES[name] for name in wanted if isinstance(name, str) and name in _MODALITIES]
    if len(known) < len(wanted):
        note(dropped, "modalities")
    if "IMAGE" in known:
        out["responseModalities"] = known


# ------------------------------------------------------------------ thinking


def _thinking(request: Json, traits: Traits, dropped: list[str]) -> Json:
    """``thinkingConfig`` from ``extra_body.google.thinking_config`` as it stands, else from ``thinking`` and
    ``reasoning_effort``. Thoughts are asked for: who sets these fields wants to see ``reasoning_content``."""
    native = google_extra(request).get("thinking_config") if "extra_body" in request else None
    if isinstance(native, dict) and native:
        return native
    effort, budget, on = _wish(request)
    if on is None:
        return {}
    field = "reasoning_effort" if request.get("reasoning_effort") is not None else "thinking"
    if not traits.thinks:
        if on:
            note(dropped, field)
        return {}
    if not on:
        return _off(traits, field, dropped)
    if traits.levels:
        level = _level(traits, effort, budget)
        return {"includeThoughts": True, **({"thinkingLevel": level} if level is not None else {})}
    if budget is None:
        budget = _EFFORTS[effort] if effort is not None else -1
    return {"includeThoughts": True, "thinkingBudget": _clamp(traits, budget)}


def _wish(request: Json) -> tuple[str | None, int | None, bool | None]:
    """Effort, budget, and whether to think; ``None`` for the last if the client says nothing."""
    effort = request.get("reasoning_effort")
    if effort is not None and effort != "none" and (not isinstance(effort, str) or effort not in _EFFORTS):
        raise wrong("reasoning_effort", f"'reasoning_effort' must be one of none, {', '.join(_EFFORTS)}.")
    thinking = request.get("thinking")
    if thinking is None:
        return (None, None, None) if effort is None else (effort, None, effort != "none")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if kind not in ("enabled", "adaptive", "disabled"):
        raise wrong("thinking", "'thinking.type' must be enabled, adaptive or disabled.")
    if kind == "disabled" or effort == "none":
        return None, None, False
    return effort, _whole(thinking, "budget_tokens", where="thinking.") if kind == "enabled" else None, True


def _off(traits: Traits, field: str, dropped: list[str]) -> Json:
    """As little thought as the model allows. Only 2.5 Flash can do without (API docs, "Gemini thinking")."""
    if not traits.levels and not traits.pro:
        return {"thinkingBudget": 0}
    note(dropped, field)
    if traits.levels:
        return {"thinkingLevel": "low" if traits.pro else "minimal"}
    return {"thinkingBudget": 128}


def _level(traits: Traits, effort: str | None, budget: int | None) -> str | None:
    """Gemini 3's word: Pro has no ``minimal``, 3.0 Pro no ``medium`` either (API docs, "Thinking levels")."""
    if effort is None and budget is None:
        return None
    if effort is None:
        effort = next((name for name in ("low", "medium") if (budget or 0) <= _EFFORTS[name]), "high")
    if effort in ("xhigh", "max"):
        return "high"
    if traits.pro and effort == "minimal":
        return "low"
    if traits.pro and effort == "medium" and traits.generation == (3, 0):
        return "high"
    return effort


def _clamp(traits: Traits, budget: int) -> int:
    """Into the range of the 2.5 models (API docs, "Thinking budgets"); -1 lets the model decide."""
    if budget < 0:
        return -1
    low, high = (128, 32768) if traits.pro else (512 if traits.lite else 1, 24576)
    return min(max(budget, low), high)


def google_extra(request: Json) -> Json:
    """``extra_body.google``, where Google's OpenAI face takes what OpenAI has no field for."""
    extra = request.get("extra_body")
    google: Any = extra.get("google") if isinstance(extra, dict) else None
    return google if isinstance(google, dict) else {}
