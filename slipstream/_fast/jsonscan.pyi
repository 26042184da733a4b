"""One strict scan over a JSON request body (RFC 8259) that finds the top-level keys a gateway must look at.

Nothing is decoded. Every offset is in bytes of the body; spans are half open; a string's span includes its quotes.
"""

from typing import Final, final

# Kinds of a value.
ABSENT: Final = 0
STRING: Final = 1
NUMBER: Final = 2
OBJECT: Final = 3
ARRAY: Final = 4
TRUE: Final = 5
FALSE: Final = 6
NULL: Final = 7

# Watched top-level keys: indices into KEYS.
K_MODEL: Final = 0
K_STREAM: Final = 1
K_STREAM_OPTIONS: Final = 2
K_MESSAGES: Final = 3
K_TOOLS: Final = 4
K_USER: Final = 5
K_MAX_TOKENS: Final = 6
K_MAX_COMPLETION_TOKENS: Final = 7
K_N: Final = 8
K_PROMPT: Final = 9
K_INPUT: Final = 10
K_SEED: Final = 11
K_TEMPERATURE: Final = 12
K_RESPONSE_FORMAT: Final = 13
K_REASONING_EFFORT: Final = 14
K_TIMEOUT: Final = 15

KEYS: Final[tuple[str, ...]]
"""Names of the watched keys. They are compared after un-escaping (``"mod\\u0065l"`` is model), case-sensitively."""

REASONS: Final[tuple[str, ...]]
"""Every ``reason`` a JsonError can have here ("" is none; ``{}`` stands for max_depth)."""

@final
class RequestScan:
    """Where things lie in one body. Immutable; it does not hold the body. Made by scan_request only."""

    @property
    def body_open(self) -> int:
        """Offset just behind the ``{`` of the body: where a member can be inserted."""
    @property
    def body_close(self) -> int:
        """Offset of the ``}`` that ends the body."""
    @property
    def n_keys(self) -> int:
        """Members of the body, duplicates counted."""
    @property
    def duplicates(self) -> int:
        """Bit ``1 << K_…`` for each watched key that occurs more than once.

        RFC 8259 section 4 leaves their meaning open: two readers may disagree about them, which is a way around checks.
        """
    @property
    def include_usage(self) -> int:
        """Kind of ``stream_options.include_usage``; ABSENT also when stream_options is no object."""
    @property
    def include_usage_start(self) -> int:
        """Span of that value; -1 when ABSENT."""
    @property
    def include_usage_end(self) -> int: ...
    @property
    def options_open(self) -> int:
        """Offset just behind the ``{`` of stream_options; -1 when that is absent or no object."""
    @property
    def options_keys(self) -> int:
        """Members of stream_options, duplicates counted."""
    def kind(self, key: int) -> int:
        """Kind of the value of a watched key (of duplicates: the last). IndexError for a key out of range."""
    def start(self, key: int) -> int:
        """Start of the value; -1 when absent."""
    def end(self, key: int) -> int:
        """End of the value; -1 when absent."""
    def key_start(self, key: int) -> int:
        """Start of the key string itself (its quote); -1 when absent."""
    def key_end(self, key: int) -> int:
        """End of the key string itself (behind its quote); -1 when absent."""
    def plain_model(self, body: bytes, subject: int) -> str | None:
        """The model name, if everything that decides is as it mostly is; else ``None``: look closer.

        As it mostly is: no watched key twice; ``model`` a string of 1 to 256 bytes without escapes; ``subject`` there,
        and an array if it is ``messages``; ``stream`` true, false, null or absent; ``stream_options`` an object, null
        or absent. ``body`` must be what was scanned.
        """

def scan_request(body: bytes, max_depth: int = 128) -> RequestScan:
    """Validate a whole body, which must be one JSON object, and find its watched keys.

    Strict: RFC 8259 without extensions, well-formed UTF-8 (Unicode table 3-7), no byte order mark, at most max_depth
    levels (the body itself is one; 1 to 1024), at most 4300 digits in a number. Lone surrogates written as ``\\u``
    escapes pass. Raises JsonError(reason, pos), pos being the first offending byte (UTF-8: of the character; numbers of
    too many digits: of the number; the text ends too early: its length).
    """

def decode_string(body: bytes, start: int, end: int) -> str | None:
    """The text of the JSON string whose span, with quotes, is [start, end); None when it holds a lone surrogate.

    Raises ValueError when that is no such span, JsonError (a ValueError) when what is there is no valid string.
    """
