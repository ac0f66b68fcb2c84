"""Fine-tune a refiner behind the shipped denoiser, on photos of your own, for a few steps."""

import sys
from pathlib import Path

from refine_wrap import Recipe, RefineWrapper
from refine_wrap.resources import weights_dir
from refine_wrap.training import finetune

photos = Path(sys.argv[1]) if len(sys.argv) > 1 else weights_dir() / "demo_photo.png"
recipe = Recipe.load(
    "demo_refiner",
    [
        f"data.train.gt={photos}",
        f"data.validation.gt={photos}",
        "data.crop=64",
        "train.steps=8",  # thousands for a real one
        "train.batch_size=2",
        "output=example-output/refiner",
    ],
)
adapter = finetune(recipe)
model = RefineWrapper.from_pretrained(adapter)
print(adapter, model.summary(256, 256)["parameters"])
