"""``slipstream models``: what each provider serves, with context window and price (contracts A's ls-models).

Asks the providers themselves, with the configured keys; what the configuration names is marked with its public name.
A price is the configured one, else the provider's own list's, else unknown: never guessed.
"""

from __future__ import annotations

from typing import Any

import click

from ..config.snapshot import ProviderSpec
from ..providers.capabilities import capabilities

Row = dict[str, Any]
COLUMNS = ("provider", "model", "served as", "context", "$/M in", "$/M out")


@click.command("models")
@click.option(
    "--config", "config_path", metavar="FILE", help="YAML or JSON file (else CONFIG_PATH, ./config.yaml, env)."
)
@click.option("--provider", "only", metavar="NAME", help="Only this provider, by name or type.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def command(config_path: str | None, only: str | None, as_json: bool) -> None:
    """List what each provider serves, with context window and price."""
    from ..wire.codec import dumps
    from ._ask import ask, load

    snapshot = load(config_path)
    specs = [spec for spec in snapshot.providers if only is None or only in (spec.name, spec.type)]
    if not specs:
        names = ", ".join(spec.name for spec in snapshot.providers)
        raise click.UsageError(f"there is no provider {only!r}; there are: {names}")
    failed = 0
    rows: list[Row] = []
    for spec, answer in zip(specs, ask(snapshot, specs).values(), strict=True):
        if isinstance(answer, str):
            failed += 1
            click.echo(f"{spec.name}: {answer}", err=True)
            answer = []
        rows += table(spec, answer)
    if as_json:
        for row in rows:
            click.echo(dumps(row).decode())
    else:
        click.echo(render(rows))
    raise SystemExit(1 if failed == len(specs) else 0)


def table(spec: ProviderSpec, listed: list[Row]) -> list[Row]:
    """One row per model: what the provider lists, and what the configuration names and it does not list."""
    public: dict[str, list[str]] = {}
    for name in (*spec.models, *spec.model_mapping):
        public.setdefault(spec.upstream_model(name) or name, []).append(name)
    known = {str(model["id"]): model for model in listed}
    rows = []
    for name in dict.fromkeys((*public, *known)):
        model = known.get(name, {})
        served = public.get(name, [])
        known_as = capabilities(name)
        if not served and spec.upstream_model(name) == name:
            served = [name]
        rows.append(
            {
                "provider": spec.name,
                "model": name,
                "served as": ", ".join(served),
                "context": model.get("context_window") or (known_as.context_window if known_as is not None else None),
                "$/M in": spec.price.input if spec.price is not None else model.get("price_input"),
                "$/M out": spec.price.output if spec.price is not None else model.get("price_output"),
            }
        )
    return rows


def render(rows: list[Row]) -> str:
    """Aligned columns; a dash is what nobody said."""
    cells = [COLUMNS, *(tuple(_cell(row[name]) for name in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
