"""The compiled hot path, and the only place that chooses between it and its pure-Python twin.

``_pure`` is the specification: every test of this package runs on both. It is used where the extensions were not built,
and when ``SLIPSTREAM_PURE=1`` asks for it. ``COMPILED`` tells which one is in use. Nothing here imports the rest of us.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._errors import JsonError, SseLimitError
from ._pure.layout import DEFAULT_SIZES, KEY_MAX, WORKERS, Sizes, TableError

if TYPE_CHECKING or os.environ.get("SLIPSTREAM_PURE") != "1":
    try:
        from .drive import RequestTask, Waiter, requests_begun
        from .eventstream import M_BROKEN, M_ERROR, M_EVENT, M_EXCEPTION, M_OTHER, EventStream
        from .head import (
            H_ACCEPT,
            H_API_KEY,
            H_AUTHORIZATION,
            H_CONTENT_ENCODING,
            H_CONTENT_TYPE,
            H_ORIGIN,
            H_REQUEST_ID,
            H_TIMEOUT,
            RequestHead,
        )
        from .http1 import BodyBuffer, RequestGuard
        from .jsonreply import (
            R_CHOICES,
            R_CONTENT,
            R_DATA,
            R_ERROR,
            R_FINISH,
            R_INVALID,
            R_ROLE,
            R_USAGE,
            ReplyScan,
        )
        from .jsonscan import (
            ABSENT,
            ARRAY,
            FALSE,
            K_INPUT,
            K_MAX_COMPLETION_TOKENS,
            K_MAX_TOKENS,
            K_MESSAGES,
            K_MODEL,
            K_PROMPT,
            K_STREAM,
            K_STREAM_OPTIONS,
            KEYS,
            NULL,
            NUMBER,
            OBJECT,
            STRING,
            TRUE,
            RequestScan,
            decode_string,
            scan_request,
        )
        from .response import (
            E_BODY,
            E_DONE,
            E_ERROR,
            E_EXTRA,
            E_HEAD,
            ResponseReader,
        )
        from .select import Pool
        from .series import Series
        from .sse import F_COMMENT, F_DATA, F_ERROR_FIELD, F_EVENT, F_ID, F_LIMIT, F_MULTI, F_RETRY, F_STRAY, SseFramer
        from .table import Table
        from .tally import Tally
        from .usage import usage_counts

        COMPILED = True
    except ImportError:
        COMPILED = False
else:
    COMPILED = False

if not COMPILED and not TYPE_CHECKING:
    from ._pure.drive import RequestTask, Waiter, requests_begun
    from ._pure.eventstream import M_BROKEN, M_ERROR, M_EVENT, M_EXCEPTION, M_OTHER, EventStream
    from ._pure.head import (
        H_ACCEPT,
        H_API_KEY,
        H_AUTHORIZATION,
        H_CONTENT_ENCODING,
        H_CONTENT_TYPE,
        H_ORIGIN,
        H_REQUEST_ID,
        H_TIMEOUT,
        RequestHead,
    )
    from ._pure.http1 import BodyBuffer, RequestGuard
    from ._pure.jsonreply import (
        R_CHOICES,
        R_CONTENT,
        R_DATA,
        R_ERROR,
        R_FINISH,
        R_INVALID,
        R_ROLE,
        R_USAGE,
        ReplyScan,
    )
    from ._pure.jsonscan import (
        ABSENT,
        ARRAY,
        FALSE,
        K_INPUT,
        K_MAX_COMPLETION_TOKENS,
        K_MAX_TOKENS,
        K_MESSAGES,
        K_MODEL,
        K_PROMPT,
        K_STREAM,
        K_STREAM_OPTIONS,
        KEYS,
        NULL,
        NUMBER,
        OBJECT,
        STRING,
        TRUE,
        RequestScan,
        decode_string,
        scan_request,
    )
    from ._pure.response import (
        E_BODY,
        E_DONE,
        E_ERROR,
        E_EXTRA,
        E_HEAD,
        ResponseReader,
    )
    from ._pure.select import Pool
    from ._pure.series import Series
    from ._pure.sse import (
        F_COMMENT,
        F_DATA,
        F_ERROR_FIELD,
        F_EVENT,
        F_ID,
        F_LIMIT,
        F_MULTI,
        F_RETRY,
        F_STRAY,
        SseFramer,
    )
    from ._pure.table import Table
    from ._pure.tally import Tally
    from ._pure.usage import usage_counts


__all__ = [
    "ABSENT",
    "ARRAY",
    "COMPILED",
    "DEFAULT_SIZES",
    "E_BODY",
    "E_DONE",
    "E_ERROR",
    "E_EXTRA",
    "E_HEAD",
    "FALSE",
    "F_COMMENT",
    "F_DATA",
    "F_ERROR_FIELD",
    "F_EVENT",
    "F_ID",
    "F_LIMIT",
    "F_MULTI",
    "F_RETRY",
    "F_STRAY",
    "H_ACCEPT",
    "H_API_KEY",
    "H_AUTHORIZATION",
    "H_CONTENT_ENCODING",
    "H_CONTENT_TYPE",
    "H_ORIGIN",
    "H_REQUEST_ID",
    "H_TIMEOUT",
    "KEYS",
    "KEY_MAX",
    "K_INPUT",
    "K_MAX_COMPLETION_TOKENS",
    "K_MAX_TOKENS",
    "K_MESSAGES",
    "K_MODEL",
    "K_PROMPT",
    "K_STREAM",
    "K_STREAM_OPTIONS",
    "M_BROKEN",
    "M_ERROR",
    "M_EVENT",
    "M_EXCEPTION",
    "M_OTHER",
    "NULL",
    "NUMBER",
    "OBJECT",
    "R_CHOICES",
    "R_CONTENT",
    "R_DATA",
    "R_ERROR",
    "R_FINISH",
    "R_INVALID",
    "R_ROLE",
    "R_USAGE",
    "STRING",
    "TRUE",
    "WORKERS",
    "BodyBuffer",
    "EventStream",
    "JsonError",
    "Pool",
    "ReplyScan",
    "RequestGuard",
    "RequestHead",
    "RequestScan",
    "RequestTask",
    "ResponseReader",
    "Series",
    "Sizes",
    "SseFramer",
    "SseLimitError",
    "Table",
    "TableError",
    "Tally",
    "Waiter",
    "decode_string",
    "requests_begun",
    "scan_request",
    "usage_counts",
]
