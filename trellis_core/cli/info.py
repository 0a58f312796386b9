"""`python -m trellis_core info`: what a weights file or folder is, from its headers alone."""

from __future__ import annotations

import argparse
from collections import Counter
from math import prod
from pathlib import Path

from ..errors import WeightsError
from ..family import Family, find_encoder, folder_of, load_family
from ..weights.header import read_header
from ..weights.network_file import NetworkFile, network_file
from ..weights.official import ENCODERS
from ..weights.pipeline import TEXTURING, read_texturing
from ..weights.places import is_there
from ..weights.repackaged import find_networks


def run(options: argparse.Namespace) -> None:
    """Print what `options.path` is."""
    path = Path(options.path).expanduser()
    if path.suffix in (".safetensors", ".gguf") or path.with_name(path.name + ".safetensors").is_file():
        print("\n".join(describe_file(path)))
    else:
        print("\n".join(describe_family(load_family(options.path))))


def describe_family(family: Family) -> list[str]:
    lines = [f"Family {family.name}, whole and matching. Resolutions:"]
    for key in family.resolutions:
        scale = family.scales[key]
        lines.append(f"  {key}: {scale.output}^3 voxels from a picture of {scale.image_size} px")
    lines.append("Networks:")
    width = max(map(len, family.networks))
    lines += [f"  {role:<{width}}  {_network(network)}" for role, network in family.networks.items()]
    return (
        lines + [f"  {role:<{width}}  {_network(network)}" for role, network in _encoders(family).items()] + _texturing(family)
    )


def _encoders(family: Family) -> dict[str, NetworkFile]:
    """Encoders that are there: generating needs none."""
    found = {}
    for role in ENCODERS:
        try:
            found[role] = find_encoder(family, role)
        except WeightsError:
            continue
    return found


def _texturing(family: Family) -> list[str]:
    """The pipeline that textures a given mesh, if its file is there."""
    root = folder_of(family)
    if root is None or not (root / TEXTURING).is_file():
        return []
    pipeline = read_texturing(root)
    missing = [role for role, place in pipeline.args.models.items() if place and not is_there(root, place)]
    lacks = f"of which {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there" if missing else "all there"
    return [f"{TEXTURING}: {pipeline.name}, {len(pipeline.args.models)} networks, {lacks}"]


def describe_file(path: Path) -> list[str]:
    file = path if path.suffix in (".safetensors", ".gguf") else path.with_name(path.name + ".safetensors")
    stem = file.with_suffix("")
    header = read_header(file)
    lines = [f"{file}: {len(header)} tensors, {file.stat().st_size / 1e6:,.1f} MB"]
    if stem.with_name(stem.name + ".json").is_file():
        network = network_file(stem)
        network.check()
        return [*lines, f"  {_network(network)}; matches its config"]
    try:
        found = find_networks(file)
    except WeightsError as error:
        return [*lines, f"  {error}"]
    if not found:
        return [*lines, "  holds no network that this program knows"]
    return lines + [f"  {role}: {_network(network)}" for role, network in found.items()]


def _network(network: NetworkFile) -> str:
    header = network.header()
    parameters = sum(prod(tensor.shape) for tensor in header.values())
    stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(Counter(t.dtype for t in header.values()).items()))
    size = sum(tensor.size for tensor in header.values())
    return f"{network.name}, {parameters:,} parameters, {size / 1e6:,.1f} MB ({stored})"
