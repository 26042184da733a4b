"""Asking the providers of a configuration something from the command line: which models, and whether the key is good.

Uses the gateway's own transports, signers and adapters, so that what works here works there.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import click

from ..config.snapshot import ProviderSpec, Snapshot
from ..engine.runtime import Outbound
from ..errors import ConfigError, UpstreamError
from ..server.models import Model, fetch_models


def load(config_path: str | None) -> Snapshot:
    """The configuration as ``serve`` would read it; every problem on stderr and exit code 1 if it cannot be used."""
    from ..config.load import Overrides, load_snapshot
    from ..providers.registry import PROVIDER_TYPES

    try:
        loaded = load_snapshot(
            config_path=config_path,
            overrides=Overrides(),
            env=os.environ,
            cwd=Path.cwd(),
            provider_types=PROVIDER_TYPES,
        )
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from None
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    return loaded.snapshot


def ask(snapshot: Snapshot, specs: list[ProviderSpec]) -> dict[str, list[Model] | str]:
    """By provider: its models, or in one line why it did not say."""
    return asyncio.run(_ask_all(snapshot, specs))


async def _ask_all(snapshot: Snapshot, specs: list[ProviderSpec]) -> dict[str, list[Model] | str]:
    answers = await asyncio.gather(*(_ask(snapshot, spec) for spec in specs))
    return {spec.name: answer for spec, answer in zip(specs, answers, strict=True)}


async def _ask(snapshot: Snapshot, spec: ProviderSpec) -> list[Model] | str:
    from ..server.process import make_transport

    if spec.type == "mock" and not spec.api_base:
        return [{"id": name} for name in (*spec.models, *spec.model_mapping.values())]  # it runs inside the gateway
    outbound = Outbound(spec, snapshot, make_transport(spec, snapshot))
    try:
        return await fetch_models(outbound, time.time())
    except UpstreamError as error:
        return error.message
    except TimeoutError:
        return "no answer in time"
    except ValueError:
        return "the answer is not a list of models"
    finally:
        await outbound.transport.close()
        if outbound.signer is not None:
            await outbound.signer.close()
