"""``${VAR}`` and ``${VAR:-default}`` in values, and the ``.env`` file.

Expansion happens after YAML was parsed, value by value, so that what a variable holds can never become structure.
``${VAR:-default}`` gives the default when the variable is unset or empty, as in a shell; ``$${`` is a literal ``${``.
Defaults are plain text: they are not expanded again and hold no ``}``.

The rule that must not be broken: a problem names the variable, never what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_ENV_FILE_BYTES = 1 << 20

_REFERENCE = re.compile(r"(\$\$\{)|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*)\Z", re.DOTALL)
_QUOTED = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)')\s*(?:#.*)?\Z""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def expand(text: str, env: Mapping[str, str]) -> tuple[str, list[str]]:
    """``text`` with its references replaced, and what is wrong with them."""
    problems: list[str] = []

    def replace(match: re.Match[str]) -> str:
        literal, variable, default = match.groups()
        if literal:
            return "${"
        if variable is None:
            problems.append("has a broken '${'; write ${NAME}, ${NAME:-default}, or $${ for the characters themselves")
            return ""
        value = env.get(variable)
        if default is not None:
            return value or str(default)
        if value is None:
            problems.append(
                f"the variable {variable} is not set; set it in the environment or in .env, "
                "or give it a default (${NAME:-default})"
            )
            return ""
        return value

    return _REFERENCE.sub(replace, text), problems


def is_whole(text: str) -> bool:
    """Whether ``text`` is one reference and nothing else: then it may become a number or a switch."""
    match = _REFERENCE.fullmatch(text)
    return match is not None and match.group(2) is not None


def has_reference(text: str) -> bool:
    return "${" in text


def parse_env_file(text: str, name: str = ".env") -> tuple[dict[str, str], list[str]]:
    """The assignments of a ``.env`` file and notes on the lines that were skipped.

    ``KEY=VALUE`` with an optional ``export``, comments, single quotes (literal) and double quotes (``\\n``, ``\\t``,
    ``\\"``, ``\\\\``). A line that is none of these is somebody else's dialect: it is skipped and noted, not fatal.
    """
    values: dict[str, str] = {}
    notes: list[str] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.match(line)
        value = _env_value(match.group(2)) if match else None
        if match is None or value is None or "\x00" in value:
            notes.append(f"{name}:{number}: skipped: not KEY=VALUE on one line")
            continue
        values[match.group(1)] = value
    return values, notes


def _env_value(text: str) -> str | None:
    if text[:1] in ("'", '"'):
        match = _QUOTED.match(text)
        if match is None:
            return None
        double, single = match.groups()
        if double is None:
            return str(single)
        return _ESCAPE.sub(lambda m: _ESCAPES.get(m.group(1), m.group(1)), double)
    if text.startswith("#"):
        return ""
    return re.split(r"\s#", text, maxsplit=1)[0].rstrip()
