"""Golden runners of the sparse primitives and the autoencoders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import torch

from tests.reference.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.ovoxel.dual_grid import dual_grid_to_mesh
from trellis_core.sparse.conv import NeighborMap, submanifold_conv3d
from trellis_core.sparse.resample import ResamplePlan, merge_plan, quantize_coords, split_plan
from trellis_core.sparse.tensor import pack_keys
from trellis_core.vae import blocks, sparse_unet, structure

EXACT_FP32, HEAD_FP32, FP16 = 2e-5, 1e-4, 3e-2
FP16_STRUCTURE = 2e-2


def _build(config: dict, **where) -> torch.nn.Module:
    """The network that a `{"name" | "model": ..., "args": ...}` config describes."""
    name = config.get("name") or config["model"]
    module = structure if name.startswith("SparseStructure") else sparse_unet
    args = dict(config["args"])
    if "use_fp16" in config:
        args["use_fp16"] = config["use_fp16"]
    return getattr(module, name)(getattr(module, f"{name}Params").from_args(args), **where)


def _network(case: Case, config: dict, stem: str) -> torch.nn.Module:
    """As `_build`, with the case's weights."""
    net = _build(config)
    net.load_state_dict(case.tensors(stem), strict=True)
    return net.eval()


def _tolerance(net: torch.nn.Module, fp32: float, fp16: float = FP16) -> float:
    return fp16 if net.dtype == torch.float16 else fp32


def _of_dtype(tensor: torch.Tensor, fp32: float) -> float:
    """The tolerance for what was computed in the dtype of `tensor`."""
    return fp32 if tensor.dtype == torch.float32 else FP16


def _series(tensors: dict, pattern: str) -> list[torch.Tensor]:
    """tensors[pattern.format(0)], [1], ... as far as they go."""
    found = []
    while (key := pattern.format(len(found))) in tensors:
        found.append(tensors[key])
    return found


