"""Wrong inputs: a sentence on the node that can be put right, and the queue goes on."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Host, workflow


def _with_mask(value: float, width: int, height: int) -> dict[str, Any]:
    prompt = workflow("shape_only", n3_mask=["30", 0], n3_mask_shows="subject")
    prompt["30"] = {"class_type": "SolidMask", "inputs": {"value": value, "width": width, "height": height}}
    return prompt


def _with_loader(kind: str, file: str) -> dict[str, Any]:
    stage = kind == "TrellisCoreLoadStage"
    consumer, socket = ("TrellisCoreSaveStage", "stage") if stage else ("TrellisCoreSaveGLB", "glb")
    return {
        "1": {"class_type": kind, "inputs": {"file": file}},
        "2": {"class_type": consumer, "inputs": {socket: ["1", 0], "filename_prefix": "x"}},
    }


CASES = {
    "no such weights": (workflow("shape_only", n2_weights="nothing"), "2", "nothing"),
    "mask of another size": (_with_mask(1.0, 32, 48), "3", "32 x 48"),
    "empty mask": (_with_mask(0.0, 256, 256), "3", "empty"),
    "background that is not plain": (workflow("shape_only", n1_image="noise.png"), "3", "background"),
    "interval upside down": (workflow("shape_only", n4_ss_guidance_interval_end=0.1), "4", "greater than or equal to 0.6"),
    "structure on another grid": (workflow("shape_only", n5_resolution="1024", n5_cascade=False), "5", "structure"),
    "number out of range": (workflow("shape_only", n4_ss_sampling_steps=51), "4", "51"),
    "prefix that climbs": (workflow("shape_only", n8_filename_prefix="../../x"), "8", ".."),
    "stage file that is not there": (_with_loader("TrellisCoreLoadStage", "stages/none.safetensors"), "1", "no file"),
    "stage file that climbs": (_with_loader("TrellisCoreLoadStage", "../server.log"), "1", ".."),
    "absolute mesh file": (_with_loader("TrellisCoreLoadMesh", "/etc/passwd"), "1", "Absolute"),
    "mesh file that is no mesh": (_with_loader("TrellisCoreLoadMesh", "fake.glb [input]"), "1", "GLB"),
    "no mesh file": (_with_loader("TrellisCoreLoadMesh", ""), "1", "file"),
}


@pytest.fixture(scope="module", autouse=True)
def _files(host: Host) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(host.base / "input" / "noise.png")
    (host.base / "input" / "fake.glb").write_bytes(b"not a model")


@pytest.mark.parametrize("case", CASES)
def test_says_what_is_wrong_where_it_is_wrong(host: Host, case: str) -> None:
    prompt, node, phrase = CASES[case]
    outcome = host.client.run(prompt)
    assert outcome.how in ("error", "refused")
    assert outcome.blamed() == {node}, outcome.message()
    assert phrase in outcome.message()
    if outcome.how == "error":
        assert "Traceback" not in outcome.error["exception_message"]


def test_a_half_downloaded_file_is_named(host: Host) -> None:
    import shutil

    from .conftest import ROOT

    broken = host.base / "models" / "trellis2" / "broken"
    shutil.copytree(ROOT / "trellis_core" / "mini", broken)
    victim = sorted(broken.rglob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:5000])
    outcome = host.client.run(workflow("shape_only", n2_weights="broken"))
    assert outcome.how == "error" and outcome.blamed() == {"2"}, outcome.message()
    assert victim.name in outcome.message() and "cut short" in outcome.message()
