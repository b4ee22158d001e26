#!/usr/bin/env bash
# Resolve the requirement files: hashes for every platform, no index addresses. Keeps the locked versions unless UPGRADE=1.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header ${UPGRADE:+--upgrade})
"${compile[@]}" --all-extras --group dev pyproject.toml -o requirements/dev.txt
"${compile[@]}" --all-extras --constraint requirements/dev.txt pyproject.toml -o requirements/run.txt
grep -E '^uv==' requirements/dev.txt | sed -E 's/ .*//' | "${compile[@]}" - -o requirements/bootstrap.txt
