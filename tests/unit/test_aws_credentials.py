"""Credentials of AWS: asked for in the background, renewed before they end, never waited for.

The clock and ``sleep`` are the test's: ``Time.sleep`` ends when the test has moved the clock far enough. The chain is a
fake session, and once aiobotocore's own with static keys from the environment.
"""

from __future__ import annotations

import asyncio
import datetime
import heapq
from typing import Any

import pytest

from slipstream.errors import UpstreamError
from slipstream.providers import aws_credentials
from slipstream.providers.aws_credentials import MARGIN_S, RETRY_FIRST_S, RETRY_LAST_S, AwsCredentials
from slipstream.types import FailureClass
from tests.aio import run

URL = "https://bedrock-runtime.us-west-2.amazonaws.com/model/m/converse"
START = 1_800_000_000.0
HOUR = 3600.0


class Time:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = START
        self.slept: list[float] = []
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now + seconds, len(self.slept), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move on, waking sleepers at their time."""
        end = self.now + seconds
        await settle()
        while self._waiting and self._waiting[0][0] <= end:
            self.now, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
            await settle()
        self.now = end


def others() -> int:
    """Tasks beside those that run the test."""
    return sum("_keep_fresh" in repr(task) for task in asyncio.all_tasks())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Frozen:
    def __init__(self, access_key: str | None, token: str | None) -> None:
        self.access_key, self.secret_key, self.token = access_key, "secret", token


class Found:
    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self.method = session.method

    @property
    def _expiry_time(self) -> datetime.datetime | None:
        ends = self._session.expires_at
        return None if ends is None else datetime.datetime.fromtimestamp(ends, datetime.UTC)

    async def get_frozen_credentials(self) -> Frozen:
        session = self._session
        session.asked += 1
        if session.error is not None:
            raise session.error
        return Frozen(session.access_key, session.token)


class FakeSession:
    def __init__(self, expires_at: float | None = None, token: str | None = "token-1") -> None:
        self.expires_at = expires_at
        self.access_key: str | None = "AKIA1"
        self.token = token
        self.asked = 0
        self.error: Exception | None = None
        self.missing = False
        self.method = "container-role"

    async def get_credentials(self) -> Any:
        return None if self.missing else Found(self)

    def renew(self, expires_at: float) -> None:
        self.access_key, self.expires_at = f"AKIA{self.asked}-new", expires_at


def credentials(time: Time, session: Any) -> AwsCredentials:
    return AwsCredentials(
        provider="aws", region="us-west-2", open_session=lambda: session, wall=time.wall, sleep=time.sleep
    )


def key_of(signer: AwsCredentials, time: Time) -> str:
    fields = signer.headers("POST", URL, b"{}", time.now)
    return fields["Authorization"].partition("Credential=")[2].partition("/")[0]


def test_static_keys_need_no_task() -> None:
    async def main() -> None:
        time, session = Time(), FakeSession(None, token=None)
        signer = credentials(time, session)
        with pytest.raises(UpstreamError, match="there are none yet"):
            signer.headers("POST", URL, b"", time.now)
        await signer.start()
        assert others() == 0
        fields = signer.headers("POST", URL, b"{}", time.now)
        assert set(fields) == {"X-Amz-Date", "Authorization"}
        assert "/us-west-2/bedrock/aws4_request" in fields["Authorization"]
        await signer.close()

    run(main())


def test_renewed_before_they_end() -> None:
    async def main() -> None:
        time, session = Time(), FakeSession(START + HOUR)
        signer = credentials(time, session)
        await signer.start()
        assert signer.headers("POST", URL, b"{}", time.now)["X-Amz-Security-Token"] == "token-1"
        session.renew(START + 2 * HOUR)
        await time.advance(HOUR - MARGIN_S - 1)
        assert key_of(signer, time) == "AKIA1"
        await time.advance(1)
        assert key_of(signer, time) == "AKIA1-new"
        session.renew(START + 3 * HOUR)
        await time.advance(HOUR)
        assert key_of(signer, time) == "AKIA2-new"
        assert time.slept[:3] == [HOUR - MARGIN_S, HOUR, HOUR]
        await signer.close()
        assert others() == 0

    run(main())


def test_failures_back_off_and_the_old_keys_serve_to_their_last_second() -> None:
    async def main() -> None:
        time, session = Time(), FakeSession(START + HOUR)
        signer = credentials(time, session)
        await signer.start()
        session.error = RuntimeError("secret text")
        await time.advance(HOUR - 1)
        assert key_of(signer, time) == "AKIA1"
        assert time.slept[1:5] == [RETRY_FIRST_S, 2.0, 4.0, 8.0]
        assert max(time.slept[1:]) == RETRY_LAST_S
        await time.advance(1)
        with pytest.raises(UpstreamError, match="expired") as caught:
            signer.headers("POST", URL, b"{}", time.now)
        assert caught.value.failure is FailureClass.AUTH
        session.error = None
        session.renew(time.now + HOUR)
        await time.advance(RETRY_LAST_S)
        assert key_of(signer, time).endswith("-new")
        await signer.close()

    run(main())


def test_the_same_keys_again_is_no_busy_loop() -> None:
    """Instances hand out the next set five minutes before the end of the last."""

    async def main() -> None:
        time, session, opened = Time(), FakeSession(START + 300), []
        signer = AwsCredentials(
            provider="aws",
            region="us-west-2",
            open_session=lambda: opened.append(1) or session,
            wall=time.wall,
            sleep=time.sleep,
        )
        await signer.start()
        await time.advance(240)
        assert session.asked < 12
        # the chain is asked anew each time: a session that believes a made-up end would not ask its source
        assert len(opened) == session.asked - 1
        session.missing = True  # nothing at all is a failure, too
        await time.advance(50)
        assert key_of(signer, time) == "AKIA1"
        await signer.close()

    run(main())


def test_short_lives_are_renewed_in_their_middle() -> None:
    async def main() -> None:
        time, session = Time(), FakeSession(START + 100)
        signer = credentials(time, session)
        await signer.start()
        for _ in range(20):
            session.renew(time.now + 150)
            await time.advance(50)
        assert session.asked == 21
        assert set(time.slept) == {50}
        await signer.close()

    run(main())


@pytest.mark.parametrize("left_at_start", [400.0, 1490.0, 6 * HOUR])
def test_an_end_that_the_library_made_up_is_not_believed(left_at_start: float) -> None:
    """Near the end aiobotocore says of the same credentials of an instance that they end 17 to 25 minutes from now."""

    class Instance(FakeSession):
        true_end = START + left_at_start

        def turn(self, now: float) -> None:
            if self.true_end - now <= 300:  # only now does the instance have the next set
                self.true_end = now + 6 * HOUR
                self.renew(self.true_end)
            elif self.true_end - now < 1500:
                self.expires_at = now + 1500

    async def main() -> None:
        time, session = Time(), Instance(START + left_at_start)
        session.method = aws_credentials.INSTANCE
        session.turn(time.now)
        signer = credentials(time, session)
        await signer.start()
        old = session.access_key
        while time.now < START + 13 * HOUR:
            before = session.access_key
            session.turn(time.now)
            old = before if session.access_key != before else old
            await time.advance(10)
            late = session.true_end - 6 * HOUR + 300 < time.now  # the end of the set before it
            assert key_of(signer, time) in ((session.access_key,) if late else (session.access_key, old))
        assert session.asked < 3 * 40
        await signer.close()

    run(main())


def test_started_twice_at_once_and_closed_meanwhile() -> None:
    async def main() -> None:
        time = Time()
        held = asyncio.Event()

        class Slow(FakeSession):
            async def get_credentials(self) -> Any:
                await held.wait()
                return await super().get_credentials()

        session = Slow(START + HOUR)
        signer, closed = credentials(time, session), credentials(time, session)
        starting = [asyncio.create_task(s.start()) for s in (signer, signer, closed)]
        await settle()
        await closed.close()
        held.set()
        await asyncio.gather(*starting)
        await settle()
        assert (session.asked, others()) == (2, 1)
        await signer.close()
        assert others() == 0

    run(main())


def test_start_fails_with_a_reason_and_may_be_tried_again() -> None:
    async def main() -> None:
        time, session = Time(), FakeSession(START + HOUR)
        signer = credentials(time, session)
        for spoil in ({"missing": True}, {"access_key": None}, {"error": ValueError("the secret is hunter2")}):
            for name, value in spoil.items():
                setattr(session, name, value)
            with pytest.raises(UpstreamError, match="no AWS credentials for the provider 'aws'") as caught:
                await signer.start()
            assert caught.value.failure is FailureClass.AUTH
            assert "hunter2" not in str(caught.value)
            assert caught.value.__cause__ is None
            session.missing, session.access_key, session.error = False, "AKIA1", None
        await signer.start()
        await signer.start()
        assert others() == 1
        assert key_of(signer, time) == "AKIA1"
        await signer.close()
        await signer.close()

    run(main())


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(aws_credentials.importlib, "import_module", missing)
    with pytest.raises(UpstreamError, match=r"pip install 'slipstream-gateway\[bedrock\]'"):
        run(AwsCredentials(provider="aws", region="us-west-2").start())


def test_nothing_secret_in_a_repr() -> None:
    async def main() -> str:
        signer = credentials(Time(), FakeSession(None))
        await signer.start()
        return repr(signer) + repr(signer._keys)

    shown = run(main())
    assert "secret'" not in shown
    assert "token-1" not in shown


def test_aiobotocore_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiobotocore", reason="the extra 'bedrock' is not installed")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")

    async def main() -> str:
        signer = AwsCredentials(provider="aws", region="eu-west-1")
        await signer.start()
        fields = signer.headers("POST", URL, b"{}", START)
        await signer.close()
        return fields["Authorization"]

    assert run(main()).startswith("AWS4-HMAC-SHA256 Credential=AKIAENV/20270115/eu-west-1/bedrock/aws4_request")


def test_refreshable_credentials_of_aiobotocore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The private name of their end is still there, and asking renews them within the margin."""
    module = pytest.importorskip("aiobotocore.credentials", reason="the extra 'bedrock' is not installed")

    async def main() -> None:
        made = 0

        async def refresh() -> dict[str, str]:
            nonlocal made
            made += 1
            ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=HOUR)
            return {
                "access_key": f"AKIA{made}",
                "secret_key": "s",
                "token": "t",
                "expiry_time": ends.isoformat(),
            }

        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=MARGIN_S)
        found = module.AioRefreshableCredentials("AKIA0", "s", "t", soon, refresh, "test")

        class Session:
            async def get_credentials(self) -> Any:
                return found

        signer = AwsCredentials(provider="aws", region="eu-west-1", open_session=Session)
        await signer.start()
        assert made == 1
        assert signer._keys is not None
        assert signer._keys.access_key == "AKIA1"
        assert signer._keys.expires_at is not None
        await signer.close()

    run(main())
