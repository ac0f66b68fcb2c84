"""Save an adapter, load it again, and (with a token) share it on the Hugging Face Hub."""

import os
from pathlib import Path

import torch

from refine_wrap import RefineWrapError, RefineWrapper, load_backbone

out = Path("example-output/adapter")

model = RefineWrapper.from_pretrained("shipped:demo_refiner")
model.save_pretrained(out, licence="CC-BY-SA-4.0")
print(sorted(path.name for path in out.iterdir()), "of", sum(path.stat().st_size for path in out.iterdir()), "bytes")

again = RefineWrapper.from_pretrained(out)  # the folder knows its backbone
image = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    assert torch.equal(again(image), model(image))

try:  # onto another backbone it is refused
    RefineWrapper.from_pretrained(out, backbone=load_backbone("SRVGGNetCompact", options={"upscale": 4}))
except RefineWrapError as error:
    print(error)

if repository := os.environ.get("REFINE_WRAP_EXAMPLE_REPO"):  # "org/name", after `hf auth login`
    print(model.push_to_hub(repository))
    RefineWrapper.from_pretrained(repository)
