"""From models and pictures to what a LoRA is trained on: latents of every stage, tokens of pictures (docs/method/sampling.md).

A data set is a folder or zip of GLB, OBJ (with its materials) or other models. A picture beside a model with its name,
`chair.png` or `chair_2.png` beside `chair.glb`, is what this model shall be made of; models without one are rendered. A
picture that the model itself uses is its texture, whatever its name.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...context import QUIET, RunContext
from ...errors import InputError
from ...family import Family, find_encoder
from ...files import write_tensors
from ...gltf.beside import Beside
from ...gltf.read import FORMATS
from ...gltf.read_textured import read_textured_mesh
from ...image.dino import image_to_pixels
from ...image.matting import key_plain_background
from ...image.preprocess import preprocess
from ...image.reading import open_picture
from ...mesh.frames import z_up_to_y_up
from ...ovoxel.textured_mesh import TexturedMesh, textured_mesh_to_attributes
from ...ovoxel.voxelize import mesh_to_dual_grid
from ...preview import Camera, Material, render
from ...roles import (
    IMAGE_ROLE,
    SHAPE_DECODER,
    SHAPE_ENCODER,
    STRUCTURE_DECODER,
    STRUCTURE_ENCODER,
    TEXTURE_DECODER,
    TEXTURE_ENCODER,
)
from ...vae.sparse_unet import dual_grid_features

MODELS = tuple(f".{kind}" for kind in FORMATS)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_MEMBERS = 20_000
MAX_UNPACKED = 20 << 30
STRUCTURE_SCALE = 512


@dataclass(frozen=True)
class Prepared:
    """Latents and tokens of N objects, ready for training.

    Attributes:
        structure: float32 [N, C, r, r, r], as the structure encoder makes it.
        offsets: int64 [N + 1], rows of object i are offsets[i] : offsets[i + 1].
        coords: int32 [T, 3] latent voxels.
        shape, texture: float32 [T, C], normalised.
        tokens: float16 [N, V, L, D] of V pictures at the structure's scale, fine_tokens [N, V, L', D] at the latents' scale.
    """

    structure: Tensor
    offsets: Tensor
    coords: Tensor
    shape: Tensor
    texture: Tensor
    tokens: Tensor
    fine_tokens: Tensor

    def __len__(self) -> int:
        return len(self.structure)

    def rows(self, objects: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(row numbers int64 [T'], coords int32 [T', 4]) of a batch of objects."""
        spans = [torch.arange(int(self.offsets[i]), int(self.offsets[i + 1])) for i in objects]
        index = torch.cat(spans)
        sample = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor([len(s) for s in spans]))
        return index, torch.cat([sample[:, None].int(), self.coords[index]], dim=1)


@dataclass(frozen=True)
class Views:
    """How models without pictures are rendered: how many times, and from how far around their front, in degrees."""

    count: int = 4
    azimuth: float = 180.0


def prepare(
    data: Path, family: Family, resolution: int, views: Views, seed: int, store: Path, ctx: RunContext = QUIET
) -> Prepared:
    """Encode a data set, or read what an earlier call with the same arguments stored.

    Args:
        data: a folder or a zip; or the file `store` of an earlier run.
        store: where the result is kept.

    Raises:
        InputError: no models, a damaged one, or a store of another family or resolution.
    """
    wanted = {"family": _stamp(family), "resolution": str(resolution)}
    if data.suffix == ".safetensors":
        return _stored(data, wanted)
    wanted["data"] = f"{data.resolve().name}:{views.count}:{views.azimuth}:{seed}:{_data_stamp(data)}"
    if store.is_file():
        try:
            return _stored(store, wanted)
        except InputError:
            pass  # other data, or another family: prepare anew
    models = _collect(data, store.parent)
    objects = []
    for number, (name, path, pictures) in enumerate(models):
        part = ctx.part(0.6 * number / len(models), 0.6 * (number + 1) / len(models))
        part.report(0.0, f"preparing {name}")
        objects.append(_Object.read(path, pictures, family, resolution, views, seed + number))
    prepared = _encode(objects, family, resolution, ctx.part(0.6, 1.0))
    tensors = {f.name: getattr(prepared, f.name).clone() for f in fields(Prepared)}  # files do not share memory
    write_tensors(store, tensors, wanted)
    return prepared


