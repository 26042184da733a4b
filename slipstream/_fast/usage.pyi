"""The counts of an ordinary ``usage`` object of the OpenAI family (PROTOCOLS.md 1.4)."""

def usage_counts(data: bytes, start: int = 0, end: int = -1) -> tuple[int, int, int, int, int, int] | None:
    """``(prompt, completion, total, cached, written, reasoning)`` tokens of the JSON object ``data[start:end]`` (end
    -1: to its end); -1 for what it does not say.

    ``None`` if it is no valid object, or if one of the members has something else than null or a whole number of at
    most 12 digits: then only a decoder knows. ``cached`` is ``prompt_tokens_details.cached_tokens``, else
    ``cached_tokens`` (Together), else ``prompt_cache_hit_tokens`` (DeepSeek); ``written`` is
    ``prompt_tokens_details.cache_write_tokens`` (OpenRouter). Of duplicate members the last one counts. ValueError for
    a start or end outside data.
    """
