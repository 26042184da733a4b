"""``docs/translation.md`` says what the code does, and what it says holds: nothing is lost without a word (R65), a
request is built the same twice and is never changed (R59)."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slipstream.errors import ClientError
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.types import Endpoint
from slipstream.wire.faces import FACES

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "generate_matrix.py"


def load() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate_matrix", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    before = list(sys.path)
    found.loader.exec_module(module)
    sys.path[:] = before
    return module


matrix: Any = load()
CHAT_LIKE = [(section[0], section[2], section[3]) for section in matrix.SECTIONS]


def test_the_document_is_up_to_date() -> None:
    assert matrix.TARGET.read_text(encoding="utf-8") == matrix.render(), "run: python docs/generate_matrix.py"


def test_nothing_is_lost() -> None:
    """A text of the request that is neither sent nor reported."""
    assert "LOST" not in matrix.render()


def test_a_refusal_names_a_field() -> None:
    assert "400 `None`" not in matrix.render()


def test_every_provider_type_has_a_column() -> None:
    assert set(matrix.MODELS) == set(PROVIDER_TYPES) - {"mock"}


@pytest.mark.parametrize(("endpoint", "scenarios", "dialect"), CHAT_LIKE, ids=lambda v: getattr(v, "name", None))
def test_a_request_is_read_and_built_the_same_twice(endpoint: Endpoint, scenarios: Any, dialect: str) -> None:
    """R59: every attempt starts from the client's original."""
    for scenario in scenarios:
        extra = getattr(scenario, dialect)
        if extra is None:
            continue
        body = {"model": "m", **matrix.SMALLEST[endpoint], **extra}
        untouched = copy.deepcopy(body)
        try:
            request, lost = FACES[endpoint].decode(body)
        except ClientError:
            continue
        assert FACES[endpoint].decode(body) == (request, lost)
        once = copy.deepcopy(request)
        for name in matrix.MODELS:
            build = PROVIDER_TYPES[name].build
            try:
                built = build(request, matrix.spec(name), matrix.MODELS[name][scenario.reasoning])
            except ClientError:
                continue
            again = build(request, matrix.spec(name), matrix.MODELS[name][scenario.reasoning])
            assert built == again, (scenario.name, name)
            assert request == once, (scenario.name, name)
        assert body == untouched, scenario.name
