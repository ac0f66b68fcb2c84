"""The diffusion model, with the U-Net and the schedulers of diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RefineWrapError
from .core import Reconstruction, Reconstructor

LEVELS = 1000
NOISE = {"num_train_timesteps": LEVELS, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


class DDIM(Reconstructor):
    """Learns to tell the noise of a noisy image; paints an image by going to its noise and back (Ho et al. 2020,
    arXiv 2006.11239; Song et al. 2021, arXiv 2010.02502).

    By default Ho's network for 256 pixels: 113,673,219 parameters. Needs the package diffusers. Its own loss, the mean
    squared distance of the noise, is all that it learns from: recipes compare no images.

    Args:
        channels: of each size, which is half the one before; multiples of 4.
        layers: residual blocks of each size.
        attention: which of the sizes, from 0, have self-attention; the smallest has it in the middle anyway.
        steps: of `reconstruct` each way, of 1000 levels of noise: 100 in the paper. Each runs the network once.
        depth: share of the levels that `reconstruct` goes through. The paper does not say how an image is painted
            again; by default it is all the way: inverted to noise and sampled back from it, both without chance. A
            smaller share keeps more of the image.
    """

    kind = "ddim"
    term = "noise"

    def __init__(
        self,
        channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        layers: int = 2,
        attention: Sequence[int] = (4,),
        steps: int = 100,
        depth: float = 1.0,
    ) -> None:
        super().__init__()
        channels, attention = list(channels), list(attention)
        self._config: dict[str, Any] = {
            "channels": channels,
            "layers": layers,
            "attention": attention,
            "steps": steps,
            "depth": depth,
        }
        sizes = range(len(channels))
        fits = all(width >= 4 and width % 4 == 0 for width in channels) and all(place in sizes for place in attention)
        if not channels or not fits or layers < 1 or not 1 <= steps <= LEVELS or not 0 < depth <= 1:
            raise RefineWrapError(
                "A DDIM of " + ", ".join(f"{name}={value}" for name, value in self._config.items()),
                f"channels that are multiples of 4, attention of their places from 0, at least 1 layer, 1 to {LEVELS} "
                "steps, a depth above 0 up to 1",
            )
        library = _diffusers()
        self.stride, self.steps, self.depth = 2 ** (len(channels) - 1), steps, depth
        self.unet = library.UNet2DModel(
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if at in attention else "DownBlock2D" for at in sizes),
            up_block_types=tuple("AttnUpBlock2D" if at in attention else "UpBlock2D" for at in reversed(sizes)),
            norm_num_groups=math.gcd(32, *(width // 4 for width in channels)),
            attention_head_dim=None,  # one head; this and what follows as published
            norm_eps=1e-6,
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=0,
        )
        self.noising = library.DDPMScheduler(**NOISE)

    def forward(self, image: Tensor) -> Reconstruction:
        """(B, 3, H, W), RGB in [-1, 1]: at a level of noise that is drawn, what it takes the image to be, and how far
        the noise is from what it takes for it."""
        level = torch.randint(LEVELS, (len(image),), device=image.device)
        noise = torch.randn_like(image)
        noisy = self.noising.add_noise(image, noise, level)
        found = self.unet(noisy, level).sample
        kept = self.noising.alphas_cumprod.to(image)[level, None, None, None]
        output = (noisy - (1 - kept).sqrt() * found) / kept.sqrt()
        return Reconstruction(output, (found - noise).square().mean())

    def paint(self, image: Tensor) -> Tensor:
        library = _diffusers()
        count = max(1, round(self.depth * self.steps))
        # Held in no range on the way, which could not be undone.
        inwards, outwards = (
            scheduler(**NOISE, clip_sample=False) for scheduler in (library.DDIMInverseScheduler, library.DDIMScheduler)
        )
        for scheduler, part in ((inwards, slice(count)), (outwards, slice(-count, None))):
            scheduler.set_timesteps(self.steps)
            for level in scheduler.timesteps[part].tolist():
                image = scheduler.step(self.unet(image, level).sample, level, image).prev_sample
        return image

    def config(self) -> dict[str, Any]:
        return dict(self._config)


def _diffusers() -> Any:
    """The package, when it is needed.

    Raises:
        RefineWrapError: it is not there.
    """
    try:
        import diffusers
        from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, UNet2DModel  # noqa: F401
    except (ImportError, RuntimeError) as error:  # its own imports are lazy and end in RuntimeError
        reason = str(error).strip().splitlines()[-1]
        raise RefineWrapError(
            f"The reconstructor ddim needs the package diffusers, which cannot be imported ({reason})",
            "diffusers installed",
            "pip install 'refine-wrap[ddim]'",
        ) from None
    return diffusers
