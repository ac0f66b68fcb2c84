"""The plain variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RefineWrapError
from .core import Reconstruction, Reconstructor

KL = 0.00025


class VanillaVAE(Reconstructor):
    """One latent vector for a whole square (Kingma and Welling 2014, arXiv 1312.6114).

    By default of the layers of github.com/AntixK/PyTorch-VAE: 64 pixels a side, 3,937,635 parameters. In training the
    latent is drawn; `reconstruct` takes its mean.

    Args:
        latent: width of the latent vector.
        channels: of the encoder's layers, each of which halves the side; what remains are 2x2 pixels, so that n layers
            take squares of 2^(n + 1) pixels. The decoder has them the other way round.
        kl: weight of the divergence from the normal distribution (summed over the latent, mean of the batch), beside
            the mean squared distance of images in [-1, 1]. By default that of AntixK's vae.yaml, where it is a
            constant; earlier versions divided the batch by the size of the data set, which makes the balance depend on
            both. The likelihood of one unit of variance for each value would be 2 / (3 * 64 * 64) = 0.00016.
    """

    kind = "vae"
    fixed = True
    term = "kl"

    def __init__(self, latent: int = 128, channels: Sequence[int] = (32, 64, 128, 256, 512), kl: float = KL) -> None:
        super().__init__()
        channels = list(channels)
        if not channels or min(latent, *channels) < 1 or not 0 <= kl < float("inf"):
            raise RefineWrapError(
                f"A VAE of latent={latent}, channels={channels}, kl={kl}",
                "a latent and channels of at least 1, no negative kl",
            )
        self.kl, self._config = kl, {"latent": latent, "channels": channels, "kl": kl}
        self.stride = 2 ** (len(channels) + 1)
        self.encoder = nn.Sequential(*(_down(*pair) for pair in pairwise([3, *channels])), nn.Flatten())
        self.mean = nn.Linear(4 * channels[-1], latent)
        self.log_variance = nn.Linear(4 * channels[-1], latent)
        upwards = [*reversed(channels), channels[0]]
        self.decoder = nn.Sequential(
            nn.Linear(latent, 4 * channels[-1]),
            nn.Unflatten(1, (channels[-1], 2, 2)),
            *(_up(*pair) for pair in pairwise(upwards)),
            nn.Conv2d(channels[0], 3, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, image: Tensor) -> Reconstruction:
        """(B, 3, stride, stride), RGB in [-1, 1]."""
        features = self.encoder(image)
        mean, log_variance = self.mean(features), self.log_variance(features)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return Reconstruction(self.decoder(latent), self.kl * divergence)

    def config(self) -> dict[str, Any]:
        return dict(self._config)


def _down(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.BatchNorm2d(outside), nn.LeakyReLU())


def _up(inside: int, outside: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inside, outside, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.LeakyReLU())