@kind(r"ss_decoder.*")
@torch.no_grad()
def run_structure_decoder(case: Case) -> None:
    net = _network(case, case.json("model"), "model")
    logits = net(case.inputs["z"])
    expected = case.outputs["logits"]
    assert_close(logits, expected, _tolerance(net, EXACT_FP32, FP16_STRUCTURE), "logits")
    for key, divisor in (("coords_full", 1), ("coords_half", 2)):
        if key in case.outputs:
            # in half precision a logit near zero may change sign, so only the reduction itself is held exactly
            source = logits if net.dtype == torch.float32 else expected
            assert_equal(structure.active_voxels(source, logits.shape[-1] // divisor), case.outputs[key], key)


@kind(r"ss_encoder.*")
@torch.no_grad()
def run_structure_encoder(case: Case) -> None:
    net = _network(case, case.json("model"), "model")
    mean, logvar = net(case.inputs["ss"])
    for what, actual in (("mean", mean), ("logvar", logvar), ("z", mean)):
        assert_close(actual, case.outputs[what], _tolerance(net, EXACT_FP32, FP16_STRUCTURE), what)


@kind(r"sparse_conv3d.*")
def run_sparse_conv(case: Case) -> None:
    x = case.inputs
    out = submanifold_conv3d(x["feats"], x["weight"], x["bias"], NeighborMap.build(x["coords"]))
    assert_close(out, case.outputs["out"], _of_dtype(x["feats"], EXACT_FP32), "out")


@kind(r"01_subm_conv3d.*")
def run_submanifold_conv(case: Case) -> None:
    x, w = case.inputs, case.tensors("weights")
    nmap = NeighborMap.build(x["coords"])
    assert_equal(nmap.table.t(), case.outputs["neighbor_map"], "neighbor_map")
    out = submanifold_conv3d(x["feats"], w["weight"], w["bias"], nmap)
    assert_close(out, case.outputs["feats"], _of_dtype(x["feats"], 1e-5), "feats")


def _encoder_input(tensors: dict) -> torch.Tensor:
    if "feats" in tensors:
        return tensors["feats"]
    return sparse_unet.dual_grid_features(tensors["vertices"], tensors["intersected"])


def _check_encoder(case: Case, net: torch.nn.Module, fp32: float) -> None:
    latent = net(_encoder_input(case.inputs), case.inputs["coords"])
    z, coords = ("z_feats", "z_coords") if "z_feats" in case.outputs else ("z", "coords")
    assert_equal(latent.coords, case.outputs[coords], "coords")
    for what, actual in (("mean", latent.mean), ("logvar", latent.logvar), (z, latent.mean)):
        assert_close(actual, case.outputs[what], _tolerance(net, fp32), what)


@kind(r"(shape|tex)_vae_encoder.*")
@torch.no_grad()
def run_encoder_a(case: Case) -> None:
    _check_encoder(case, _network(case, case.json("model"), "model"), EXACT_FP32)


@kind(r"05_(fdg|tex)_encoder.*")
@torch.no_grad()
def run_encoder_b(case: Case) -> None:
    _check_encoder(case, _network(case, case.json("config"), "weights"), 1e-5)


@dataclass(frozen=True)
class _Expected:
    """What a case says of a shape decoder.

    Attributes:
        levels: coords of the latent and of the voxels after each up-stage.
        logits: of the up-stages.
        upsampled: coords by the number of up-stages.
    """

    levels: list[torch.Tensor]
    logits: list[torch.Tensor]
    raw: torch.Tensor
    upsampled: dict[int, torch.Tensor]


def _plans(levels: list[torch.Tensor]) -> list[ResamplePlan]:
    """The subdivision that leads from each level to the next."""
    plans = []
    for coarse, fine in pairwise(levels):
        parents = torch.cat([fine[:, :1], fine[:, 1:] >> 1], dim=1)
        keys, order = pack_keys(coarse).sort()
        x, y, z = (fine[:, 1:].long() & 1).unbind(1)
        plans.append(ResamplePlan(fine, order[torch.searchsorted(keys, pack_keys(parents))], x + 2 * y + 4 * z))
    return plans


def _check_shape_decoder(net: torch.nn.Module, given: dict, expected: _Expected, fp32: float) -> sparse_unet.ShapeDecoding:
    """The decoding; in half precision on the expected voxels: a logit near zero may have the other sign there."""
    half, tolerance = net.dtype == torch.float16, _tolerance(net, fp32)
    got = net(given["feats"], given["coords"], plans=_plans(expected.levels) if half else None)
    assert_equal(got.coords, expected.levels[-1], "coords")
    assert_close(got.raw, expected.raw, tolerance, "raw")
    assert len(got.subdivisions) == len(expected.logits)
    same = []
    for level, (actual, wanted) in enumerate(zip(got.subdivisions, expected.logits, strict=True)):
        assert_close(actual.float(), wanted.float(), tolerance, f"subdivision {level}")
        same.append(torch.equal(actual > 0, wanted > 0))
    for times, coords in expected.upsampled.items():
        if all(same[:times]):
            assert_equal(net.upsample(given["feats"], given["coords"], times), coords, f"upsample {times}")
    return got


def _check_heads(
    net: torch.nn.Module, raw: torch.Tensor, fp32: float, vertices: torch.Tensor, flags: torch.Tensor, weights: torch.Tensor
) -> None:
    tolerance = _tolerance(net, fp32)
    got = sparse_unet.dual_grid_heads(raw, net.params.voxel_margin)
    assert_close(got[0], vertices, tolerance, "dual vertices")
    assert_close(got[2], weights, tolerance, "split weight")
    sure = raw[:, 3:6].abs() > (tolerance if net.dtype == torch.float16 else 0)
    assert_equal(got[1][sure], flags[sure], "flags")


@kind(r"shape_vae_decoder.*")
@torch.no_grad()
def run_shape_decoder_a(case: Case) -> None:
    net, x, y = _network(case, case.json("model"), "model"), case.inputs, case.outputs
    levels = [*_series(y, "subs.{}.coords"), y["h_coords"]]
    upsampled = {times: y[f"upsample.{times}"] for times in range(1, len(net.blocks)) if f"upsample.{times}" in y}
    wanted = _Expected(levels, _series(y, "subs.{}.feats"), y["h_feats"], upsampled)
    got = _check_shape_decoder(net, x, wanted, EXACT_FP32)
    for sample, coords in enumerate(_series(y, "mesh_args.{}.coords")):
        rows = got.coords[:, 0] == sample
        assert_equal(got.coords[rows, 1:], coords, f"mesh {sample} coords")
        heads = (y[f"mesh_args.{sample}.{key}"] for key in ("dual_vertices", "intersected", "split_weight"))
        _check_heads(net, got.raw[rows], EXACT_FP32, *heads)


@kind(r"tex_vae_decoder.*")
@torch.no_grad()
def run_texture_decoder_a(case: Case) -> None:
    net, x, y = _network(case, case.json("model"), "model"), case.inputs, case.outputs
    tolerance = _tolerance(net, EXACT_FP32)
    raw, coords = net(x["feats"], x["coords"], guides=_series(x, "guide.{}.feats"))
    assert_equal(coords, y["guided_coords"], "guided coords")
    assert_close(raw, y["guided_feats"], tolerance, "guided")
    encoder = _network(case, case.json("encoder"), "encoder")
    latent = encoder(sparse_unet.dual_grid_features(x["vertices"], x["intersected"]), x["fine_coords"])
    assert_equal(latent.coords, y["latent_coords"], "latent coords")
    z = x["tex_latent_cached"][: len(latent.coords)]
    raw, coords = net(z, latent.coords, plans=latent.plans)
    assert_equal(coords, y["cached_coords"], "cached coords")
    assert_close(raw, y["cached_feats"], tolerance, "cached")


@kind(r"00_param_tables.*")
def run_parameter_tables(case: Case) -> None:
    for path in sorted(case.path.glob("*.json")):
        table = case.json(path.stem)
        net = _build(table, device="meta")
        actual = {key: [list(p.shape), str(p.dtype).removeprefix("torch.")] for key, p in net.state_dict().items()}
        assert actual == table["params"], f"{path.stem}: parameter tables differ"
        assert sum(p.numel() for p in net.parameters()) == table["n_params"], path.stem


@kind(r"02_block_.*")
@torch.no_grad()
def run_block(case: Case) -> None:
    config, x, y, w = case.json("config"), case.inputs, case.outputs, case.tensors("weights")
    channels, out_channels = config["channels"], config.get("out_channels", config["channels"])
    nmap, variant = NeighborMap.build(x["coords"]), case.name.removeprefix("02_block_")
    if variant.startswith("convnext"):
        block = blocks.SparseConvNeXtBlock3d(channels)
        block.load_state_dict(w)
        assert_close(block(x["feats"], nmap), y["feats"], 1e-5, "feats")
    elif variant.startswith(("s2c", "downsample")):
        name = "SparseResBlockS2C3d" if variant.startswith("s2c") else "SparseResBlockDownsample3d"
        block = blocks.DOWN_BLOCKS[name](channels, out_channels)
        block.load_state_dict(w)
        plan, coords = merge_plan(x["coords"])
        assert_equal(coords, y["coords"], "coords")
        for key, actual in (("parent_index", plan.parent_row), ("child_index", plan.child)):
            if key in y:
                assert_equal(actual, y[key], key)
        assert_close(block(x["feats"], plan, NeighborMap.build(coords)), y["feats"], 1e-5, "feats")
    else:
        name = "SparseResBlockC2S3d" if variant.startswith("c2s") else "SparseResBlockUpsample3d"
        block = blocks.UP_BLOCKS[name](channels, out_channels, "to_subdiv.weight" in w)
        block.load_state_dict(w)
        if "to_subdiv.weight" in w:
            logits = block.to_subdiv(x["feats"])
            if "subdiv_logits" in y:
                assert_close(logits, y["subdiv_logits"], 1e-5, "subdiv_logits")
        else:
            (logits,) = (v for k, v in x.items() if k not in ("feats", "coords") and v.shape[1:] == (8,))
        plan = split_plan(x["coords"], logits > 0)
        assert_equal(plan.coords, y["coords"], "coords")
        assert_close(block(x["feats"], nmap, plan), y["feats"], 1e-5, "feats")


@kind(r"03_fdg_decoder_.*")
@torch.no_grad()
def run_shape_decoder_b(case: Case) -> None:
    config, x, y = case.json("config"), case.inputs, case.outputs
    net = _network(case, config, "weights")
    levels = [*_series(y, "subs{}.coords"), y["coords"]]
    upsampled = {n: y[f"upsample{n}.coords"] for n in range(1, len(net.blocks)) if f"upsample{n}.coords" in y}
    got = _check_shape_decoder(net, x, _Expected(levels, _series(y, "subs{}.logits"), y["head"], upsampled), HEAD_FP32)
    _check_heads(net, got.raw, HEAD_FP32, y["dual_vertices"], y["intersected"], y["quad_lerp"])
    vertices, flags, weights = sparse_unet.dual_grid_heads(got.raw, net.params.voxel_margin)
    if net.dtype == torch.float16:  # triangles follow signs and products that half precision may turn around
        vertices, flags, weights = y["dual_vertices"], y["intersected"].bool(), y["quad_lerp"]
    for sample, expected in enumerate(_series(y, "mesh{}.vertices")):
        rows = got.coords[:, 0] == sample
        grid = config["args"]["resolution"]
        mesh = dual_grid_to_mesh(got.coords[rows, 1:], vertices[rows], flags[rows], weights[rows], grid)
        assert_close(mesh.vertices, expected, HEAD_FP32 / grid, f"mesh {sample} vertices")
        assert_equal(mesh.faces, y[f"mesh{sample}.faces"], f"mesh {sample} faces")


@kind(r"04_tex_decoder_.*")
@torch.no_grad()
def run_texture_decoder_b(case: Case) -> None:
    x, y = case.inputs, case.outputs
    net = _network(case, case.json("config"), "weights")
    if guides := _series(x, "guide{}.logits"):
        raw, coords = net(x["feats"], x["coords"], guides=guides)
    else:  # the encoder's memory is a function of its input voxels alone
        latent, plans = y["coords"], []
        for _ in net.blocks[1:]:
            plan, latent = merge_plan(latent)
            plans.insert(0, plan)
        raw, coords = net(x["feats"], latent, plans=plans)
    assert_equal(coords, y["coords"], "coords")
    assert_close(raw, y["feats"], _tolerance(net, HEAD_FP32), "feats")
    if "attrs" in y:
        assert_close(raw * 0.5 + 0.5, y["attrs"], _tolerance(net, HEAD_FP32), "attrs")


@kind(r"07_cascade_quantize.*")
def run_cascade_quantize(case: Case) -> None:
    for key, expected in case.outputs.items():
        low, high = map(int, re.fullmatch(r"lr(\d+)_hr(\d+)", key).groups())
        assert_equal(quantize_coords(case.inputs["hr_coords"], low, high // 16), expected, key)
