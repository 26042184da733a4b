"""Incremental framing of ``application/vnd.amazon.eventstream`` (compiled: ``eventstream.pyx``; in plain words:
``_pure/eventstream.py``)::

    stream.feed(chunk)
    while kind := stream.next():
        if kind == M_BROKEN:
            raise MalformedReply(stream.reason)
        look_at(stream.event_type, stream.payload())

Nothing but wrong arguments raises: a broken stream is a state. There is no end marker in this format; whether bytes are
left over at the end of the body is told by ``pending``.
"""

from typing import Final, final

M_EVENT: Final = 1
"""A frame whose ``:message-type`` is ``event``."""
M_EXCEPTION: Final = 2
"""An exception of the service's model: ``exception_type``, described by the payload."""
M_ERROR: Final = 3
"""An error outside of the model: ``error_code``, ``error_message``."""
M_OTHER: Final = 4
"""A sound frame with another ``:message-type``, or none."""
M_BROKEN: Final = 5
"""A checksum, a size or the headers are wrong. Where the next frame would begin is not known: this is the end."""

@final
class EventStream:
    """The framer of one stream. Not for use by two threads at once."""

    def __init__(self, max_frame: int = ...) -> None:
        """``max_frame``: bytes of a whole frame, checked before anything of it is kept; the default allows what the
        SDKs of AWS allow (payload 24 MiB, headers 128 KiB; headers beyond that are refused in any case)."""
    def feed(self, chunk: bytes) -> None:
        """Take a piece of the body, cut anywhere. Forgets the current frame; a broken stream keeps nothing."""
    def next(self) -> int:
        """Go to the next complete frame: one of the ``M_`` values, or 0 when more bytes are needed."""
    @property
    def event_type(self) -> str:
        """``:event-type`` of the current frame, "" when there is none; UTF-8 with replacement. So are the others."""
    @property
    def message_type(self) -> str: ...
    @property
    def exception_type(self) -> str: ...
    @property
    def error_code(self) -> str: ...
    @property
    def error_message(self) -> str: ...
    def payload(self) -> bytes:
        """Payload of the current frame, or b""."""
    @property
    def pending(self) -> int:
        """Bytes behind the last complete frame."""
    @property
    def reason(self) -> str:
        """Why the stream is broken: a short fixed text, "" while it is not."""
