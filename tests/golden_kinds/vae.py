"""Golden runners of the sparse primitives and the autoencoders."""

from __future__ import annotations

import re

import torch

from tests.golden_harness import Case, assert_close, assert_equal, kind
from trellis_core.sparse.conv import NeighborMap, submanifold_conv3d
from trellis_core.sparse.resample import merge_plan, quantize_coords, split_plan
from trellis_core.vae import blocks, sparse_unet, structure

EXACT_FP32, HEAD_FP32, FP16 = 2e-5, 1e-4, 3e-2


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


def _tolerance(net: torch.nn.Module, fp32: float) -> float:
    return FP16 if net.dtype == torch.float16 else fp32


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
    assert_close(logits, expected, _tolerance(net, EXACT_FP32), "logits")
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
        assert_close(actual, case.outputs[what], _tolerance(net, EXACT_FP32), what)


@kind(r"sparse_conv3d.*")
def run_sparse_conv(case: Case) -> None:
    x = case.inputs
    out = submanifold_conv3d(x["feats"], x["weight"], x["bias"], NeighborMap.build(x["coords"]))
    assert_close(out, case.outputs["out"], EXACT_FP32, "out")


@kind(r"01_subm_conv3d.*")
def run_submanifold_conv(case: Case) -> None:
    x, w = case.inputs, case.tensors("weights")
    nmap = NeighborMap.build(x["coords"])
    assert_equal(nmap.table.t(), case.outputs["neighbor_map"], "neighbor_map")
    assert_close(submanifold_conv3d(x["feats"], w["weight"], w["bias"], nmap), case.outputs["feats"], 1e-5, "feats")


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


@kind(r"shape_vae_decoder.*")
@torch.no_grad()
def run_shape_decoder_a(case: Case) -> None:
    net, x, y = _network(case, case.json("model"), "model"), case.inputs, case.outputs
    tolerance = _tolerance(net, EXACT_FP32)
    got = net(x["feats"], x["coords"])
    assert_equal(got.coords, y["h_coords"], "coords")
    assert_close(got.raw, y["h_feats"], tolerance, "raw")
    for level, expected in enumerate(_series(y, "subs.{}.feats")):
        assert_close(got.subdivisions[level], expected, tolerance, f"subdivision {level}")
    for times in range(1, len(net.blocks)):
        assert_equal(net.upsample(x["feats"], x["coords"], times), y[f"upsample.{times}"], f"upsample {times}")
    vertices, flags, weights = sparse_unet.dual_grid_heads(got.raw, net.params.voxel_margin)
    for sample, expected in enumerate(_series(y, "mesh_args.{}.coords")):
        rows = got.coords[:, 0] == sample
        assert_equal(got.coords[rows, 1:], expected, f"mesh {sample} coords")
        assert_close(vertices[rows], y[f"mesh_args.{sample}.dual_vertices"], tolerance, f"mesh {sample} vertices")
        assert_close(weights[rows], y[f"mesh_args.{sample}.split_weight"], tolerance, f"mesh {sample} split weight")
        assert_equal(flags[rows], y[f"mesh_args.{sample}.intersected"], f"mesh {sample} flags")


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
            assert_close(logits, y["subdiv_logits"], 1e-5, "subdiv_logits")
        else:
            (logits,) = (v for k, v in x.items() if k not in ("feats", "coords") and v.shape[1:] == (8,))
        plan = split_plan(x["coords"], logits > 0)
        assert_equal(plan.coords, y["coords"], "coords")
        assert_close(block(x["feats"], nmap, plan), y["feats"], 1e-5, "feats")


@kind(r"03_fdg_decoder_.*")
@torch.no_grad()
def run_shape_decoder_b(case: Case) -> None:
    from trellis_core.mesh.dual_grid import dual_grid_to_mesh

    config, x, y = case.json("config"), case.inputs, case.outputs
    net = _network(case, config, "weights")
    tolerance = _tolerance(net, HEAD_FP32)
    got = net(x["feats"], x["coords"])
    assert_equal(got.coords, y["coords"], "coords")
    assert_close(got.raw, y["head"], tolerance, "head")
    for level, expected in enumerate(_series(y, "subs{}.logits")):
        assert_close(got.subdivisions[level].float(), expected.float(), tolerance, f"subdivision {level}")
    for times in range(1, len(net.blocks)):
        assert_equal(net.upsample(x["feats"], x["coords"], times), y[f"upsample{times}.coords"], f"upsample {times}")
    vertices, flags, weights = sparse_unet.dual_grid_heads(got.raw, net.params.voxel_margin)
    assert_close(vertices, y["dual_vertices"], tolerance, "dual vertices")
    assert_close(weights, y["quad_lerp"], tolerance, "split weight")
    assert_equal(flags, y["intersected"], "flags")
    for sample, expected in enumerate(_series(y, "mesh{}.vertices")):
        rows = got.coords[:, 0] == sample
        grid = config["args"]["resolution"]
        mesh = dual_grid_to_mesh(got.coords[rows, 1:], vertices[rows], flags[rows], weights[rows], grid)
        assert_close(mesh.vertices, expected, tolerance / grid, f"mesh {sample} vertices")
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
