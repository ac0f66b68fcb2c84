"""`refine-wrap demo`: the main job on a photo that comes with the package, offline, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..images import Picture

PHOTO = "demo_photo.png"
SEED = 7
CAMERA = {
    "blur": {"sigma": 0.9},
    "noise": {"kind": "poisson-gaussian", "sigma": 12.0, "shot": 0.6, "correlation": 0.4, "channel_spread": 0.2},
    "jpeg": {"quality": 92},
}
"""A high-ISO photo through a soft lens: blur of 0.9 pixels, noise of 12/255 at mid-grey, smeared, JPEG 92."""


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and the page.")] = Path(
        "refine-wrap-demo"
    ),
) -> None:
    """Restore a noisy photo with the shipped denoiser and refiner, and write the pictures and a comparison page."""
    import time

    from ..images import read_image, write_image
    from ..report import compare_page
    from ..resources import weights_dir
    from ..wrapper import RefineWrapper
    from .common import DEFAULT_ADAPTER, notices

    start = time.monotonic()
    with notices():
        clean = read_image(weights_dir() / PHOTO)
        noisy = _with_noise(clean)
        wrapper = RefineWrapper.from_pretrained(DEFAULT_ADAPTER)
        with wrapper.disabled():
            restored = wrapper.restore(noisy)
        refined = wrapper.restore(noisy)
        steps = {"1 noisy": noisy, "2 restored": restored, "3 refined": refined, "clean": clean}
        for name, picture in steps.items():
            write_image(out / name / "photo.png", picture, overwrite=True)
        page = compare_page(
            [out / name for name in list(steps)[:3]],
            out / "compare.html",
            reference=out / "clean",
            title="Refine-Wrap demo: a noisy photo, restored, refined",
        )
    typer.echo(_table(steps))
    typer.echo(f"Done in {time.monotonic() - start:.0f} s. Open {page} in a browser; the pictures are beside it.")


def _with_noise(clean: Picture) -> Picture:
    import numpy as np

    from ..degradation import Degradation, degrade
    from ..images import Picture

    image = clean.pixels.astype(np.float32) / 255
    return Picture(degrade(image, Degradation.model_validate(CAMERA), np.random.default_rng(SEED)))


def _table(steps: dict[str, Picture]) -> str:
    from ..evaluation import Protocol

    measures = [Protocol("PSNR"), Protocol("SSIM")]
    rows = [" " * 12 + "".join(f"{measure!s:>36}" for measure in measures)]
    for name, picture in steps.items():
        if name != "clean":
            values = (float(measure(picture.tensor(), steps["clean"].tensor())) for measure in measures)
            rows.append(f"{name:12}" + "".join(f"{value:36.4f}" for value in values))
    return "\n".join(rows)
