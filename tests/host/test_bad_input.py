"""Wrong inputs: a sentence on the node that can be put right, and the queue goes on."""

from __future__ import annotations

import shutil
import struct
from typing import Any

import pytest

from .conftest import ROOT, Host, find, workflow


def _shape_only(kind: str, **changes: Any) -> dict[str, Any]:
    """The workflow with inputs of its node of that kind changed."""
    node = find(workflow("shape_only"), kind)
    return workflow("shape_only", **{f"n{node}_{key}": value for key, value in changes.items()})


def _one_node(**changes: Any) -> dict[str, Any]:
    return workflow("one_node", **{f"n3_{key}": value for key, value in changes.items()})


def _of_0_1(**changes: Any) -> dict[str, Any]:
    """Image to 3D of version 0.1, which has everything on itself."""
    prompt = _one_node()
    inputs = {"image": ["1", 0], "seed": 1, **changes}
    return {**prompt, "3": {"class_type": "TrellisCoreImageTo3D", "inputs": inputs}}


def _with_sampling(**values: Any) -> dict[str, Any]:
    return {**_one_node(settings=["30", 0]), "30": {"class_type": "TrellisCoreSamplingSettings", "inputs": values}}


def _with_file(**values: Any) -> dict[str, Any]:
    return {**_one_node(settings=["30", 0]), "30": {"class_type": "TrellisCoreFileSettings", "inputs": values}}


def _with_mask(value: float, width: int, height: int, shows: str = "subject") -> dict[str, Any]:
    mask = {"class_type": "SolidMask", "inputs": {"value": value, "width": width, "height": height}}
    return {**_shape_only("ImageConditioner", mask=["30", 0], mask_shows=shows), "30": mask}


def _size(example: str) -> tuple[int, int]:
    """Width and height of a PNG."""
    return struct.unpack(">II", (ROOT / "examples" / example).read_bytes()[16:24])


def _with_batches(pictures: int, masks: int) -> dict[str, Any]:
    def repeated(amount: int) -> dict[str, Any]:
        return {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": amount}}

    mask = {"class_type": "ImageToMask", "inputs": {"image": ["31", 0], "channel": "red"}}
    prompt = _shape_only("ImageConditioner", image=["30", 0], mask=["32", 0])
    return {**prompt, "30": repeated(pictures), "31": repeated(masks), "32": mask}


def _with_picture(name: str) -> dict[str, Any]:
    return {**workflow("shape_only"), "1": {"class_type": "LoadImage", "inputs": {"image": name}}}


def _with_loader(kind: str, file: str) -> dict[str, Any]:
    stage = kind == "LoadStage"
    consumer, socket = ("SaveStage", "stage") if stage else ("SaveGLB", "glb")
    return {
        "1": {"class_type": f"TrellisCore{kind}", "inputs": {"file": file}},
        "2": {"class_type": f"TrellisCore{consumer}", "inputs": {socket: ["1", 0], "filename_prefix": "x"}},
    }


GOOD = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "icon_duck.png"}},
    "2": {"class_type": "TrellisCoreLoadFamily", "inputs": {"weights": "mini"}},
    "3": {"class_type": "TrellisCoreImageConditioner", "inputs": {"family": ["2", 0], "image": ["1", 0]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 1]}},
}
"""A prompt with little to do."""

