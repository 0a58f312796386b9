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


def cache_file(folder: Path, what: str) -> Path:
    """Where a cache lies in the folder of a run."""
    return folder / f"{what}.safetensors"


@dataclass(frozen=True)
class Tokens:
    """Image tokens float16 [objects, L, D] of every picture."""

    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, objects: Tensor) -> Tensor:
        """float32 [B, L, D]."""
        return self.tokens[objects].float()

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
        texture: float32 [T, C] posterior means.
        variance: float32 [C] mean posterior variance.
    """

    texture: Tensor
    variance: Tensor

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] over all tokens."""
        return moments(self.texture, self.variance)

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
def cache_tokens(vit: nn.Module, objects: ShardedObjects, path: Path, most: int, chunk: int = 128) -> None:
    """Encode the picture of every object; writes the file of `Tokens.open`."""
    found = []
    for start in range(0, min(len(objects), most), chunk):
        rows = range(start, min(start + chunk, len(objects), most))
        found.append(vit.encode(batches.pictures(objects, rows)).half())
    _save({"tokens": torch.cat(found)}, path)


@torch.no_grad()
def cache_shape_latents(encoder: nn.Module, objects: ShardedObjects, path: Path, most: int, chunk: int = 16) -> None:
    """Posterior means of the shape autoencoder."""
    counts, coords, shape, variance = [], [], [], []
    for start in range(0, min(len(objects), most), chunk):
        rows = range(start, min(start + chunk, len(objects), most))
        batch = batches.sparse_batch([objects.targets(i) for i in rows])
        latent = encoder(dual_grid_features(batch.vertices, batch.flags), batch.coords)
        counts.append(torch.bincount(latent.coords[:, 0].long(), minlength=len(rows)))
        coords.append(latent.coords[:, 1:].to(torch.uint8))
        shape.append(latent.mean)
        variance.append(latent.logvar.exp())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    columns = {"coords": torch.cat(coords), "shape": torch.cat(shape), "variance": torch.cat(variance).mean(0)}
    _save({"offsets": offsets, **columns}, path)


@torch.no_grad()
def cache_texture_latents(encoder: nn.Module, objects: ShardedObjects, path: Path, most: int, chunk: int = 16) -> None:
    """Posterior means of the texture autoencoder, on the coordinates of the shape latents."""
    found, variance = [], []
    for start in range(0, min(len(objects), most), chunk):
        rows = range(start, min(start + chunk, len(objects), most))
        batch = batches.sparse_batch([objects.targets(i) for i in rows])
        latent = encoder(batch.attrs * 2 - 1, batch.coords)
        found.append(latent.mean)
        variance.append(latent.logvar.exp())
    _save({"texture": torch.cat(found), "variance": torch.cat(variance).mean(0)}, path)
