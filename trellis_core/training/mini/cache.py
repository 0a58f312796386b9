"""What the flow stages read instead of running frozen encoders again: image tokens and latents, as safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...files import write_tensors
from ...vae.sparse_unet import dual_grid_features
from . import batches
from .data.dataset import ShardedObjects

MOST = 16000
"""Objects that the flow stages train on at most."""


def cache_file(folder: Path, what: str) -> Path:
    """Where a cache lies in the folder of a run."""
    return folder / f"{what}.safetensors"


@dataclass(frozen=True)
class Tokens:
    """Image tokens float16 [objects, views, orders, L, D] of every picture, in the first `orders` colour orders."""

    tokens: Tensor

    def gather(self, objects: Tensor, views: Tensor, orders: Tensor) -> Tensor:
        """float32 [B, L, D]."""
        return self.tokens[objects, views, orders].float()

    @classmethod
    def open(cls, path: Path) -> Tokens:
        return cls(load_file(path)["tokens"])


@dataclass(frozen=True)
class ShapeLatents:
    """Shape latents of every object on one grid.

    Attributes:
        offsets: int64 [objects + 1], rows of object i are offsets[i] : offsets[i + 1].
        coords: uint8 [T, 3] latent voxels, lexicographic.
        shape: float32 [T, C] posterior means.
        variance: float32 [C] mean posterior variance.
    """

    offsets: Tensor
    coords: Tensor
    shape: Tensor
    variance: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] over all tokens."""
        return moments(self.shape, self.variance)

    def rows(self, objects: list[int]) -> tuple[Tensor, Tensor]:
        """(row numbers int64 [T'], coords int32 [T', 4]) of a batch of objects."""
        rows = [torch.arange(int(self.offsets[i]), int(self.offsets[i + 1])) for i in objects]
        index = torch.cat(rows)
        sample = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))
        return index, torch.cat([sample[:, None], self.coords[index].long()], dim=1).int()

    @classmethod
    def open(cls, path: Path) -> ShapeLatents:
        return cls(**load_file(path))


@dataclass(frozen=True)
class TextureLatents:
    """Texture latents on the coordinates of the shape latents.

    Attributes:
        texture: float32 [orders, T, C] posterior means in the first `orders` colour orders.
        variance: float32 [C] mean posterior variance.
    """

    texture: Tensor
    variance: Tensor

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] over all tokens in the first order."""
        return moments(self.texture[0], self.variance)

    @classmethod
    def open(cls, path: Path) -> TextureLatents:
        return cls(**load_file(path))


def moments(means: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of a latent with posterior means [T, C] and mean posterior variance [C].

    Counting the posterior in keeps channels that hardly say anything small, so that a flow does not toil for them.
    """
    return means.mean(0), (means.var(0) + variance).sqrt()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    write_tensors(path, {k: v.contiguous() for k, v in tensors.items()})


@torch.no_grad()
def cache_tokens(vit: nn.Module, objects: ShardedObjects, path: Path, orders: int = 1, chunk: int = 128) -> None:
    """Encode every view of every object; writes the file of `Tokens.open`."""
    found = []
    permutations = torch.tensor(batches.COLOUR_ORDERS[:orders])
    for start in range(0, min(len(objects), MOST), chunk):
        rows = range(start, min(start + chunk, len(objects), MOST))
        rgb = torch.from_numpy(objects.gather("rgb", rows)).float() / 255  # [n, V, S, S, 3]
        pixels = torch.stack([rgb[..., p] for p in permutations], dim=2).movedim(-1, 3)
        tokens = torch.cat([vit.encode(part) for part in pixels.flatten(0, 2).split(128)])
        found.append(tokens.view(*pixels.shape[:3], *tokens.shape[1:]).half())
    _save({"tokens": torch.cat(found)}, path)


@torch.no_grad()
def cache_shape_latents(encoder: nn.Module, objects: ShardedObjects, path: Path, chunk: int = 16) -> None:
    """Posterior means of the shape autoencoder."""
    counts, coords, shape, variance = [], [], [], []
    for start in range(0, min(len(objects), MOST), chunk):
        rows = range(start, min(start + chunk, len(objects), MOST))
        batch = batches.sparse_batch([objects.targets(i, objects.grids[0]) for i in rows])
        latent = encoder(dual_grid_features(batch.vertices, batch.flags), batch.coords)
        counts.append(torch.bincount(latent.coords[:, 0].long(), minlength=len(rows)))
        coords.append(latent.coords[:, 1:].to(torch.uint8))
        shape.append(latent.mean)
        variance.append(latent.logvar.exp())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    columns = {"coords": torch.cat(coords), "shape": torch.cat(shape), "variance": torch.cat(variance).mean(0)}
    _save({"offsets": offsets, **columns}, path)


@torch.no_grad()
def cache_texture_latents(encoder: nn.Module, objects: ShardedObjects, path: Path, orders: int = 1, chunk: int = 16) -> None:
    """Posterior means of the texture autoencoder, one set per colour order, on the coordinates of the shape latents."""
    found: list[list[Tensor]] = [[] for _ in range(orders)]
    variance = []
    for start in range(0, min(len(objects), MOST), chunk):
        targets = [objects.targets(i, objects.grids[0]) for i in range(start, min(start + chunk, len(objects), MOST))]
        for order in range(orders):
            batch = batches.sparse_batch(targets, [batches.COLOUR_ORDERS[order]] * len(targets))
            latent = encoder(batch.attrs * 2 - 1, batch.coords)
            found[order].append(latent.mean)
            variance.append(latent.logvar.exp())
    _save({"texture": torch.stack([torch.cat(f) for f in found]), "variance": torch.cat(variance).mean(0)}, path)


@torch.no_grad()
def cache_structure_latents(encoder: nn.Module, objects: ShardedObjects, path: Path, chunk: int = 256) -> None:
    """Posterior means of the structure autoencoder, float32 [objects, C, r, r, r]."""
    found = []
    for start in range(0, min(len(objects), MOST), chunk):
        rows = range(start, min(start + chunk, len(objects), MOST))
        found.append(encoder(batches.occupancy([objects.targets(i, objects.grids[0]) for i in rows]))[0])
    _save({"structure": torch.cat(found)}, path)
