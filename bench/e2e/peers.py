"""The proxies that are compared, each as its own documentation would have it started: one worker, no access log.

nginx and HAProxy pass bytes on. Ours has what a new user gets (three providers, a key, statistics, metrics, usage
accounting, request ids). LiteLLM and Portkey take part when ``LITELLM_BIN`` and ``PORTKEY_BIN`` name an installation
(bench/README.md says how to make one); they have three targets too, LiteLLM a key as well (Portkey's open source has
none of its own).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import payloads
from .proc import START_S, Running, Stage, free_port

CONNECTIONS = 4096
"""What nginx and HAProxy are told to expect; they allocate by it, so the idle mode asks for what it needs."""
PROVIDERS = ("a", "b", "c")

Config = Callable[[Path, int, int, int], list[str]]
"""Folder, port, upstream's port, connections -> the command. Writes its files into the folder."""


@dataclass(frozen=True, slots=True)
class Peer:
    """``exact``: its answers are the upstream's byte by byte. ``patience``: rounds are that much longer, because a
    slow proxy finishes few requests and those cut off at a round's end count as its time, not as its work. It may take
    that much longer to start, too."""

    name: str
    title: str
    config: Config
    exact: bool = True
    patience: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""

    def headers(self, upstream: int) -> dict[str, str]:
        return _portkey_headers(upstream) if self.name == "portkey" else {}

    def start(self, stage: Stage, upstream: int, connections: int = CONNECTIONS) -> tuple[Running, float]:
        """Running, and the milliseconds from its spawn to the first 200 of a chat completion."""
        port = free_port()
        folder = stage.folder / self.name
        folder.mkdir(exist_ok=True)
        command = self.config(folder, port, upstream, connections)
        running = stage.spawn(self.name, port, command, stage.cores.proxy, self.env)
        return running, running.first_200(
            payloads.http(payloads.request(), self.headers(upstream)), START_S * self.patience
        )


def nginx(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
    return nginx_command(
        folder,
        connections,
        f"""
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; }} }}
""",
    )


def nginx_command(folder: Path, connections: int, servers: str) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(f" {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi"))
    (folder / "nginx.conf").write_text(f"""{user} worker_processes 1; daemon off; pid {folder}/pid;
error_log {folder}/error.log; worker_rlimit_nofile {connections * 2 + 256};
events {{ worker_connections {connections * 2}; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 64m;
  client_body_buffer_size 2m; {temporary} scgi_temp_path {folder}/scgi;
{servers}}}
""")
    return ["nginx", "-c", f"{folder}/nginx.conf"]


def haproxy(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
    (folder / "haproxy.cfg").write_text(f"""global
  nbthread 1
  maxconn {connections}
  tune.bufsize 131072
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
""")
    return ["haproxy", "-f", f"{folder}/haproxy.cfg"]


def slipstream(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
    base = f"http://127.0.0.1:{upstream}/v1"
    return serve(folder, port, [f'api_base: "{base}", api_key: sk-up-{name}' for name in PROVIDERS])


def serve(folder: Path, port: int, providers: Sequence[str], more: str = "") -> list[str]:
    """Our gateway with these settings of its three providers, and ``more`` sections of the file."""
    pairs = zip(PROVIDERS, providers, strict=True)
    entries = "".join(f"  - {{name: {name}, {settings}, weight: 1}}\n" for name, settings in pairs)
    server = f"{{host: 127.0.0.1, port: {port}, workers: 1, master_api_key: {payloads.KEY}}}"
    (folder / "config.yaml").write_text(f"server: {server}\nproviders:\n{entries}{more}")
    script = Path(sys.executable).with_name("slipstream")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "slipstream"]
    return [*command, "serve", "--config", f"{folder}/config.yaml"]


def litellm(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
    params = {"model": f"openai/{payloads.MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1"}
    models = [
        {"model_name": payloads.MODEL, "litellm_params": params | {"api_key": f"sk-up-{name}"}} for name in PROVIDERS
    ]
    config = {"model_list": models, "general_settings": {"master_key": payloads.KEY}}
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML
    command = [os.environ["LITELLM_BIN"], "--config", f"{folder}/config.yaml", "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--num_workers", "1"]


def portkey(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
    return ["node", os.environ["PORTKEY_BIN"], f"--port={port}", "--headless"]


def _portkey_headers(upstream: int) -> dict[str, str]:
    """Portkey is configured by each request."""
    host = f"http://127.0.0.1:{upstream}/v1"
    targets = [
        {"provider": "openai", "api_key": f"sk-up-{name}", "custom_host": host, "weight": 1} for name in PROVIDERS
    ]
    config = {"strategy": {"mode": "loadbalance"}, "targets": targets}
    return {"x-portkey-config": json.dumps(config, separators=(",", ":"))}


def everyone() -> dict[str, Peer]:
    """All peers; those that cannot run here say why."""
    reference = {"SLIPSTREAM_LISTENER": "aiohttp", "SLIPSTREAM_TRANSPORT": "aiohttp"}
    no_network = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    peers = (
        Peer("nginx", "nginx", nginx, missing=_lacks("nginx")),
        Peer("haproxy", "HAProxy", haproxy, missing=_lacks("haproxy")),
        Peer("slipstream", "Slipstream", slipstream),
        Peer("reference", "Slipstream on aiohttp", slipstream, env=reference),
        Peer(
            "litellm",
            "LiteLLM",
            litellm,
            exact=False,
            patience=3,
            env=no_network,
            missing=_lacks(os.environ.get("LITELLM_BIN", ""), "LITELLM_BIN"),
        ),
        Peer(
            "portkey",
            "Portkey",
            portkey,
            exact=False,
            patience=2,
            env={"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
            missing=_lacks(os.environ.get("PORTKEY_BIN", ""), "PORTKEY_BIN", file=True) or _lacks("node"),
        ),
    )
    return {peer.name: peer for peer in peers}


def _lacks(program: str, variable: str = "", *, file: bool = False) -> str:
    if not program:
        return f"{variable} is not set"
    found = Path(program).is_file() if file else shutil.which(program)
    return "" if found else f"{program} is not there"
