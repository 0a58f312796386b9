#!/usr/bin/env bash
# What the code must look like, checked in a minute: ruff's rules, its formatting and pyright's types (see pyproject.toml).
# `bash scripts/lint.sh --fix` mends what can be mended by itself.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" lint
if [ "${1:-}" = --fix ]; then
  "$python" -m ruff check --quiet --fix . || true
  "$python" -m ruff format --quiet .
fi
"$python" -m ruff check --quiet .
"$python" -m ruff format --quiet --check .
"$python" -m pyright --pythonpath "$python"
