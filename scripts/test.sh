#!/usr/bin/env bash
# All tests on the CPU, after setting up .venv. Arguments go to pytest, for example: bash scripts/test.sh -k sampler; and
# --slow adds the larger cases of what others try small, several minutes more.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
exec "$python" -m pytest -q "$@"
