"""What belongs together: faults that no single value shows.

Runs on the tree that ``walk`` left over, faults and all, so that a wrong port and a fallback to nowhere are told in one
go. A check keeps quiet about what it cannot know because something below is broken already.

Weights: 0 to 1000. A provider of weight 0 gets no share; each model needs one provider with more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rules import nearest
from .snapshot import ProviderType
from .walk import Path, Walk, quote

Tree = dict[str, Any]


def check(tree: Tree, walk: Walk, provider_types: Mapping[str, ProviderType]) -> None:
    """Reports to ``walk`` whatever does not fit together."""
    providers = tree.get("providers") or []
    _unique_names(providers, walk)
    for index, provider in enumerate(providers):
        if provider is not None:
            path: Path = ("providers", index)
            _type(provider, path, walk, provider_types)
            _mock(provider, path, walk)
            _headers(provider, path, walk)
            _models(provider, path, walk)
    if providers and all(_known(providers, index, walk) for index in range(len(providers))):
        meant = _meant(providers, walk)
        _weights(meant, walk)
        for chains in CHAINS:
            _fallbacks(chains, tree, meant, walk)
    cors = (tree.get("server") or {}).get("cors")
    if isinstance(cors, dict) and "*" in cors.get("origins", []) and len(cors["origins"]) > 1:
        walk.report(("server", "cors", "origins"), "'*' allows every origin already; remove the others, or the '*'")


def _shown(walk: Walk, path: Path, value: str) -> str:
    return "this" if path in walk.expanded else quote(value)


def _unique_names(providers: list[Any], walk: Walk) -> None:
    first: dict[str, int] = {}
    for index, provider in enumerate(providers):
        name = (provider or {}).get("name")
        if name is None:
            continue
        path: Path = ("providers", index, "name")
        if name in first:
            line = walk.lines[("providers", first[name], "name")]
            shown = _shown(walk, path, name)
            walk.report(path, f"{shown} is the name of providers[{first[name]}] (line {line}) too; names are unique")
        first.setdefault(name, index)


def _type(provider: Tree, path: Path, walk: Walk, provider_types: Mapping[str, ProviderType]) -> None:
    at = (*path, "type")
    if at in walk.lines and "type" not in provider:
        return
    name = provider.get("type", "openai")
    kind = provider_types.get(name)
    if kind is None:
        if at in walk.expanded:
            walk.report(at, f"is no known provider type; known here: {', '.join(provider_types)}")
        else:
            walk.report(at, f"{quote(name)} is no known provider type{nearest(name, list(provider_types))}")
        return
    own_base = (*path, "api_base") in walk.lines
    if kind.needs_base and not own_base:
        walk.report((*path, "api_base"), f"missing; type {name} has no default address, write api_base: https://...")
    # Behind an address of one's own may be a server that wants no key; the default one never is.
    needs_key = kind.needs_key and not (own_base and provider.get("api_base") != kind.default_base)
    key_at = (*path, "api_key")
    if needs_key and not provider.get("api_key") and walk.clean(key_at):
        what = "is empty" if key_at in walk.lines else "missing"
        walk.report(key_at, f"{what}; type {name} needs one, write api_key: ${{NAME}}")


def _mock(provider: Tree, path: Path, walk: Walk) -> None:
    at = (*path, "mock")
    settings = provider.get("mock")
    if settings is None:
        return
    if provider.get("type", "openai") != "mock" and walk.clean((*path, "type")):
        walk.report(at, "is only for providers of type mock; write type: mock, or remove it")
    mean, p95 = settings.get("mean_latency_ms"), settings.get("p95_latency_ms")
    if mean is not None and p95 is not None and p95 < mean:
        walk.report((*at, "p95_latency_ms"), "is less than mean_latency_ms; swap or raise it")


def _headers(provider: Tree, path: Path, walk: Walk) -> None:
    seen: set[str] = set()
    for name in provider.get("headers") or {}:
        if name.lower() in seen:
            at = (*path, "headers", name)
            walk.report(at if at in walk.lines else at[:-1], "written twice (upper and lower case are the same)")
        seen.add(name.lower())


def _models(provider: Tree, path: Path, walk: Walk) -> None:
    seen: dict[str, int] = {}
    for index, name in enumerate(provider.get("models") or []):
        if name is not None and name in seen:
            walk.report((*path, "models", index), f"is in the list already (models[{seen[name]}]); remove one")
        seen.setdefault(name, index)


def _known(providers: list[Any], index: int, walk: Walk) -> bool:
    """Whether we know what this provider was meant to serve: yes, unless a fault hides the very names."""
    path: Path = ("providers", index)
    if providers[index] is None:
        return False
    for fault in walk.faults:
        if fault[:2] != path or len(fault) < 3 or fault[2] not in ("models", "model_mapping"):
            continue
        if "${" in walk.raw.get(fault, "${"):
            return False
    return True


def _meant(providers: list[Tree], walk: Walk) -> list[Tree]:
    """The providers with the names as written where they are faulty: a bad name is one fault, not three."""
    meant = []
    for index, provider in enumerate(providers):
        path: Path = ("providers", index)
        models = [
            walk.raw.get((*path, "models", n), "") if name is None else name
            for n, name in enumerate(provider.get("models") or [])
        ]
        mapping = dict(provider.get("model_mapping") or {})
        at = (*path, "model_mapping")
        mapping |= {key[-1]: None for key in walk.faults if key[:-1] == at and "${" not in str(key[-1])}
        weight = provider.get("weight", 1) if walk.clean((*path, "weight")) else 1
        meant.append({"models": models, "model_mapping": mapping, "weight": weight})
    return meant


def _serves(provider: Tree, model: str) -> bool:
    if _serves_all(provider):
        return True
    return model in provider["model_mapping"] or any(_covers(entry, model) for entry in provider["models"])


def _serves_all(provider: Tree) -> bool:
    return not (provider["models"] or provider["model_mapping"])


def _covers(entry: str, model: str) -> bool:
    return model.startswith(entry[:-1]) if entry.endswith("*") else entry == model


def _weights(providers: list[Tree], walk: Walk) -> None:
    """Every model has a provider that may be chosen. Each zero that breaks this is told: it is a line to mend."""
    rivals = [other for other in providers if other["weight"] != 0]
    for index, provider in enumerate(providers):
        if provider["weight"] != 0:
            continue
        for entry in [*provider["models"], *provider["model_mapping"]] or ["*"]:
            if not any(_reaches(other, entry) for other in rivals):
                what = "any model" if entry == "*" else quote(entry)
                text = f"is 0 and no other provider with a weight serves {what}; give one of them a weight"
                walk.report(("providers", index, "weight"), text)
                break


def _reaches(provider: Tree, entry: str) -> bool:
    if not entry.endswith("*"):
        return _serves(provider, entry)
    if _serves_all(provider):
        return True
    return any(other.endswith("*") and entry[:-1].startswith(other[:-1]) for other in provider["models"])


CHAINS = ("fallbacks", "context_fallbacks", "content_filter_fallbacks")


def _fallbacks(chains: str, tree: Tree, providers: list[Tree], walk: Walk) -> None:
    names = [name for p in providers for name in (*p["models"], *p["model_mapping"])]
    fallbacks = (tree.get("routing") or {}).get(chains) or {}
    for model, others in fallbacks.items():
        path: Path = ("routing", chains, model)
        if path not in walk.lines:
            continue  # the name came from a variable
        if not any(_serves(provider, model) for provider in providers):
            walk.report(path, f"no provider serves {quote(model)}, so it never falls back{_close(model, names)}")
        for index, other in enumerate(others or []):
            at = (*path, index)
            if other == model:
                walk.report(at, "a model cannot fall back to itself; remove it")
            elif other is not None and other in others[:index]:
                walk.report(at, "is in the list already; remove one")
            elif other is not None and not any(_serves(provider, other) for provider in providers):
                close = "" if at in walk.expanded else _close(other, names)
                walk.report(at, f"no provider serves {_shown(walk, at, other)}{close}")


def _close(word: str, names: list[str]) -> str:
    """Only the nearest name: the whole list may be hundreds."""
    said = nearest(word, names)
    return said if said.startswith(",") else "; add it to a provider's models or model_mapping"
