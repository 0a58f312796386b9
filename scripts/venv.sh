# Sourced by the other scripts: makes .venv in the checkout once, with everything that $1 (an extra of pyproject.toml, or
# nothing) needs, and sets $python to its interpreter.
#
#   PYTHON           interpreter to make it with (default: python3; at least 3.10)
#   TORCH            what to install as PyTorch (default: torch==2.13.0, the version this was measured with)
#   TORCH_INDEX_URL  package index to take PyTorch from. On Linux the default index has builds for NVIDIA GPUs of several
#                    gigabytes; without such a GPU set this to the CPU index named by the selector on pytorch.org.
#   LOCKED           1 takes exactly the versions of tests/locked.txt; else the newest that our bounds allow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
  "${PYTHON:-python3}" -m venv .venv
fi
python="$PWD/.venv/bin/python"
if ! "$python" -c 'import torch' 2>/dev/null; then
  "$python" -m pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "${TORCH:-torch==2.13.0}"
fi
wanted=".venv/.installed-${extra:-core}-$(cat pyproject.toml requirements.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$wanted" ]; then
  "$python" -m pip install --quiet ${LOCKED:+--constraint tests/locked.txt} --editable ".${extra:+[$extra]}"
  touch "$wanted"
fi
