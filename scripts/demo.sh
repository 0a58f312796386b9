#!/usr/bin/env bash
# A picture in, a textured 3D model out, on any machine: sets up .venv and runs the bundled mini family on the CPU.
#   bash scripts/demo.sh [PICTURE]
here="$(dirname "${BASH_SOURCE[0]}")"
picture="$(realpath "${1:-$here/../examples/icon_tree.png}")"
source "$here/venv.sh"
mkdir -p output
name="$(basename "${picture%.*}")"
"$python" -m trellis_core generate "$picture" -o "output/$name.glb" --preview "output/$name.png" --seed 0 --report
echo
echo "The model is  $PWD/output/$name.glb  (open it in Blender, in Windows' 3D Viewer, or in any glTF viewer)."
echo "A picture of it is  $PWD/output/$name.png"
