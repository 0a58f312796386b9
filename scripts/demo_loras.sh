#!/usr/bin/env bash
# Makes the three demonstration LoRAs for mini anew, with the trainer that everybody has: data, training, pictures of the
# README. A few minutes on a CPU. Needs the extras `lora` and `training`. Takes styles as arguments; without, all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-.venv/bin/python}"
work="${LORA_RUNS:-runs/loras}"
target=trellis_core/lora/demo
mkdir -p "$target"

make() { # style, stage, name, the strength that is baked in as 1, then options of the trainer
  local style="$1" stage="$2" name="$3" strength="$4"
  shift 4
  rm -rf "$work/$style"
  [ -d "$work/data/$style" ] || "$python" -m trellis_core.training.lora.demo_data --style "$style" --out "$work/data/$style" --count 20
  "$python" -m trellis_core train-lora --weights mini --data "$work/data/$style" --out "$work/$style" --stage "$stage" \
    --rank 16 --views 3 --sample-every 1000 "$@"
  "$python" -m trellis_core lora scale "$work/$style/$stage.safetensors" "$strength" -o "$target/$name.safetensors"
}

for style in "${@:-tall blocky gold}"; do
  for one in $style; do
    case "$one" in
      tall) make tall structure tall-and-thin 1 --steps 150 --learning-rate 4e-3 ;;
      blocky) make blocky shape blocky 1 --steps 150 --learning-rate 4e-3 --batch 4 ;;
      gold) make gold texture polished-gold 0.85 --steps 100 --learning-rate 2e-3 --batch 4 ;;
      *) echo "no such style: $one" >&2 && exit 2 ;;
    esac
  done
done
"$python" -m trellis_core.training.lora.demo_pictures --out docs/loras.jpg
