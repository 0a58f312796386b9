"""The stored API workflows on the real host, with the mini family."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import WORKFLOWS, Host, find, workflow
from .graphs import bare


def _document(glb: bytes) -> dict[str, Any]:
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", glb)
    assert (magic, version, length, kind) == (b"glTF", 2, len(glb), b"JSON")
    return json.loads(glb[20 : 20 + size])


def _binary(glb: bytes) -> bytes:
    return glb[20 + struct.unpack_from("<I", glb, 12)[0] :]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_runs_and_its_models_come_from_the_history(host: Host, path: Path) -> None:
    prompt = workflow(path.stem)
    first = host.client.run(prompt)
    assert first.how == "success", first.message()

    files = first.files()
    savers = [node for node in prompt.values() if node["class_type"] == "TrellisCoreSaveGLB"]
    assert len(files) == (2 if path.stem == "batch" else len(savers))
    for entry in files:
        document = _document(host.client.download(entry))
        triangles = sum(document["accessors"][p["indices"]]["count"] // 3 for m in document["meshes"] for p in m["primitives"])
        assert triangles > 0
        assert bare(json.loads(document["asset"]["extras"]["prompt"])) == bare(prompt)
        assert "is_changed" not in document["asset"]["extras"]["prompt"]
        assert bool(document.get("images")) == (path.stem != "shape_only")
    pictures = [entry for output in first.outputs.values() for entry in output.get("images", [])]
    shown = [Image.open(io.BytesIO(host.client.download(entry))) for entry in pictures if entry["type"] == "output"]
    assert len(shown) == len(files), "a picture lies beside each model, for the queue and the assets"
    assert all(np.asarray(picture.convert("RGB")).std() > 5 for picture in shown)
    reporters = [node for node in prompt.values() if node["class_type"] == "TrellisCoreAssetReport"]
    assert sum("texels per triangle" in text for text in first.texts) == len(reporters)

    second = host.client.run(prompt)
    assert second.how == "success" and not second.executed
    assert set(second.cached) == {*first.executed, *first.cached}  # a branch behind a switch that is off does not run at all
    assert second.files() == files


def test_another_texture_leaves_the_shape_alone(host: Host) -> None:
    name = "image_to_3d_stages"
    paint, shape = find(workflow(name), "TextureSampler"), find(workflow(name), "ShapeSampler")
    before = host.client.run(workflow(name))
    again = host.client.run(workflow(name, **{f"n{paint}_variant": 3}))
    assert before.how == again.how == "success", again.message()
    assert paint in again.executed
    assert {shape, *_above(workflow(name), shape)} <= set(again.cached)


def test_the_maps_are_handed_out_as_the_model_has_them(host: Host) -> None:
    prompt = workflow("image_to_3d_stages")
    baker = find(prompt, "Bake")
    slots = {"base_color": 1, "material": 6, "normal": 7}
    for key, slot in slots.items():
        prompt[key] = {"class_type": "PreviewImage", "inputs": {"images": [baker, slot]}}
    outcome = host.client.run(prompt)
    assert outcome.how == "success", outcome.message()
    shown = {key: _pixels(host.client.download(outcome.outputs[key]["images"][0])) for key in slots}
    (file,) = outcome.files()
    glb = host.client.download(file)
    stored = [_pixels(_binary(glb)[8:][view["byteOffset"] :][: view["byteLength"]]) for view in _picture_views(glb)]
    for key in ("base_color", "material"):
        assert min(_difference(shown[key], picture[..., :3]) for picture in stored) <= 1, key  # the host cuts numbers off
    assert _difference(shown["normal"], np.broadcast_to(np.uint8([128, 128, 255]), shown["normal"].shape)) <= 1


def _picture_views(glb: bytes) -> list[dict[str, Any]]:
    document = _document(glb)
    return [document["bufferViews"][image["bufferView"]] for image in document["images"]]


def _difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def _pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)))


def _above(prompt: dict[str, Any], key: str) -> set[str]:
    """Nodes that a node's inputs come from, directly or not."""
    sources = {value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)}
    return sources.union(*(_above(prompt, source) for source in sources))


@pytest.mark.parametrize("stage", ["structure", "shape", "texture"])
def test_stages_go_on_from_files(host: Host, stage: str) -> None:
    name = "image_to_3d_stages"
    prompt = workflow(name)
    sampler, decode, saver = (find(prompt, kind) for kind in (f"{stage.capitalize()}Sampler", "Decode", "SaveGLB"))
    prompt["20"] = {
        "class_type": "TrellisCoreSaveStage",
        "inputs": {"stage": [sampler, 0], "filename_prefix": f"stages/{stage}"},
    }
    saved = host.client.run(prompt)
    assert saved.how == "success", saved.message()

    loaded = workflow(name)
    slot = ["structure", "shape", "texture"].index(stage)
    loaded["21"] = {"class_type": "TrellisCoreLoadStage", "inputs": {"file": saved.outputs["20"]["text"][0]}}
    for node in loaded.values():
        for key, value in node["inputs"].items():
            if value == [sampler, 0]:
                node["inputs"][key] = ["21", slot]
    del loaded[sampler]
    again = host.client.run(loaded)
    assert again.how == "success", again.message()
    assert decode in again.executed
    one, other = (host.client.download(run.outputs[saver]["3d"][0]) for run in (saved, again))
    assert _binary(one) == _binary(other)


def test_every_stage_stops_within_a_second_and_the_next_prompt_goes_on(host: Host) -> None:
    name = "image_to_3d_stages"
    changes = {f"n{find(workflow(name), 'StructureSampler')}_seed": 1, f"n{find(workflow(name), 'Remesh')}_remesh_band": 1.5}
    prompt = workflow(name, **changes)
    kinds = ["StructureSampler", "ShapeSampler", "TextureSampler", "Decode", "Remesh", "Bake"]
    waits = {}
    for kind in kinds:
        node = find(prompt, kind)
        stopped = host.client.run(prompt, interrupt_at=(node, 0.0))
        assert stopped.how == "interrupted", (kind, stopped.message())
        assert stopped.executed[-1] == node
        waits[kind] = stopped.stop
    finished = host.client.run(prompt)
    assert finished.how == "success" and finished.files(), finished.message()
    assert max(waits.values()) <= 1.0, waits


def test_the_one_node_stops_within_a_second_at_any_time(host: Host) -> None:
    prompt = workflow("one_node", **{f"n{find(workflow('one_node'), 'Generate')}_seed": 2})
    waits = {}
    for share in (0.02, 0.2, 0.45, 0.55, 0.65, 0.75, 0.9):
        stopped = host.client.run(prompt, interrupt_at=(find(prompt, "Generate"), share))
        assert stopped.how == "interrupted", (share, stopped.message())
        waits[share] = stopped.stop
    assert max(waits.values()) <= 1.0, waits


def test_progress_only_grows_and_pictures_come_meanwhile(host: Host) -> None:
    prompt = workflow("shape_only", **{f"n{find(workflow('shape_only'), 'StructureSampler')}_seed": 3})
    outcome = host.client.run(prompt)
    assert outcome.how == "success", outcome.message()
    for kind in ("StructureSampler", "ShapeSampler", "Decode", "Remesh"):
        shares = outcome.progress[find(prompt, kind)]
        assert shares == sorted(shares) and shares[-1] == 1.0, (kind, shares)
    assert outcome.previews >= 4  # two of the structure and two of the shape
    for words in ("Finding the rough form", "Forming the surface", "Decoding", "Remeshing", "Done in"):
        assert any(words in text for text in outcome.texts), words
