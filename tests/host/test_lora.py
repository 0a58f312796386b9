"""LoRAs on the real host: its patches against the core, and its nodes in a graph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from .conftest import ROOT, Host, environment, find, workflow

FLOW = json.loads((ROOT / "trellis_core" / "mini" / "ckpts" / "shape_flow.json").read_text())["args"]


@pytest.fixture(scope="module")
def lora(host: Host) -> Path:
    """A random LoRA for mini's shape network, in the host's folder."""
    width, generator = FLOW["model_channels"], torch.Generator().manual_seed(0)
    state = {}
    for block in range(FLOW["num_blocks"]):
        front = f"diffusion_model.blocks.{block}.self_attn.to_qkv"
        state[f"{front}.lora_down.weight"] = torch.randn(4, width, generator=generator) * 0.1
        state[f"{front}.lora_up.weight"] = torch.randn(3 * width, 4, generator=generator) * 0.1
    path = host.base / "models" / "loras" / "random_shape.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


@pytest.mark.parametrize("precision", [None, "int8", "fp8"])
def test_on_the_host_loras_do_what_the_core_does(host: Host, lora: Path, precision: str | None) -> None:
    """By its patches, and beside rounded layers."""
    script = str(Path(__file__).with_name("inside_lora.py"))
    paths = f"{environment()['PYTHONPATH']}:{host.source}"
    command = [sys.executable, script, str(ROOT), str(host.base), str(lora), *([precision] if precision else [])]
    done = subprocess.run(command, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["times read"] == 1, "another strength must not read the base again"
    assert max(found["errors"]) < 1e-4 < found["effect"]
    assert found["restored"] and found["repeated"]


def test_a_graph_with_a_lora(host: Host, lora: Path) -> None:
    first = host.client.run(_graph(lora.name, 1.0))
    assert first.how == "success", first.message()
    texts = [output["text"][0] for output in first.outputs.values() if "text" in output]
    assert any("rank 4" in text and "strength    1" in text for text in texts)
    again = host.client.run(_graph(lora.name, -0.5))
    assert again.how == "success", again.message()
    prompt = _graph(lora.name, 1.0)
    assert {find(prompt, kind) for kind in ("LoadFamily", "ImageConditioner", "StructureSampler")} <= set(again.cached)
    models = [host.client.download(outcome.files()[0]) for outcome in (first, again)]
    assert models[0] != models[1]


def test_a_graph_with_rounded_networks_and_a_lora(host: Host, lora: Path) -> None:
    models = []
    for precision in ("as stored", "int8", "fp8"):
        prompt = _graph(lora.name, 0.7)
        prompt[find(prompt, "LoadFamily")]["inputs"]["precision"] = precision
        outcome = host.client.run(prompt)
        assert outcome.how == "success", outcome.message()
        models.append(host.client.download(outcome.files()[0]))
    assert len(set(models)) == 3, "every precision rounds in its own way"


def test_a_stack_is_saved_with_its_strengths(host: Host, lora: Path) -> None:
    loader = {"class_type": "TrellisCoreLoadLora", "inputs": {"lora": lora.name, "stage": "shape", "strength": 0.3}}
    inputs = {"loras": ["1", 0], "filename_prefix": "loras/baked", "format": "peft", "dtype": "fp32", "rank": 0}
    done = host.client.run({"1": loader, "2": {"class_type": "TrellisCoreSaveLora", "inputs": inputs}})
    assert done.how == "success", done.message()
    assert (host.base / "output" / done.outputs["2"]["text"][0]).is_file()


def test_a_lora_for_another_model_is_a_sentence(host: Host, lora: Path) -> None:
    path = lora.with_name("flux.safetensors")
    save_file({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 8)}, path)
    prompt = _graph(path.name, 1.0)
    outcome = host.client.run(prompt)
    assert outcome.how == "error" and "Flux" in outcome.message()
    assert outcome.blamed() == {find(prompt, "LoadLora")}


def _graph(name: str, strength: float) -> dict[str, Any]:
    prompt = workflow("shape_only")
    loader = {"class_type": "TrellisCoreLoadLora", "inputs": {"lora": name, "stage": "shape", "strength": strength}}
    prompt["40"] = loader
    prompt[find(prompt, "ShapeSampler")]["inputs"]["loras"] = ["40", 0]
    return prompt
