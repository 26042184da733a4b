"""Credentials of AWS, kept fresh in the background: the signer of Bedrock.

Where they come from is the business of aiobotocore (the optional extra ``bedrock``): profiles, environment, SSO, web
identity, containers, the instance, assumed roles. It is imported when a provider that needs it starts.

Temporary credentials are asked for again a while before they end, in a task of our own, so no request ever waits for
them. While a new set cannot be had the old one stays in use to its last second.

The rule that must not be broken: ``headers`` never waits and never sends what has expired; what went wrong is told by
the kind of the exception only, because its text may hold what was read (the library's own warning included).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

from ..errors import UpstreamError
from ..types import Clock, FailureClass, Secret
from .sigv4 import sign

SERVICE = "bedrock"
START_LIMIT_S = 30.0
"""For the first credentials: the chain may ask the instance's metadata service, which is slow to be missing."""
REFRESH_LIMIT_S = 60.0
MARGIN_S = 600.0
"""Credentials are renewed so long before they end, those that live shorter in the middle of what is left to them.
aiobotocore asks its source from 900 s before on, and what remains is enough for ten tries."""
INSTANCE, INSTANCE_MARGIN_S = "iam-role", 1560.0
"""Those of an instance are watched from earlier on: when less than 1,500 s are left, aiobotocore makes up an end that
is later than the true one (``_evaluate_expiration``), and who believes that comes after the true one."""
RETRY_FIRST_S, RETRY_LAST_S = 1.0, 60.0
"""Back-off after a refresh that failed, or that brought the same credentials again (instances hand out the new ones
five minutes before the old ones end)."""
Sleep = Callable[[float], Awaitable[None]]


class Session(Protocol):
    """What we use of ``aiobotocore.session.AioSession``."""

    async def get_credentials(self) -> Any: ...


class Keys(NamedTuple):
    """One set. ``expires_at`` is Unix seconds, ``None`` if it does not end; ``source`` is aiobotocore's word."""

    access_key: str
    secret_key: Secret
    token: Secret
    expires_at: float | None
    source: str | None = None

    def renews(self, old: Keys) -> bool:
        return (self.access_key, self.secret_key, self.token) != (old.access_key, old.secret_key, old.token)

    def fresh_s(self, now: float) -> float:
        """Seconds until it is time to ask for the next set; not positive if it is."""
        left = (self.expires_at or 0.0) - now
        return left - (INSTANCE_MARGIN_S if self.source == INSTANCE else min(MARGIN_S, left / 2))


class AwsCredentials:
    """See ``providers.base.Signer``. ``open_session``, ``wall`` and ``sleep`` are for tests."""

    __slots__ = (
        "_closed", "_keys", "_open_session", "_provider", "_region", "_session", "_sleep", "_starting", "_task",
        "_wall",
    )  # fmt: skip

    def __init__(
        self,
        *,
        provider: str,
        region: str,
        open_session: Callable[[], Session] | None = None,
        wall: Clock = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._provider = provider
        self._region = region
        self._open_session = open_session or _open_session
        self._wall = wall
        self._sleep = sleep
        self._session: Session | None = None
        self._keys: Keys | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        async with self._starting:  # a generation of the configuration that takes us over starts us, too
            if self._keys is None:
                self._keys = await self._first()
                if self._keys.expires_at is not None and not self._closed:
                    self._task = asyncio.create_task(self._keep_fresh())

    def headers(self, method: str, url: str, body: bytes, now: float) -> dict[str, str]:
        keys = self._keys
        if keys is None:
            raise self._refused("there are none yet")
        if keys.expires_at is not None and now >= keys.expires_at:
            raise self._refused("they have expired and could not be renewed")
        return sign(
            method,
            url,
            {},
            body,
            access_key=keys.access_key,
            secret_key=keys.secret_key.reveal(),
            token=keys.token.reveal() or None,
            region=self._region,
            service=SERVICE,
            now=now,
        )

    async def close(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # ------------------------------------------------------------------ fetching

    async def _first(self) -> Keys:
        try:
            keys = await asyncio.wait_for(self._fetch(), START_LIMIT_S)
        except ImportError:
            raise self._refused("AWS credentials need an extra: pip install 'slipstream-gateway[bedrock]'") from None
        except Exception as error:
            self._session = None  # it remembers the files it read; by the next time they may have been put right
            raise self._refused(f"they could not be read ({type(error).__name__})") from None
        if keys is None:
            self._session = None
            raise self._refused(
                "none were found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the machine a "
                "role, or set api_key to a Bedrock API key"
            )
        return keys

    async def _fetch(self) -> Keys | None:
        """Ask the chain. It renews what is about to end before it answers."""
        if self._session is None:
            self._session = self._open_session()
        found = await self._session.get_credentials()
        if found is None:
            return None
        frozen = await found.get_frozen_credentials()
        if not frozen.access_key or not frozen.secret_key:
            return None
        ends = getattr(found, "_expiry_time", None)  # nothing public says it
        return Keys(
            frozen.access_key,
            Secret(frozen.secret_key),
            Secret(frozen.token or ""),
            None if ends is None else ends.timestamp(),
            getattr(found, "method", None),
        )

    async def _keep_fresh(self) -> None:
        keys, pause, renewed = self._keys, RETRY_FIRST_S, True
        while keys is not None and keys.expires_at is not None:
            fresh_s = keys.fresh_s(self._wall())
            if renewed and fresh_s > 0:
                pause = RETRY_FIRST_S
                await self._sleep(max(fresh_s, RETRY_FIRST_S))
            else:
                await self._sleep(pause)
                pause = min(2 * pause, RETRY_LAST_S)
            old, keys = keys, await self._next(keys)
            renewed = keys.renews(old)
            self._keys = keys

    async def _next(self, old: Keys) -> Keys:
        """The next set, else the old one (perhaps with a later end)."""
        try:
            found = await asyncio.wait_for(self._fetch(), REFRESH_LIMIT_S)
        except Exception:  # whatever it was, the next try is the answer to it
            found = None
        if found is None or not found.renews(old):
            self._session = None  # a session that believes a made-up end would not ask again for a while
        return found or old

    def _refused(self, why: str) -> UpstreamError:
        return UpstreamError(
            f"no AWS credentials for the provider {self._provider!r}: {why}",
            failure=FailureClass.AUTH,
            code="upstream_auth_error",
        )


def _open_session() -> Session:
    """Imported here: only those that need it pay for it (some 200 ms)."""
    session: Session = importlib.import_module("aiobotocore.session").get_session()
    for name in ("aiobotocore.credentials", "botocore.credentials"):
        logging.getLogger(name).addFilter(_bare)  # the same again is no second filter
    return session


def _bare(record: logging.LogRecord) -> bool:
    """That a renewal failed is worth a line; its traceback may hold what the source had said."""
    record.exc_info = record.exc_text = None
    return True
