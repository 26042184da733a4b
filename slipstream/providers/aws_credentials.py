"""Credentials of AWS, kept fresh in the background: the signer of Bedrock.

Where they come from is the business of aiobotocore (the optional extra ``bedrock``): profiles, environment, SSO, web
identity, containers, the instance, assumed roles. It is imported when a provider that needs it starts.

Temporary credentials are asked for again a while before they end, in a task of our own, so no request ever waits for
them. While a new set cannot be had the old one stays in use to its last second.

The rule that must not be broken: ``headers`` never waits and never sends what has expired; what went wrong is told by
the kind of the exception only, because its text may hold what was read.
"""

from __future__ import annotations

import asyncio
import importlib
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
"""Credentials are renewed so long before they end. aiobotocore asks its source from 900 s before on, and what remains
is enough for ten tries."""
RETRY_FIRST_S, RETRY_LAST_S = 1.0, 60.0
"""Back-off after a refresh that failed, or that brought the same credentials again (instances hand out the new ones
five minutes before the old ones end)."""
Sleep = Callable[[float], Awaitable[None]]


class Session(Protocol):
    """What we use of ``aiobotocore.session.AioSession``."""

    async def get_credentials(self) -> Any: ...


class Keys(NamedTuple):
    """One set. ``expires_at`` is Unix seconds, ``None`` if it does not end."""

    access_key: str
    secret_key: Secret
    token: Secret
    expires_at: float | None


class AwsCredentials:
    """See ``providers.base.Signer``. ``open_session``, ``wall`` and ``sleep`` are for tests."""

    __slots__ = ("_keys", "_open_session", "_provider", "_region", "_session", "_sleep", "_task", "_wall")

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

    async def start(self) -> None:
        if self._task is not None:
            return
        try:
            if self._session is None:
                self._session = self._open_session()
            self._keys = await asyncio.wait_for(self._fetch(), START_LIMIT_S)
        except ImportError:
            raise self._refused("AWS credentials need an extra: pip install 'slipstream-gateway[bedrock]'") from None
        except Exception as error:
            raise self._refused(f"they could not be read ({type(error).__name__})") from None
        if self._keys is None:
            raise self._refused(
                "none were found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the machine a "
                "role, or set api_key to a Bedrock API key"
            )
        if self._keys.expires_at is not None:
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
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # ------------------------------------------------------------------ fetching

    async def _fetch(self) -> Keys | None:
        """Ask the chain. It renews what is about to end before it answers."""
        assert self._session is not None
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
        )

    async def _keep_fresh(self) -> None:
        pause = RETRY_FIRST_S
        while self._keys is not None and self._keys.expires_at is not None:
            left = self._keys.expires_at - self._wall()
            if left > MARGIN_S:
                pause = RETRY_FIRST_S
                await self._sleep(left - MARGIN_S)
            else:
                await self._sleep(pause)
                pause = min(2 * pause, RETRY_LAST_S)
            try:
                fresh = await asyncio.wait_for(self._fetch(), REFRESH_LIMIT_S)
            except Exception:  # whatever it was, the next try is the answer to it
                continue
            self._keys = fresh or self._keys

    def _refused(self, why: str) -> UpstreamError:
        return UpstreamError(
            f"no AWS credentials for the provider {self._provider!r}: {why}",
            failure=FailureClass.AUTH,
            code="upstream_auth_error",
        )


def _open_session() -> Session:
    """Imported here: only those that need it pay for it (some 200 ms)."""
    session: Session = importlib.import_module("aiobotocore.session").get_session()
    return session