CASES = {
    "no such weights": (_shape_only("LoadFamily", weights="nothing"), "LoadFamily", "nothing"),
    "native weights cut short": (_shape_only("LoadFamily", weights="trellis_2_cut.safetensors"), "LoadFamily", "cut"),
    "full mask of the background": (_with_mask(1.0, 32, 48, "background"), "ImageConditioner", "is full"),
    "empty mask": (_with_mask(0.0, *_size("photo_toadstool_cut.png")), "ImageConditioner", "empty"),
    "batches that do not match": (_with_batches(3, 2), "ImageConditioner", "3 pictures and 2 masks"),
    "background that is not plain": (_with_picture("noise.png"), "ImageConditioner", "background"),
    "interval upside down": (
        _with_sampling(guidance_interval_end=0.1),
        "SamplingSettings",
        "greater than or equal to 0.6",
    ),
    "interval upside down on a node of version 0.1": (
        _of_0_1(tex_slat_guidance_interval_start=0.8, tex_slat_guidance_interval_end=0.2),
        "ImageTo3D",
        "greater than or equal to 0.8",
    ),
    "number out of range": (_with_sampling(sampling_steps=51), "SamplingSettings", "51"),
    "resolution that does not exist": (_shape_only("ShapeSampler", resolution="4000"), "ShapeSampler", "4000"),
    "preset that does not exist": (_one_node(preset="best"), "Generate", "best"),
    "weights that do not exist": (_shape_only("LoadFamily", weights="maxi"), "LoadFamily", "maxi"),
    "texture size that does not exist": (_of_0_1(texture_size="3000"), "ImageTo3D", "3000"),
    "rasteriser that is not installed": (_of_0_1(rasterizer="nvdiffrast"), "ImageTo3D", "nvdiffrast"),
    "background remover that is not installed": (_one_node(background="remove (rembg)"), "Generate", "pip install rembg"),
    "file that nothing fits into": (_with_file(max_file_mb=0.001), "FileSettings", "0.001"),
    "structure on another grid": (_shape_only("ShapeSampler", resolution="1024", cascade=False), "ShapeSampler", "cascade"),
    "prefix that climbs": (_shape_only("SaveGLB", filename_prefix="../../x"), "SaveGLB", ".."),
    "no prefix": (_shape_only("SaveGLB", filename_prefix=""), "SaveGLB", "names no file"),
    "prefix of a folder": (_shape_only("SaveGLB", filename_prefix="models/"), "SaveGLB", "names no file"),
    "prefix of many characters": (_shape_only("SaveGLB", filename_prefix="x" * 300), "SaveGLB", "too long"),
    "prefix with a line break": (_shape_only("SaveGLB", filename_prefix="a\nb"), "SaveGLB", "line break"),
    "prefix with a NUL": (_shape_only("SaveGLB", filename_prefix="a\0b"), "SaveGLB", "not printed"),
    "prefix below a file": (_shape_only("SaveGLB", filename_prefix="blocked/x"), "SaveGLB", "cannot be written"),
    "stage file that is not there": (_with_loader("LoadStage", "stages/none.safetensors"), "LoadStage", "no file"),
    "stage file that climbs": (_with_loader("LoadStage", "../server.log"), "LoadStage", ".."),
    "stage file that is none": (_with_loader("LoadStage", "fake.glb [input]"), "LoadStage", "fake.glb"),
    "absolute mesh file": (_with_loader("LoadMesh", "/etc/passwd"), "LoadMesh", "Absolute"),
    "mesh file that is no mesh": (_with_loader("LoadMesh", "fake.glb [input]"), "LoadMesh", "GLB"),
    "mesh without faces": (_with_loader("LoadMesh", "empty.glb [input]"), "LoadMesh", "no triangles"),
    "no mesh file": (_with_loader("LoadMesh", ""), "LoadMesh", "file"),
}
"""Name -> prompt, kind of the node that is to blame, a part of what is said."""


@pytest.fixture(scope="module", autouse=True)
def _files(host: Host) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(host.base / "input" / "noise.png")
    (host.base / "input" / "fake.glb").write_bytes(b"not a model")
    document = b'{"asset": {"version": "2.0"}}   '
    header = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(document), len(document), b"JSON")
    (host.base / "input" / "empty.glb").write_bytes(header + document)
    (host.base / "output" / "blocked").write_text("a file where a folder is wanted")
    (host.base / "models" / "diffusion_models" / "trellis_2_cut.safetensors").write_bytes(struct.pack("<Q", 1 << 20) + b"{")


@pytest.mark.parametrize("case", CASES)
def test_says_what_is_wrong_where_it_is_wrong(host: Host, case: str) -> None:
    prompt, kind, phrase = CASES[case]
    outcome = host.client.run(prompt)
    assert outcome.how in ("error", "refused")
    assert outcome.blamed() == {find(prompt, kind)}, outcome.message()
    assert phrase in outcome.message()
    if outcome.how == "error":
        assert "Traceback" not in outcome.error["exception_message"]
    assert host.client.run(GOOD).how == "success"


def test_what_the_whole_run_needs_is_said_before_it(host: Host) -> None:
    prompt = {**_one_node(settings=["30", 0]), "30": {"class_type": "TrellisCoreTextureSettings", "inputs": {}}}
    prompt["30"]["inputs"]["rasterizer"] = "nvdiffrast"
    outcome = host.client.run(prompt)
    assert outcome.how == "refused" and outcome.blamed() == {"30"}
    assert "nvdiffrast" in outcome.message()


def test_a_half_downloaded_file_is_named(host: Host) -> None:
    broken = host.base / "models" / "trellis2" / "broken"
    shutil.copytree(ROOT / "trellis_core" / "mini", broken)
    victim = sorted(broken.rglob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:5000])
    prompt = _shape_only("LoadFamily", weights="broken")
    outcome = host.client.run(prompt)
    assert outcome.how == "error" and outcome.blamed() == {find(prompt, "LoadFamily")}, outcome.message()
    assert victim.name in outcome.message() and "cut short" in outcome.message()
