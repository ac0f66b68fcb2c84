"""Wrap any restoration network, see that nothing changes yet, and restore a photo from file to file."""

from pathlib import Path

import torch
from torch import nn

from refine_wrap import RefineWrapper, load_backbone
from refine_wrap.resources import weights_dir

out = Path("example-output")
out.mkdir(exist_ok=True)

# A published checkpoint would be load_backbone("RealESRGAN_x4plus.pth"); this one comes with the package.
model = RefineWrapper(load_backbone("shipped:demo_denoiser"))
print(model.backbone.describe())

image = torch.rand(1, 3, 61, 45)  # RGB in [0, 1], any size
assert torch.equal(model(image), model.backbone(image)), "untrained, the wrapper is its backbone"

model.restore(weights_dir() / "demo_photo.png", out / "restored.png", overwrite=True)
print("wrote", out / "restored.png")


class Sharpen(nn.Module):
    """Your own network: any module that takes an image and returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


own = RefineWrapper(Sharpen(), refiner="ornet-small")
print(own.backbone.spec, "assumed:", sorted(own.backbone.assumed))
