"""Signatures of AWS: botocore's signer is the oracle, over thousands of requests (PROTOCOLS.md 2.5)."""

from __future__ import annotations

import datetime
import random
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from slipstream.providers import sigv4
from slipstream.providers.sigv4 import sign

botocore_auth = pytest.importorskip("botocore.auth", reason="the extra 'bedrock' is not installed")
REQUESTS = 10_000
PLAIN = string.ascii_letters + string.digits + "-._~"
ODD = PLAIN + "%:/?#[]@!$&'()*+,;= \"<>\\^`{|}\x7féß…我🦀"
ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that botocore signs at."""
    now = [0.0]
    name = "get_current_datetime"

    def current(remove_tzinfo: bool = True) -> datetime.datetime:
        moment = datetime.datetime.fromtimestamp(now[0], datetime.UTC)
        return moment.replace(tzinfo=None) if remove_tzinfo else moment

    assert hasattr(botocore_auth, name)
    monkeypatch.setattr(botocore_auth, name, current)
    return now


def oracle(method: str, url: str, headers: dict[str, str], body: bytes, keys: dict[str, Any]) -> dict[str, str]:
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    credentials = Credentials(keys["access_key"], keys["secret_key"], keys["token"])
    botocore_auth.SigV4Auth(credentials, keys["service"], keys["region"]).add_auth(request)
    return {name: value for name, value in request.headers.items() if name not in headers}


def text(rng: random.Random, alphabet: str, longest: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(longest + 1)))


def path(rng: random.Random) -> str:
    model = rng.choice([ARN, "us.anthropic.claude-opus-4-5-20251101-v1:0", text(rng, ODD, 20), "", ".", "..", "a//b"])
    action = rng.choice(["converse", "converse-stream", "invoke", "", "../x", "./", "/"])
    return f"/model/{quote(model, safe=rng.choice(['', '/', '/:', '/%']))}/{action}"


def query(rng: random.Random) -> str:
    pairs = [
        f"{quote(text(rng, ODD, 6), safe='')}={quote(text(rng, ODD, 6), safe='')}" for _ in range(rng.randrange(4))
    ]
    pairs += rng.choice([[], ["flag"], ["a=b=c"], ["a=2", "a=1"]])
    rng.shuffle(pairs)
    return "?" + "&".join(pairs) if pairs else ""


def requests(rng: random.Random) -> Iterator[tuple[str, str, dict[str, str], bytes, dict[str, Any], float]]:
    hosts = [
        "bedrock-runtime.us-west-2.amazonaws.com",
        "localhost:8080",
        "h:443",
        "h:80",
        "[::1]:9",
        "[::1]",
        "UPPER.com",
    ]
    for _ in range(REQUESTS):
        url = rng.choice(["http://", "https://"]) + rng.choice(hosts) + path(rng) + query(rng)
        headers = {}
        if rng.random() < 0.5:
            headers["Content-Type"] = rng.choice(["application/json", "  a   b\tc ", ""])
        if rng.random() < 0.2:
            headers["X-Amzn-Bedrock-" + rng.choice("ABZ")] = text(rng, PLAIN + "  ", 9)
        keys = {
            "access_key": "AKIA" + text(rng, string.ascii_uppercase, 16),
            "secret_key": text(rng, string.printable[:94], 40) or "s",
            "token": rng.choice([None, text(rng, PLAIN + "/+=", 80) or "t"]),
            "region": rng.choice(["us-west-2", "eu-central-1"]),
            "service": rng.choice(["bedrock", "sts"]),
        }
        yield (
            rng.choice(["POST", "GET"]),
            url,
            headers,
            rng.randbytes(rng.randrange(80)),
            keys,
            rng.uniform(0, 4e9) // 1,
        )


def test_as_botocore(clock: list[float]) -> None:
    rng = random.Random(20261120)
    for method, url, headers, body, keys, now in requests(rng):
        clock[0] = now
        mine = sign(method, url, headers, body, now=now, **keys)
        assert mine == oracle(method, url, dict(headers), body, keys), (method, url, headers)


def test_known_example() -> None:
    """The example of the General Reference: GET iam ListUsers."""
    mine = sign(
        "GET",
        "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08",
        {"content-type": "application/x-www-form-urlencoded; charset=utf-8"},
        b"",
        access_key="AKIDEXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        token=None,
        region="us-east-1",
        service="iam",
        now=datetime.datetime(2015, 8, 30, 12, 36, tzinfo=datetime.UTC).timestamp(),
    )
    signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    assert mine == {
        "X-Amz-Date": "20150830T123600Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
        f"SignedHeaders=content-type;host;x-amz-date, Signature={signature}",
    }


def test_the_key_of_a_day_is_made_once() -> None:
    sigv4._key.cache_clear()
    for second in range(5):
        sign(
            "POST", "https://h/p", {}, b"", access_key="a", secret_key="s", token=None, region="r", service="b",
            now=1e9 + second,
        )  # fmt: skip
    assert sigv4._key.cache_info().misses == 1
