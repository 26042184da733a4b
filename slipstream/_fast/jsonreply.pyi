"""One look at a reply in the OpenAI chat dialect (the data of one SSE event, or a unary body): what is in it?

Offsets are bytes of ``data`` (not of its part from ``start``); spans are half open, -1 when absent; of duplicate keys
the last one counts, on every level.
"""

from typing import Final, final

R_INVALID: Final = 1
"""Not one valid JSON object. No other flag is set, all spans are -1, ``pos`` is the first offending byte."""
R_ERROR: Final = 2
"""Top-level ``error`` is there and not null."""
R_CHOICES: Final = 4
"""Top-level ``choices`` is an array (perhaps an empty one)."""
R_CONTENT: Final = 8
"""Some choice brings something a user would miss.

In its ``delta`` or ``message``: content, refusal, reasoning or reasoning_content is a non-empty string or array;
tool_calls or reasoning_details a non-empty array; function_call or audio an object. Or its ``text`` is a non-empty
string (legacy completions). A role alone is not content.
"""
R_FINISH: Final = 16
"""Some choice has a finish_reason which is a non-empty string."""
R_USAGE: Final = 32
"""Top-level ``usage``, or else ``x_groq.usage``, is an object."""
R_DATA: Final = 64
"""Top-level ``data`` is an array (embeddings, model lists)."""
R_ROLE: Final = 128
"""Some delta or message has a role which is a non-empty string."""

@final
class ReplyScan:
    """One per stream, used again for every payload: scan() overwrites all fields."""

    def __init__(self) -> None: ...
    def scan(self, data: bytes, start: int = 0, end: int = -1) -> int:
        """Read data[start:end] (end -1: to its end) and return R_ flags.

        Lenient around the value (blanks, one leading byte order mark), strict inside (jsonscan), 512 levels. Bad data
        is R_INVALID, never an exception; ValueError only for a start or end outside data.
        """
    @property
    def n_choices(self) -> int:
        """Elements of choices."""
    @property
    def n_finish(self) -> int:
        """Choices with a finish_reason which is a non-empty string."""
    @property
    def error_start(self) -> int: ...
    @property
    def error_end(self) -> int: ...
    @property
    def usage_start(self) -> int:
        """The usage object: top-level ``usage`` wins over ``x_groq.usage``."""
    @property
    def usage_end(self) -> int: ...
    @property
    def finish_start(self) -> int:
        """The last finish_reason that counts, with its quotes."""
    @property
    def finish_end(self) -> int: ...
    @property
    def model_start(self) -> int:
        """Top-level model, when it is a string; with its quotes."""
    @property
    def model_end(self) -> int: ...
    @property
    def id_start(self) -> int:
        """Top-level id, when it is a string; with its quotes."""
    @property
    def id_end(self) -> int: ...
    @property
    def pos(self) -> int:
        """Offset of the first offending byte when R_INVALID, else -1."""
