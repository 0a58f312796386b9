#!/usr/bin/env bash
# Tests with the lowest versions that requirements.txt and pyproject.toml allow: what users with older packages have.
# They lie in .venv-lowest in front of .venv, from where PyTorch and everything that we do not name still come.
# For Python 3.10 to 3.12: of some of these versions there are no builds for newer ones. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
mark=".venv-lowest/.installed-$(cat pyproject.toml requirements.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$mark" ]; then
  rm -rf .venv-lowest
  "$python" -m venv .venv-lowest
  lowest=.venv-lowest/bin/python
  "$python" scripts/lowest_versions.py > .venv-lowest/pins.txt
  # PEFT asks for PyTorch, which is there already.
  grep -v '^peft' .venv-lowest/pins.txt > .venv-lowest/most.txt
  "$lowest" -m pip install --quiet --requirement .venv-lowest/most.txt
  "$lowest" -m pip install --quiet --no-deps "$(grep '^peft' .venv-lowest/pins.txt)"
  "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$("$lowest" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
  touch "$mark"
fi
.venv-lowest/bin/python -m pip list --format freeze --path "$(.venv-lowest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" | tr '\n' ' '
echo
[ $# -gt 0 ] || set -- tests/test_settings.py tests/test_files.py tests/image/test_real_pictures.py tests/gltf tests/asset/test_formats.py \
  tests/lora/test_lora_write.py tests/fal/test_fal_service.py tests/mesh/test_bad_meshes.py
# Plugins would be found by what .venv says of its newer packages.
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec .venv-lowest/bin/python -m pytest -q "$@"
