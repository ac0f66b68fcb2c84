"""The one vector quantiser of the house: a codebook, how it is looked up, and how it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from .errors import RefineWrapError

STEADY = 1e-5
"""Laplace smoothing of the counts of an averaged codebook: no code is divided by zero."""


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of a latent."""

    latent: Tensor
    """(B, C, h, w), the nearest codes; its gradient is passed to the latent as it is (straight-through)."""
    index: Tensor
    """(B, h, w), which codes these are, int64."""
    loss: Tensor
    """(B,), of each sample: the latent is drawn to its code, and a codebook that learns by gradient to the latent."""


class VectorQuantizer(nn.Module):
    """A codebook. Its only tensor is `embedding.weight` (codes, width), as in published checkpoints.

    Args:
        codes: how many there are.
        width: channels of a code, C.
        beta: weight of the codebook's term beside the latent's, which is 1. VQGAN and CodeFormer have it this way round
            (VQ-VAE, arXiv 1711.00937, weighs the latent's).
        decay: None: the codebook learns by gradient. A number in (0, 1): each code is the running mean of the latents
            that chose it (arXiv 1711.00937, A.1); the loss then has the latent's term alone. Adds two buffers.
        restart_after: a code that no latent chose in this many training batches is put onto a latent of the batch, and
            so is a new one in its first batch. None: never. Adds one buffer.
    """

    def __init__(
        self, codes: int, width: int, beta: float = 0.25, decay: float | None = None, restart_after: int | None = None
    ) -> None:
        super().__init__()
        if min(codes, width) < 1 or (decay is not None and not 0 < decay < 1):
            raise RefineWrapError(
                f"VectorQuantizer got codes={codes}, width={width}, decay={decay}",
                "codes and width of at least 1, decay in (0, 1)",
            )
        if restart_after is not None and restart_after < 1:
            raise RefineWrapError(f"restart_after is {restart_after}", "at least one batch, or None for never")
        self.codes, self.width, self.beta, self.decay, self.restart_after = codes, width, beta, decay, restart_after
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        if decay is not None:
            self.embedding.requires_grad_(False)
            self.register_buffer("counts", torch.ones(codes))
            self.register_buffer("sums", self.embedding.weight.detach().clone())
        if restart_after is not None:
            # All are idle when new: what the first batch does not choose begins on its latents, not all about zero.
            self.register_buffer("idle", torch.full((codes,), restart_after, dtype=torch.int64))

    counts: Tensor
    sums: Tensor
    idle: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.restart_after is not None and f"{prefix}embedding.weight" in state_dict:
            self.idle.zero_()  # codes that come without their history are no new ones
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, latent: Tensor, learn: Tensor | None = None) -> Quantized:
        """The nearest code of each position.

        Args:
            latent: (B, C, h, w).
            learn: (B,) bool, the samples that the codebook may learn from and whose loss is not 0; None: all.
        """
        with torch.autocast(latent.device.type, enabled=False):
            wide = latent.float() if latent.dtype in (torch.float16, torch.bfloat16) else latent
            index = self.nearest(wide)
            codes = self.look_up(index)
            drawn = (codes.detach() - wide).square().mean((1, 2, 3))
            follows = (codes - wide.detach()).square().mean((1, 2, 3))
            loss = drawn if self.decay is not None else drawn + self.beta * follows
            if learn is not None:
                loss = loss * learn
            if self.training and torch.is_grad_enabled():
                self._learn(wide.detach(), index, learn)
        return Quantized(codes.detach().to(latent.dtype) + (latent - latent.detach()), index, loss)

    def nearest(self, latent: Tensor) -> Tensor:
        """Which code is nearest to each position of (B, C, h, w), as (B, h, w); in float32 or wider, whatever comes."""
        with torch.autocast(latent.device.type, enabled=False):
            flat = latent.movedim(1, -1).to(torch.promote_types(latent.dtype, torch.float32))
            weight = self.embedding.weight.to(flat.dtype)
            # What is left of the squared distance without the part that all codes share.
            distance: Tensor = weight.square().sum(1) - 2 * flat @ weight.T
            return distance.argmin(-1)

    def look_up(self, index: Tensor) -> Tensor:
        """The codes of (B, h, w), as (B, C, h, w)."""
        codes: Tensor = self.embedding(index)
        return codes.movedim(-1, 1)

    def expected(self, weights: Tensor) -> Tensor:
        """The mixture of codes of (B, h, w, codes), weights that sum to 1, as (B, C, h, w)."""
        return (weights.to(self.embedding.weight.dtype) @ self.embedding.weight).movedim(-1, 1)

    @torch.no_grad()
    def _learn(self, latent: Tensor, index: Tensor, learn: Tensor | None) -> None:
        """Move averaged codes, and put idle ones onto latents of the batch; all processes of a run alike."""
        if self.decay is None and self.restart_after is None:
            return
        rows = slice(None) if learn is None else learn.bool()
        flat, chosen = latent.movedim(1, -1)[rows].flatten(0, -2), index[rows].flatten()
        counts = torch.bincount(chosen, minlength=self.codes).to(flat.dtype)
        sums = torch.zeros_like(self.embedding.weight, dtype=flat.dtype).index_add_(0, chosen, flat)
        for each in (counts, sums):
            if distributed.is_initialized():
                distributed.all_reduce(each)
        # Of a batch that is not finite nothing is learned: the trainer skips the step.
        if not bool(counts.any()) or not bool(sums.isfinite().all()):
            return
        if self.decay is not None:
            self.counts.lerp_(counts.to(self.counts), 1 - self.decay)
            self.sums.lerp_(sums.to(self.sums), 1 - self.decay)
            total = self.counts.sum()
            steady = (self.counts + STEADY) / (total + self.codes * STEADY) * total
            self.embedding.weight.copy_(self.sums / steady[:, None])
        if self.restart_after is not None:
            self.idle.add_(1).masked_fill_(counts.bool(), 0)
            self._restart(flat, (self.idle >= self.restart_after).nonzero().flatten())

    def _restart(self, flat: Tensor, idle: Tensor) -> None:
        if distributed.is_initialized():  # latents of the first process that has any, for all of them
            have = torch.tensor([len(flat)], device=flat.device)
            every = [torch.zeros_like(have) for _ in range(distributed.get_world_size())]
            distributed.all_gather(every, have)
            source = next(rank for rank, number in enumerate(every) if number)
            fresh = flat.new_zeros(len(idle), self.width)
            if distributed.get_rank() == source:
                fresh = self._drawn(flat, len(idle))
            distributed.broadcast(fresh, source)
        else:
            fresh = self._drawn(flat, len(idle))
        self.embedding.weight[idle] = fresh.to(self.embedding.weight)
        if self.decay is not None:
            self.sums[idle], self.counts[idle] = fresh.to(self.sums), 1.0
        self.idle[idle] = 0

    def _drawn(self, flat: Tensor, number: int) -> Tensor:
        """`number` latents of the batch: which ones follows from the batch, so that a run can be repeated."""
        order = flat.detach().sum(1).argsort()
        places = torch.linspace(0, len(flat) - 1, number + 2, device=flat.device)[1:-1].round().long()
        return flat[order[places]]


