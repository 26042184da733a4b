# just --list

python := ".venv/bin/python"

# venv with everything for development, compiled modules beside their sources
build:
    python3 -m venv .venv
    {{python}} -m pip install -q -e '.[test]'

# the gateway with the configuration found (--config, CONFIG_PATH, ./config.yaml, environment)
run *args: build
    .venv/bin/slipstream serve {{args}}

# the gateway with two mock providers; no key, no network
demo *args: build
    .venv/bin/slipstream serve --demo {{args}}

test *args: build
    {{python}} -m pytest {{args}}

lint: build
    {{python}} -m ruff check .
    .venv/bin/lint-imports

typecheck: build
    {{python}} -m mypy

# every benchmark (bench/README.md)
bench: build
    {{python}} bench/start.py
    {{python}} bench/micro/jsonscan.py
    {{python}} bench/micro/sse.py

# one request to a running gateway
send url="http://127.0.0.1:8080":
    curl -sS {{url}}/v1/chat/completions -H 'Content-Type: application/json' -d @test_payload.json

# all that CI checks
check:
    bash .ci/run

clean:
    rm -rf build dist ./*.egg-info .venv .coverage .coverage.* .mypy_cache .ruff_cache .hypothesis .import_linter_cache
    find slipstream -name '*.so' -delete
    find . -name __pycache__ -type d -prune -exec rm -rf {} +
