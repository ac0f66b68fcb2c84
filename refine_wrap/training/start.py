"""First weights for plain networks, in which the default ones lose the signal."""

from __future__ import annotations

import torch
from torch import nn

SPREAD = 0.02
"""Standard deviation of what breaks the symmetry between the positions of a kernel."""
LAST = 0.1
"""Factor on the last convolution: the network begins close to the interpolation that it is added to."""


@torch.no_grad()
def start_plain(network: nn.Module) -> None:
    """New weights for a chain of convolutions and (P)ReLUs without skips, such as SRVGGNetCompact, in place.

    Each convolution that keeps the number of channels becomes a rotation of them (an orthogonal matrix in the middle of
    its kernel), scaled so that the activation after it keeps the variance. torch's default weights take away two thirds
    of the variance in each layer: after 16 of them nothing is left of the image, and training does not begin.

    Source: delta-orthogonal weights, Xiao et al., ICML 2018.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    slope = next((float(module.weight.mean()) for module in network.modules() if isinstance(module, nn.PReLU)), 0.0)
    gain = nn.init.calculate_gain("leaky_relu", slope)
    for convolution in convolutions[1:-1]:
        weight = convolution.weight
        nn.init.normal_(weight, std=SPREAD)
        weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += nn.init.orthogonal_(
            weight[:, :, 0, 0].clone(), gain
        )
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    last = convolutions[-1]
    last.weight *= LAST
    if last.bias is not None:
        nn.init.zeros_(last.bias)
