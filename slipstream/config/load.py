"""Where the configuration comes from: a file, the environment, or the embedded demo. The only door into this room.

The file is ``--config``, else ``CONFIG_PATH``, else ``./config.yaml`` if there is one, else the environment alone
(``environment``). ``.env`` in the working directory is read first and counts as environment; the real one wins.

The rule that must not be broken: all or nothing. Every fault found is in the one ConfigError, and nothing but a
ConfigError is raised, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .compile import Ambient, Overrides, ambient_from, compile_config, override_problems
from .environment import config_from_environment
from .expand import MAX_ENV_FILE_BYTES, parse_env_file
from .schema import ConfigFile
from .snapshot import ProviderType, Snapshot

if TYPE_CHECKING:  # whatever only a file needs is imported when one is read: a start without one is 15 ms faster
    from .walk import Walk

DEFAULT_FILE = "config.yaml"
MAX_CA_BYTES = 4 << 20

__all__ = ["Loaded", "Overrides", "load_snapshot", "parse_config"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A usable configuration. ``notes`` are for the log at the start; ``path`` is the file to read again on reload."""

    snapshot: Snapshot
    notes: list[str] = field(default_factory=list)
    path: Path | None = None


def load_snapshot(
    *,
    config_path: str | None,
    overrides: Overrides,
    env: Mapping[str, str],
    cwd: Path,
    provider_types: Mapping[str, ProviderType],
) -> Loaded:
    """Finds, reads, checks and compiles. Raises ConfigError with every problem."""
    dotenv, notes = _dotenv(cwd)
    env = {**dotenv, **env}
    named = config_path or env.get("CONFIG_PATH") or (DEFAULT_FILE if (cwd / DEFAULT_FILE).is_file() else None)
    ambient, problems = ambient_from(env)
    problems += override_problems(overrides)
    path = folder = None
    if named is not None:
        path = _resolve(cwd, named)
        config, found = _from_file(path, named, env, provider_types)
        source, folder = named, path.parent
        if config is not None and config.server.master_api_key is None and env.get("MASTER_API_KEY"):
            notes.append(f"MASTER_API_KEY is set but {named} has no server.master_api_key: it is not used")
    else:
        config, found, more = config_from_environment(env, provider_types)
        notes += more
        source, folder = "environment", cwd
    problems += found
    if problems or config is None:
        raise ConfigError(problems)
    if named is None and ambient.policy is None:
        ambient = Ambient(ambient.port, "cheapest", ambient.admin_token)  # contracts E: its default policy
    snapshot, more = compile_config(
        config, source=source, folder=folder, overrides=overrides, ambient=ambient, provider_types=provider_types
    )
    return Loaded(snapshot, notes + more, path)


def parse_config(
    text: str, name: str, env: Mapping[str, str], provider_types: Mapping[str, ProviderType], folder: Path | None = None
) -> ConfigFile:
    """A configuration from its text. ``folder`` is where relative files are looked for (None: nowhere)."""
    import msgspec.inspect

    from . import checks, yamlnodes
    from .walk import Walk

    walk = Walk(name, env)
    root = yamlnodes.parse(text, name)
    if root is None:
        raise ConfigError([f"{name}: is empty; write at least 'providers:' with one provider in it"])
    tree = walk.value(msgspec.inspect.type_info(ConfigFile), root, ())
    if isinstance(tree, dict):
        checks.check(tree, walk, provider_types)
        _check_ca_file(tree, walk, folder)
    problems = walk.problems()
    if problems:
        raise ConfigError(problems)
    try:
        return msgspec.convert(tree, ConfigFile)
    except (msgspec.ValidationError, OverflowError):  # the walk and the Structs disagree: our bug, but not a traceback
        raise ConfigError(
            [f"{name}: does not fit the schema (a fault of slipstream's checker; please report it)"]
        ) from None


def _from_file(
    path: Path, name: str, env: Mapping[str, str], provider_types: Mapping[str, ProviderType]
) -> tuple[ConfigFile | None, list[str]]:
    from . import yamlnodes

    try:
        with path.open("rb") as file:
            data = file.read(yamlnodes.MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable file name"
        return None, [f"{name}: cannot be read: {why}; check --config, CONFIG_PATH or the file's permissions"]
    try:
        return parse_config(yamlnodes.decode(data, name), name, env, provider_types, path.parent), []
    except ConfigError as error:
        return None, error.problems


def _resolve(cwd: Path, named: str) -> Path:
    try:
        return cwd / Path(named).expanduser()
    except RuntimeError:  # "~nobody"
        return cwd / named


def _dotenv(cwd: Path) -> tuple[dict[str, str], list[str]]:
    try:
        with (cwd / ".env").open("rb") as file:
            data = file.read(MAX_ENV_FILE_BYTES + 1)
        if len(data) > MAX_ENV_FILE_BYTES:
            return {}, [".env: not read: it is larger than 1 MiB"]
        return parse_env_file(data.decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}, []
    except (OSError, UnicodeDecodeError):
        return {}, [".env: not read: it is not readable UTF-8 text"]


def _check_ca_file(tree: dict[str, object], walk: Walk, folder: Path | None) -> None:
    name = tree.get("ca_file")
    if isinstance(name, str) and folder is not None:
        try:
            with (folder / name).open("rb") as file:
                pem = b"-----BEGIN " in file.read(MAX_CA_BYTES)
        except OSError as error:
            walk.report(("ca_file",), f"cannot be read: {error.strerror or 'no such file'}")
        else:
            if not pem:
                walk.report(("ca_file",), "is not a PEM file of certificates (-----BEGIN CERTIFICATE-----)")
