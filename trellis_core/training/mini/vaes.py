"""Autoencoder stages: losses of one step and held-out measures, for the structure, the shape and the texture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...ovoxel.dual_grid import dual_grid_quads
from ...sparse.resample import ResamplePlan
from ...vae.sparse_unet import Latent, dual_grid_features
from ..losses import kl_to_standard_normal, shape_reconstruction, split_loss

SHAPE_KL, TEXTURE_KL = 6e-2, 4e-3
"""Weights that make the latents forget what no picture could tell a flow model."""
ROUGHNESS = 0.5
"""Most noise that a decoder must bear in joint training, in standard deviations of the latent."""


@dataclass(frozen=True)
class SparseBatch:
    """Objects as the sparse autoencoders see them.

    Attributes:
        coords: int32 [N, 4] fine voxels (sample, x, y, z).
        vertices: float32 [N, 3] dual vertex inside its voxel, voxel units.
        flags: bool [N, 3] intersected edges.
        attrs: float32 [N, 6] base colour, metallic, roughness, alpha in 0..1.
    """

    coords: Tensor
    vertices: Tensor
    flags: Tensor
    attrs: Tensor


Perturb = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(latent means [T, C], coords int32 [T, 4], generator) -> what the decoder is to bear instead."""


def roughen(z: Tensor, coords: Tensor, generator: torch.Generator, strength: float = ROUGHNESS) -> Tensor:
    """z + U(0, strength) per sample * the batch's spread [C] * N(0, 1): a first picture of a flow model's errors."""
    samples = int(coords[-1, 0]) + 1
    amount = torch.rand(samples, 1, generator=generator)[coords[:, 0].long()] * strength
    return z + amount * z.detach().std(0) * torch.randn(z.shape, generator=generator)


def plan_occupancies(plans: list[ResamplePlan], latent_rows: int) -> list[Tensor]:
    """bool [N_i, 8] per level: the subdivision targets of the plans, coarse to fine."""
    rows = [latent_rows, *(len(p.coords) for p in plans[:-1])]
    return [plan.occupancy(n) for plan, n in zip(plans, rows, strict=True)]


def shape_loss(
    encoder: nn.Module, decoder: nn.Module, batch: SparseBatch, generator: torch.Generator, perturb: Perturb | None = None
) -> dict[str, Tensor]:
    """One step of the shape autoencoder; with `perturb` the encoder is frozen and its latents are perturbed so."""
    feats = dual_grid_features(batch.vertices, batch.flags)
    with torch.set_grad_enabled(perturb is None):
        latent = encoder(feats, batch.coords)
    z, kl = _posterior(latent, generator, perturb)
    decoding = decoder(z, latent.coords, plans=latent.plans)
    occupancies = plan_occupancies(latent.plans, len(latent.coords))
    terms = shape_reconstruction(decoding.raw, batch.vertices, batch.flags, decoding.subdivisions, occupancies)
    terms["split"] = split_loss(decoding.raw[:, 6], batch.coords[:, 1:] + batch.vertices, batch_quads(batch))
    loss = 5 * terms["vertex"] + terms["flags"] + terms["subdivision"] + 0.2 * terms["split"] + SHAPE_KL * kl
    return {"loss": loss, **{k: v.detach() for k, v in terms.items()}, "kl": kl.detach()}


def batch_quads(batch: SparseBatch) -> Tensor:
    """Voxel rows int64 [Q, 4] around every crossed edge of all objects."""
    lengths = torch.bincount(batch.coords[:, 0].long()).tolist()
    found, start = [], 0
    for coords, flags in zip(batch.coords[:, 1:].split(lengths), batch.flags.split(lengths), strict=True):
        found.append(dual_grid_quads(coords, flags, int(coords.max()) + 2).long() + start)
        start += len(coords)
    return torch.cat(found)


