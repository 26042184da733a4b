"""What a client sends, damaged in every way: into the canonical shape and out to every provider type. A request is
either built or refused with a 400 that names a field; nothing else is raised, whatever is nested, missing, of another
type or half a character. The requests are those of ``docs/translation.md``, so each feature is among them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipstream.errors import ClientError
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.types import Endpoint
from slipstream.wire.canonical import Answer
from slipstream.wire.faces import FACES
from tests.damage import Random, dumps, mutate_json
from tests.unit.test_matrix import matrix

CASES = 12
"""Of each scenario."""
READ = [(endpoint, scenarios, dialect) for endpoint, _, scenarios, dialect in matrix.SECTIONS]
READ += [
    (Endpoint.COUNT_TOKENS, matrix.SCENARIOS, "messages"),
    (Endpoint.EMBEDDINGS, matrix.EMBEDDINGS, "chat"),
    (Endpoint.INFER, matrix.COMPLETIONS, "chat"),
]


def build(endpoint: Endpoint, name: str, request: Any) -> Any:
    kind, spec = PROVIDER_TYPES[name], matrix.spec(name)
    if endpoint is Endpoint.EMBEDDINGS:
        return kind.build_embeddings(request, spec, "m")
    if endpoint is Endpoint.COUNT_TOKENS:
        return kind.build_count(request, spec, matrix.MODELS[name][0])
    return kind.build(request, spec, matrix.MODELS[name][1])


@pytest.mark.parametrize(("endpoint", "scenarios", "dialect"), READ, ids=lambda v: getattr(v, "name", None))
def test_a_damaged_request_is_built_or_refused(endpoint: Endpoint, scenarios: Any, dialect: str) -> None:
    built = refused = 0
    for scenario in scenarios:
        extra = getattr(scenario, dialect)
        if extra is None:
            continue
        good = dumps({"model": "m", **matrix.SMALLEST[endpoint], **extra})
        for case in range(CASES):
            text = mutate_json(Random(f"{scenario.name} {case}"), good)
            try:
                body = matrix.loads(text)
            except ValueError:
                continue
            if not isinstance(body, dict):
                continue
            try:
                made, no = through(endpoint, body)
            except Exception as error:
                raise AssertionError(f"{scenario.name} #{case}: {text[:3000]!r}") from error
            built, refused = built + made, refused + no
    assert built
    assert refused


def through(endpoint: Endpoint, body: Any) -> tuple[int, int]:
    """How many providers would be asked, and how many refuse; the client's side must be able to answer."""
    face = FACES[endpoint]
    try:
        request, lost = face.decode(body)
    except ClientError as error:
        check(error)
        return 0, 1
    assert all(isinstance(name, str) and name.isascii() and name.isprintable() for name in lost), lost
    built = refused = 0
    for name in matrix.MODELS:
        try:
            found = build(endpoint, name, request)
        except ClientError as error:
            check(error)
            refused += 1
            continue
        if found is None:
            continue
        built += 1
        json.loads(found.body)
        assert all(name.isascii() and name.isprintable() and len(name) < 200 for name in found.dropped), found.dropped
    if endpoint not in (Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS):
        writer = face.writer(Answer("i", "m", 1, body), "p", lambda usage: (0.0, 0.0))
        assert writer.error(ClientError("no")).endswith(b"\n\n")
    return built, refused


def check(error: ClientError) -> None:
    assert error.status == 400
    for face in FACES.values():
        json.loads(face.error_body(error, "req"))
