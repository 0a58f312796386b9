"""The mini family's structure autoencoder, written down instead of trained.

Sixteen cells a side are 4^3 tokens of 64 channels: as many numbers as cells. So the code of a structure can be the structure
itself, +1 where a cell is filled and -1 where not, every 4^3 block folded into the channels of its token. The published
networks can do that exactly, and a flow then works on the cells themselves, in a space whose every point means something.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...vae.structure import SparseStructureDecoder, SparseStructureEncoder
from .networks import STRUCTURE_LATENT, make_network

STEADY = 4.0
"""Constants in the encoder's spare channels: beside them LayerNorm treats all patterns nearly alike."""


def fold_cells(occupancy: Tensor) -> Tensor:
    """Occupancy [B, 1, 4r, 4r, 4r] of 0 and 1 -> code float32 [B, 64, r, r, r] of -1 and 1.

    Channel 8 t + s: s numbers the block's eight halves, t the cells in a half, each as 4 x + 2 y + z.
    """
    b, _, *size = occupancy.shape
    x, y, z = (n // 4 for n in size)
    cells = occupancy.reshape(b, x, 2, 2, y, 2, 2, z, 2, 2)
    return 2 * cells.permute(0, 3, 6, 9, 2, 5, 8, 1, 4, 7).reshape(b, STRUCTURE_LATENT, x, y, z) - 1


@torch.no_grad()
def structure_autoencoder() -> tuple[SparseStructureEncoder, SparseStructureDecoder]:
    """Encoder and decoder of `fold_cells`; neither has residual blocks. Their sizes are those of `CONFIGS`."""
    encoder, decoder = make_network("ss_enc"), make_network("ss_dec")
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.zero_()
    middle = (1, 1, 1)
    encoder.input_layer.weight[(0, 0, *middle)] = 1
    halve, again = encoder.blocks
    for t in range(8):
        corner = (t >> 2, t >> 1 & 1, t & 1)
        halve.conv.weight[(t, 0, *corner)] = 1
        for s in range(8):
            again.conv.weight[(8 * t + s, t, s >> 2, s >> 1 & 1, s & 1)] = 1
    spare = again.conv.bias[STRUCTURE_LATENT:]
    spare[::2], spare[1::2] = STEADY, -STEADY
    # What a cell's channel is after norm and SiLU, off and on, in an average block: mapped to -1 and 1.
    width, share = len(again.conv.bias), 0.3
    mean = share * STRUCTURE_LATENT / width
    spread = ((share * STRUCTURE_LATENT + len(spare) * STEADY**2) / width - mean**2) ** 0.5
    off, on = (torch.nn.functional.silu(torch.tensor((value - mean) / spread)).item() for value in (0, 1))
    last = encoder.out_layer[2]
    last.bias[STRUCTURE_LATENT:] = -6
    last.bias[:STRUCTURE_LATENT] = -1 - 2 * off / (on - off)
    decoder_double, decoder_again = decoder.blocks
    for channel in range(STRUCTURE_LATENT):
        last.weight[(channel, channel, *middle)] = 2 / (on - off)
        decoder.input_layer.weight[(channel, channel, *middle)] = 1
        decoder_double.conv.weight[(channel, channel, *middle)] = 1
    for t in range(8):  # of the finest level: the code, its opposite, and two constants for the norm
        decoder_again.conv.weight[(t, t, *middle)] = 1
        decoder_again.conv.weight[(8 + t, t, *middle)] = -1
        decoder_again.conv.bias[16 + t], decoder_again.conv.bias[24 + t] = 1, -1
    head = decoder.out_layer[2]
    head.weight[(0, 0, *middle)], head.weight[(0, 1, *middle)] = 4, -4
    return encoder.eval(), decoder.eval()