def texture_loss(
    encoder: nn.Module,
    decoder: nn.Module,
    batch: SparseBatch,
    weights: Tensor,
    generator: torch.Generator,
    perturb: Perturb | None = None,
) -> dict[str, Tensor]:
    """One step of the texture autoencoder; weights [6] balance the channels. `perturb` as in `shape_loss`."""
    target = batch.attrs * 2 - 1
    with torch.set_grad_enabled(perturb is None):
        latent = encoder(target, batch.coords)
    z, kl = _posterior(latent, generator, perturb)
    raw, _ = decoder(z, latent.coords, plans=latent.plans)
    per_channel = (raw - target).square().mean(0)
    loss = (per_channel * weights).sum() + TEXTURE_KL * kl
    rgb, metallic, roughness = per_channel[:3].mean(), per_channel[3], per_channel[4]
    return {
        "loss": loss,
        "rgb": rgb.detach(),
        "metallic": metallic.detach(),
        "roughness": roughness.detach(),
        "kl": kl.detach(),
    }


def _posterior(latent: Latent, generator: torch.Generator, perturb: Perturb | None) -> tuple[Tensor, Tensor]:
    if perturb is not None:
        return perturb(latent.mean, latent.coords, generator), latent.mean.new_zeros(())
    z = latent.mean + (0.5 * latent.logvar).exp() * torch.randn(latent.mean.shape, generator=generator)
    return roughen(z, latent.coords, generator), kl_to_standard_normal(latent.mean, latent.logvar)


def channel_weights(attrs: Tensor) -> Tensor:
    """[6] weights of squared errors, sum 1: inverse variance of attrs float32 [N, 6], colour twice.

    Alpha is constant and gets hardly any.
    """
    variance = (attrs * 2 - 1).var(0).clamp_min(1e-3)
    weights = 1 / variance
    weights[:3] *= 2
    weights[5] = weights[3] / 10
    return weights / weights.sum()


@torch.no_grad()
def shape_report(encoder: nn.Module, decoder: nn.Module, batch: SparseBatch) -> dict[str, float]:
    """Held-out round trip: IoU of predicted fine voxels, vertex error (voxels), flag accuracy; IoU under latent noise."""
    latent = encoder(dual_grid_features(batch.vertices, batch.flags), batch.coords)
    known = decoder(latent.mean, latent.coords, plans=latent.plans)
    vertices = 2 * known.raw[:, :3].sigmoid() - 0.5
    spread = latent.mean.std(0)
    noisy = latent.mean + 0.5 * spread * torch.randn(latent.mean.shape, generator=torch.Generator().manual_seed(1))
    noisy_flags = decoder(noisy, latent.coords, plans=latent.plans).raw[:, 3:6] > 0
    return {
        "iou": coords_iou(decoder(latent.mean, latent.coords).coords, batch.coords),
        "vertex": (vertices - batch.vertices).abs().mean().item(),
        "flags": ((known.raw[:, 3:6] > 0) == batch.flags).float().mean().item(),
        "iou_noisy": coords_iou(decoder(noisy, latent.coords).coords, batch.coords),
        "flags_noisy": (noisy_flags == batch.flags).float().mean().item(),
    }


@torch.no_grad()
def texture_report(encoder: nn.Module, decoder: nn.Module, batch: SparseBatch) -> dict[str, float]:
    """Held-out round trip: mean absolute errors in 0..1, and RGB under latent noise."""
    latent = encoder(batch.attrs * 2 - 1, batch.coords)
    spread = latent.mean.std(0)
    noisy = latent.mean + 0.5 * spread * torch.randn(latent.mean.shape, generator=torch.Generator().manual_seed(1))
    error = _attr_error(decoder, latent.mean, latent, batch)
    return {
        "rgb": error[:3].mean().item(),
        "metallic": error[3].item(),
        "roughness": error[4].item(),
        "rgb_noisy": _attr_error(decoder, noisy, latent, batch)[:3].mean().item(),
    }


def _attr_error(decoder: nn.Module, z: Tensor, latent, batch: SparseBatch) -> Tensor:
    raw, _ = decoder(z, latent.coords, plans=latent.plans)
    return (raw * 0.5 + 0.5 - batch.attrs).abs().mean(0)


def mask_iou(a: Tensor, b: Tensor) -> float:
    """Mean over the batch of intersection over union; bool tensors of one shape [B, ...]."""
    a, b = a.flatten(1), b.flatten(1)
    return ((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).mean().item()


def coords_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two coordinate sets int32 [N, 4] with distinct rows."""
    from ...sparse.tensor import pack_keys

    common = torch.isin(pack_keys(a), pack_keys(b)).sum().item()
    return common / max(len(a) + len(b) - common, 1)