@dataclass(frozen=True)
class _Object:
    """One model on the grid, and its pictures."""

    coords: Tensor
    features: Tensor
    attributes: Tensor
    pictures: list[Image.Image]

    @classmethod
    def read(cls, path: Path, pictures: list[Path], family: Family, resolution: int, views: Views, seed: int) -> _Object:
        beside = Beside(path.parent)
        try:
            mesh = read_textured_mesh(path.read_bytes(), path.suffix, beside)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
        pictures = [picture for picture in pictures if picture.resolve() not in beside.used]
        grid = family.scales[resolution].output
        vertices, faces = torch.unique(mesh.triangles.flatten(0, 1), dim=0, return_inverse=True)
        dual = mesh_to_dual_grid(vertices, faces.view(-1, 3), grid)
        order = (dual.coords.long() @ torch.tensor([grid * grid, grid, 1])).argsort()
        attributes = textured_mesh_to_attributes(mesh, grid).to_voxels(grid)
        if not torch.equal(attributes.coords, dual.coords[order]):
            raise InputError(f"{path.name}: geometry and texture fill different voxels.")
        seen = [preprocess(open_picture(p), key_plain_background) for p in pictures[: views.count]] or draw(mesh, views, seed)
        features = dual_grid_features(dual.dual_vertices[order], dual.intersected[order])
        return cls(dual.coords[order], features, attributes.attrs, seen)


def draw(mesh: TexturedMesh, views: Views, seed: int, size: int = 256) -> list[Image.Image]:
    """Pictures of a model on black, cropped as the pipeline crops, from random sides."""
    rng = np.random.default_rng(seed)
    corners = z_up_to_y_up(mesh.triangles.flatten(0, 1)).numpy()
    colours, rough = corner_colours(mesh)
    faces = np.arange(len(corners)).reshape(-1, 3)
    metallic = float(np.mean([m.metallic_factor for m in mesh.materials]))
    pictures = []
    material = Material(metallic=metallic, roughness=rough)
    for _ in range(views.count):
        camera = Camera(rng.uniform(-views.azimuth, views.azimuth), rng.uniform(5, 45), rng.uniform(30, 50))
        normals = z_up_to_y_up(mesh.normals.flatten(0, 1)).numpy()
        pixels = render(
            corners, faces, normals=normals, material=material, vertex_colors=colours, camera=camera, size=size, background=None
        )
        pictures.append(preprocess(Image.fromarray(pixels)))
    return pictures


def corner_colours(mesh: TexturedMesh) -> tuple[np.ndarray, float]:
    """Base colour [3 F, 3] at every corner, and the mean roughness."""
    colours = torch.ones(len(mesh.triangles), 3, 3, dtype=torch.float64)
    for number, material in enumerate(mesh.materials):
        mine = mesh.material_ids == number
        factor = colours.new_tensor(material.base_color_factor)
        if material.base_color is not None:
            uv = mesh.uvs[mine].double().flatten(0, 1)
            texels = material.base_color.sample(uv, torch.full((len(uv),), 1e-3, dtype=torch.float64))
            colours[mine] = texels.view(-1, 3, 3) * factor
        else:
            colours[mine] = factor
    if mesh.colors is not None:
        colours *= mesh.colors
    return colours.flatten(0, 1).numpy(), float(np.mean([m.roughness_factor for m in mesh.materials]))


@torch.no_grad()
def _encode(objects: list[_Object], family: Family, resolution: int, ctx: RunContext) -> Prepared:
    """All objects through the encoders, one network in memory at a time."""
    scale = family.scales[resolution]
    coords4 = [torch.cat([torch.zeros(len(o.coords), 1, dtype=torch.int32), o.coords], 1).to(ctx.device) for o in objects]

    def latents(role: str, inputs: list[Tensor], part: RunContext) -> list[tuple[Tensor, Tensor]]:
        encoder = find_encoder(family, role).load(ctx)
        found = []
        for number, (values, coords) in enumerate(zip(inputs, coords4, strict=True)):
            part.report(number / len(inputs), role)
            latent = encoder(values.to(ctx.device), coords)
            found.append((latent.mean.float().cpu(), latent.coords[:, 1:].cpu()))
        return found

    shape = latents(SHAPE_ENCODER, [o.features for o in objects], ctx.part(0.0, 0.4))
    texture = latents(TEXTURE_ENCODER, [o.attributes * 2 - 1 for o in objects], ctx.part(0.4, 0.8))
    for (_, a), (_, b) in zip(shape, texture, strict=True):
        assert torch.equal(a, b)
    structure = _structures(objects, family, scale.output, ctx)
    counts = torch.tensor([0, *(len(rows) for rows, _ in shape)])
    tokens = {}
    pixels_seen = max(family.scales[k].image_size for k in (STRUCTURE_SCALE, resolution)) ** 2
    with family.network(IMAGE_ROLE, ctx.part(0.8, 0.85), pixels_seen) as encoder:
        for key in dict.fromkeys((STRUCTURE_SCALE, resolution)):
            size = family.scales[key].image_size
            rows = []
            for number, item in enumerate(objects):
                ctx.part(0.85, 1.0).report(number / len(objects), "looking at pictures")
                pixels = torch.stack([image_to_pixels(p, size) for p in item.pictures]).to(ctx.device)
                rows.append(encoder(pixels).half().cpu())
            most = max(map(len, rows))
            tokens[key] = torch.stack([r[torch.arange(most) % len(r)] for r in rows])  # fewer pictures come more often
    return Prepared(
        structure, counts.cumsum(0), torch.cat([c for _, c in shape]),
        family.shape_norm.apply(torch.cat([rows for rows, _ in shape])),
        family.texture_norm.apply(torch.cat([rows for rows, _ in texture])),
        tokens[STRUCTURE_SCALE], tokens[resolution],
    )  # fmt: skip