def usage(index: Tensor, codes: int) -> tuple[float, float]:
    """How much of a codebook is used: the share of its codes in `index` (any shape), and their perplexity.

    The perplexity is exp(entropy) of how often each is chosen: 1 where one code is always taken, `codes` where all are
    taken equally often.
    """
    counts = torch.bincount(index.flatten(), minlength=codes).double()
    share = counts / counts.sum()
    return float((counts > 0).double().mean()), float(torch.special.entr(share).sum().exp())


def silhouette(a: Tensor, b: Tensor) -> float:
    """How separate two codebooks (codes, width) are: the mean silhouette of their codes, in [-1, 1]; 0: not at all.

    Source: Rousseeuw 1987, with Euclidean distances; for the published codebooks it is 0.03 (PCA'd).

    Raises:
        RefineWrapError: a codebook has fewer than two codes.
    """
    if min(len(a), len(b)) < 2:
        raise RefineWrapError(f"The codebooks have {len(a)} and {len(b)} codes", "at least two each")
    found = []
    for own, other in ((a.double(), b.double()), (b.double(), a.double())):
        inside = torch.cdist(own, own).sum(1) / (len(own) - 1)
        outside = torch.cdist(own, other).mean(1)
        found.append((outside - inside) / torch.maximum(inside, outside).clamp(min=1e-30))
    return float(torch.cat(found).mean())


def choose(logits: Tensor, temperature: float, noise: bool, hard: bool) -> Tensor:
    """Weights over the codes from logits (..., codes), with a gradient.

    Args:
        logits: of any scale.
        temperature: over 0; toward 0 one code takes all.
        noise: Gumbel noise, so that codes are drawn by their probability (arXiv 1611.01144).
        hard: exactly one code forward, the soft weights' gradient backward (straight-through).
    """
    if not temperature > 0:
        raise RefineWrapError(f"temperature is {temperature}", "a number over 0")
    if noise:
        return F.gumbel_softmax(logits, temperature, hard=hard)
    soft = (logits / temperature).softmax(-1)
    if not hard:
        return soft
    picked = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return picked + soft - soft.detach()
