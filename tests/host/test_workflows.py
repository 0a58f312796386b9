"""The stored API workflows on the real host, with the mini family."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from .conftest import WORKFLOWS, Host, workflow


def _document(glb: bytes) -> dict[str, Any]:
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", glb)
    assert (magic, version, length, kind) == (b"glTF", 2, len(glb), b"JSON")
    return json.loads(glb[20 : 20 + size])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_runs_and_its_models_come_from_the_history(host: Host, path: Path) -> None:
    seeded = "4" if "4" in (prompt := workflow(path.stem)) and "seed" in prompt["4"]["inputs"] else "3"
    prompt[seeded]["inputs"]["seed"] = WORKFLOWS.index(path)  # so that nothing comes from another workflow's cache
    first = host.client.run(prompt)
    assert first.how == "success", first.message()
    assert first.previews > 0

    files = first.files()
    savers = [node for node in prompt.values() if node["class_type"] == "TrellisCoreSaveGLB"]
    assert len(files) == (2 if path.stem == "batch" else len(savers))
    for entry in files:
        document = _document(host.client.download(entry))
        triangles = sum(document["accessors"][p["indices"]]["count"] // 3 for m in document["meshes"] for p in m["primitives"])
        assert triangles > 0
        assert json.loads(document["asset"]["extras"]["prompt"]) == prompt
        assert bool(document.get("images")) == (path.stem != "shape_only")

    second = host.client.run(prompt)
    assert second.how == "success" and set(second.cached) == set(prompt)
    assert second.files() == files


def test_another_texture_leaves_the_shape_alone(host: Host) -> None:
    host.client.run(workflow("image_to_3d_stages"))
    again = host.client.run(workflow("image_to_3d_stages", n6_variant=5))
    assert again.how == "success", again.message()
    assert {"6", "7"} <= set(again.executed)
    assert not {"2", "3", "4", "5"} & set(again.executed)


def test_stages_go_on_from_files(host: Host) -> None:
    prompt = workflow("shape_only", n4_seed=11)
    prompt["20"] = {"class_type": "TrellisCoreSaveStage", "inputs": {"stage": ["5", 0], "filename_prefix": "stages/shape"}}
    saved = host.client.run(prompt)
    assert saved.how == "success", saved.message()
    name = saved.outputs["20"]["text"][0]

    loaded = workflow("shape_only", n6_shape=["5", 1])
    loaded["5"] = {"class_type": "TrellisCoreLoadStage", "inputs": {"file": name}}
    again = host.client.run({key: loaded[key] for key in ("2", "5", "6", "7", "8")})
    assert again.how == "success", again.message()
    one, other = (host.client.download(run.files()[0]) for run in (saved, again))
    assert one[20 + struct.unpack_from("<I", one, 12)[0] :] == other[20 + struct.unpack_from("<I", other, 12)[0] :]


@pytest.mark.parametrize("node", ["3", "4", "5", "6", "7", "8", "9"])
def test_the_stop_button_stops_any_stage(host: Host, node: str) -> None:
    prompt = workflow("image_to_3d_stages", n4_seed=100 + int(node), n3_mask_shows="background")
    prompt["4"]["inputs"]["ss_sampling_steps"] = 10
    stopped = host.client.run(prompt, interrupt_at=node)
    assert stopped.how == "interrupted", stopped.message()
    assert stopped.ended - stopped.stopped <= 1.0
    assert host.client.run(workflow("shape_only")).how == "success"
