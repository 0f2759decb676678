"""What the Gram of batch gradients measures, and estimates of the one that is meant.

A batch's gradient of objective i is a mean over rows, g^_i = sum_r s_ir grad(margin_r), with s_ir the row's slope
divided by the number of rows. Rows are drawn alike and independently, so with H^ = (<g^_i, g^_j>) and G the Gram of
the full gradients

    E[H^] = G + Sigma / n,    Sigma_ij = E[s_i s_j nu] - G_ij,    nu = ||grad margin||^2   (s per row here)

Both objectives read the *same* rows, so the noise has off-diagonal entries too: where two labels of a row are opposed,
s_i s_j < 0. The products of a row with itself are C_ij = sum_r s_ir s_jr nu_r, known from the slopes and one number per
row, and all that is wrong with H^ is in them: (H^ - C) n / (n - 1), the mean of the products of *different* rows, is
unbiased (a U-statistic). It need not be positive semidefinite.

... leading axes, S seeds, R runs, M objectives, B rows of a batch. Torch in, torch out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def self_products(slopes: Tensor, nu: Tensor) -> Tensor:
    """C (S, R, M, M): each row's product with itself, summed. slopes (S, B, R, M), nu (S, B, R)."""
    return torch.einsum("sbri,sbrj,sbr->srij", slopes, slopes, nu)


def across_rows(gram: Tensor, own: Tensor, rows: int) -> Tensor:
    """The unbiased estimate of G from one batch of `rows` rows that all carry all labels: gram and own (..., M, M)."""
    return (gram - own) * (rows / (rows - 1))


def across_halves(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased too, from the gradients (..., M, P) of two halves of a batch alone: the mean of both cross products.

    It needs no row's norm, 2 m gradients instead of m, and leaves out the half of the row pairs that share a half.
    """
    cross = first @ second.mT
    return (cross + cross.mT) / 2


def projected(estimate: Tensor, gram: Tensor, floor: float = 1e-3) -> Tensor:
    """The nearest matrix (Frobenius) whose eigenvalues are at least floor times the batch Gram's largest.

    Two norms on one scale only: an estimate of two gradients of very different length is projected in units of the
    batch's own norms, so the shorter one is not lost. The floor keeps the dual's ratios bounded where noise is all.
    """
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    unit = torch.where(lengths > 0, lengths, 1.0)
    scale = unit[..., :, None] * unit[..., None, :]
    values, vectors = torch.linalg.eigh(estimate / scale)
    return (vectors * values.clamp(min=floor)[..., None, :]) @ vectors.mT * scale


def shrunk(gram: Tensor, own: Tensor, least: float = 0.05) -> Tensor:
    """H^ - t C with the largest t <= 1 that leaves at least `least` of H^ in every direction (positive-part shrinkage).

    t is (1 - least) times the smallest generalised eigenvalue of (H^, C), so the result is positive semidefinite by
    construction and equals the U-statistic (up to n / (n - 1)) where the batch carries signal.
    """
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    scale = lengths[..., :, None] * lengths[..., None, :]
    h, noise = gram / scale, own / scale
    values, vectors = torch.linalg.eigh(h)
    root = vectors / values.clamp(min=1e-12).sqrt()[..., None, :]
    largest = torch.linalg.eigvalsh(root.mT @ noise @ root)[..., -1]  # of C in the geometry of H^
    t = ((1.0 - least) / largest.clamp(min=1e-12)).clamp(max=1.0)
    return gram - t[..., None, None] * own


def cosine(gram: Tensor) -> Tensor:
    """(...): of the first two objectives; 0 where one vanishes."""
    lengths = (gram[..., 0, 0] * gram[..., 1, 1]).clamp(min=0.0).sqrt()
    return torch.where(lengths > 0, gram[..., 0, 1] / lengths.clamp(min=1e-300), 0.0)