def _structures(objects: list[_Object], family: Family, output: int, ctx: RunContext) -> Tensor:
    side = family.structure_side
    encoder = find_encoder(family, STRUCTURE_ENCODER).load(ctx)
    found = []
    for item in objects:
        filled = torch.zeros(1, 1, side, side, side)
        x, y, z = (item.coords.long() * side // output).unbind(1)
        filled[0, 0, x, y, z] = 1
        found.append(encoder(filled.to(ctx.device))[0].float().cpu())
    return torch.cat(found)


def _collect(data: Path, unpacked: Path) -> list[tuple[str, Path, list[Path]]]:
    """Every model: its name, its file, and the pictures that bear its name."""
    if data.is_file() and zipfile.is_zipfile(data):
        data = _unzip(data, unpacked / "data")
    if not data.is_dir():
        raise InputError(f"{data} is neither a folder nor a zip of models.")
    files = sorted(file for file in data.rglob("*") if file.is_file() and _is_content(file.relative_to(data)))
    models = [file for file in files if file.suffix.lower() in MODELS]
    if not models:
        raise InputError(f"{data} holds no models: {', '.join(MODELS)} are read.")
    stems = {_stem(file, data) for file in models}
    pictures: dict[str, list[Path]] = {}
    for file in (f for f in files if f.suffix.lower() in PICTURES):
        name = _stem(file, data)
        stem, _, number = name.rpartition("_")
        owner = name if name in stems else stem if number.isdigit() and stem in stems else None
        if owner:
            pictures.setdefault(owner, []).append(file)
    return [(file.relative_to(data).as_posix(), file, pictures.get(_stem(file, data), [])) for file in models]


def _stem(file: Path, data: Path) -> str:
    """What a model and its pictures have in common; capitals do not count."""
    return file.relative_to(data).with_suffix("").as_posix().casefold()


def _is_content(path: PurePosixPath | Path) -> bool:
    """Not a hidden file, and not what macOS puts into its zips beside each file."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _unzip(file: Path, folder: Path) -> Path:
    """Unpack with care: no path leads out, and neither number nor size is without limit."""
    shutil.rmtree(folder, ignore_errors=True)  # an earlier run's models are not part of this zip
    try:
        with zipfile.ZipFile(file) as packed:
            members = [m for m in packed.infolist() if not m.is_dir()]
            if len(members) > MAX_MEMBERS or sum(m.file_size for m in members) > MAX_UNPACKED:
                limit = f"{MAX_MEMBERS} files and {MAX_UNPACKED >> 30} GB"
                raise InputError(f"{file.name} is too large: at most {limit} are unpacked.")
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or (member.external_attr >> 16) & 0o170000 == 0o120000:
                    raise InputError(f'{file.name} holds "{member.filename}", which leads out of the archive.')
                if _is_content(path):
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(packed.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise InputError(f"{file.name} cannot be unpacked: {error}. Pack it again, without a password.") from error
    except OSError as error:
        raise InputError(f"{file.name} cannot be unpacked to {folder}: {error.strerror or error}.") from error
    return folder


def _stored(file: Path, wanted: Mapping[str, str]) -> Prepared:
    try:
        with safe_open(file, framework="pt") as opened:
            notes = opened.metadata() or {}
            names = [f.name for f in fields(Prepared)]
            if any(notes.get(key) != value for key, value in wanted.items()) or set(names) - set(opened.keys()):
                raise InputError(f"{file.name} was not prepared for this family, resolution and data.")
            return Prepared(**{name: opened.get_tensor(name).clone() for name in names})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged: {error}.") from error


def _stamp(family: Family) -> str:
    """Changes when the networks that latents are made with do."""
    digest = hashlib.sha256()
    for role in (SHAPE_DECODER, TEXTURE_DECODER, STRUCTURE_DECODER, IMAGE_ROLE):
        with family.networks[role].file.open("rb") as file:
            digest.update(file.read(1 << 20))
    return f"{family.name}:{digest.hexdigest()[:16]}"


def _data_stamp(data: Path) -> str:
    files = sorted(data.rglob("*")) if data.is_dir() else [data]
    listing = "|".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files if f.is_file())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
