"""Enhanced ground truths of a folder of pictures: what training takes in place of ground truths that are flawed."""

from __future__ import annotations

import errno
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .. import __version__
from ..backbone import Backbone, load_backbone
from ..backbone.checkpoint import tensors_digest
from ..errors import DataError, ImageError, RefineWrapError
from ..folder import IMAGE_SUFFIXES, PathLike, list_images, plan_outputs
from ..folder import shard as shard_of
from ..images import read_image, write_image
from ..manifests import ANOTHER, is_right, source_digest
from ..pipeline import OnDone, Tally
from ..resources import file_digest, versions
from ..tiling import is_out_of_memory
from .change import BANDS
from .enhancer import Enhancer, FolderVariants, NetworkVariants, Variants
from .load import load_mask_generator
from .manifest import EnhancedPicture, Manifest, ManifestFile, Settings
from .masks import FrequencyMaskGenerator

MASKS, SR = "shipped:masks", "shipped:sr_x2"
"""The mask generator and the super-resolver that come with the package."""
MIN_FIDELITY = 33.0
"""dB below which a picture is flagged, unless told otherwise. Measured on crops of photos, sharp and flawed: the plain
average with variants by RealESRGAN x4plus is at 33.4 to 37 (3 photos), by realesr-animevideov3 at 36 to 40 (9 photos);
their x2 variants alone at 30 to 32.4 and at 33 to 36; a photo that is moved by one pixel at 27 to 33."""
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class EnhanceTally(Tally):
    """What became of the pictures of one run."""

    flagged: list[str] = field(default_factory=list)
    """Those whose fidelity is below the bound, done or skipped, by their path below the output folder."""
    limited: int = 0
    """Those of which a limit took some of the change back."""


def enhance(
    gt: PathLike,
    out: PathLike,
    *,
    masks: str | Path | FrequencyMaskGenerator = MASKS,
    sr: str | Path | nn.Module | None = None,
    variants: PathLike | None = None,
    strength: float = 0.3,
    max_change: float | None = None,
    min_psnr: float | None = None,
    min_fidelity: float = MIN_FIDELITY,
    tile: int | str | None = "auto",
    ext: str | None = None,
    recursive: bool = True,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    device: str | torch.device = "cpu",
    on_done: OnDone | None = None,
) -> EnhanceTally:
    """Write the enhanced ground truth of each picture, or go on with that: what is there and right is left alone.

    Names, subfolders, format, depth, alpha, ICC and EXIF are kept. `manifest.json` tells the settings, and for each
    picture its hashes and what changed. Several processes may work on one folder.

    Args:
        gt: a folder of ground truths, or one.
        out: the output folder.
        masks: as `load_mask_generator` takes it.
        sr: the super-resolver that makes the variants, as `load_backbone` takes it; None: the shipped one.
        variants: in place of `sr`, a folder of ready variants, which has x2/NAME, x3/NAME and x4/NAME for each
            picture, of its size and of any suffix.
        strength: in [0, 1]: 0 keeps the ground truth, 1 asks for the most detail.
        max_change: no value changes by more than this share of the full range, in (0, 1]; None: no limit.
        min_psnr: dB. Where a picture is farther from its ground truth, all of its change is made smaller by one factor.
            38 leaves a photo as it is for the eye. None: no limit.
        min_fidelity: dB. A picture is flagged where it is farther from its ground truth, both at a quarter of their
            sides: something may have been drawn that was not there.
        tile: of the super-resolver: "auto", a side in pixels, or None for the whole picture at once.
        ext: another format for the outputs, such as "png": JPEG loses some of what is gained. None: each its own.
        recursive: take the folders below, too.
        shard: (index, count): only this process's part of the pictures, see `folder.shard`.
        overwrite: make everything anew, with other settings too.
        device: where the networks run.
        on_done: called for each picture, with the outcome.

    Returns:
        The counts, and for each picture that failed the reason: unreadable, a variant is missing or has another size,
        or the folder has one of that name that was made of another picture.

    Raises:
        RefineWrapError: an argument is out of range, or the networks cannot be had.
        DataError: no pictures, the ready variants are others than the generator's, or `out` has other settings.
        OutputError: the manifest cannot be written, or the disk is full.
    """
    _check(strength, max_change, min_psnr, min_fidelity)
    root, base = Path(gt), Path(out)
    if sr is not None and variants is not None:
        raise RefineWrapError("A super-resolver and a folder of ready variants are given together", "one of them")
    if base.suffix.lower() in IMAGE_SUFFIXES and not base.is_dir():
        raise RefineWrapError(f"The output {base} is a file by its name", "a folder")
    planned = plan_outputs(list_images(root, recursive, skip=base), root, base, ext=ext)
    jobs = shard_of(planned, *shard)
    generator = load_mask_generator(masks, device=device)
    factors = generator.factors
    network: Backbone | None = None
    source: Variants
    if variants is not None:
        source = FolderVariants(variants, factors, [_below(path, root) for path, _ in planned])
    else:
        network = load_backbone(SR if sr is None else sr, device=device)
        source = NetworkVariants(network, factors, tile)
    manifest = ManifestFile.open(
        base,
        Manifest(
            refine_wrap=__version__,
            made_with=versions("torch", "numpy"),
            masks=_called(masks),
            scorers=list(generator.scorers),
            sr=None if network is None else _called(SR if sr is None else sr),
            settings=Settings(
                strength=float(strength),
                masks=tensors_digest(generator.state_dict()),
                masks_config=generator.config(),
                sr=None if network is None else network.weights_hash(),
                factors=list(factors),
                max_change=None if max_change is None else float(max_change),
                min_psnr=None if min_psnr is None else float(min_psnr),
                ext=None if ext is None else ext.lower().removeprefix("."),
            ),
            min_fidelity=float(min_fidelity),
            bands=[round(edge, 4) for edge in BANDS],
            pictures={},
        ),
        [target for _, target in jobs],
        overwrite,
    )
    enhancer = Enhancer(generator, source, strength, max_change, min_psnr)
    tally = EnhanceTally()
    lossy = 0
    try:
        for path, target in jobs:
            worker = _Worker(enhancer, manifest, path, _below(path, root), target, overwrite)
            outcome, message = "failed", None
            try:
                made = worker.run()
            except RefineWrapError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _HOPELESS:
                    raise
                message = str(error)
                tally.failed.append((path, message))
            else:
                outcome = "done" if made else "skipped"
                tally.done += outcome == "done"
                tally.skipped += outcome == "skipped"
                lossy += made and target.suffix.lower() in (".jpg", ".jpeg")
                entry = manifest.entries[worker.name]
                tally.limited += entry.change.limited
                tally.flagged += [worker.name] if entry.flagged else []
            if on_done is not None:
                on_done(path, target, outcome, message)
    finally:
        manifest.flush()
    if lossy:
        warnings.warn(
            f"{lossy} of {tally.done} enhanced pictures are JPEG files like their ground truths: compressed once more, "
            "they lose some of what was gained. ext='png' (--ext png) keeps it",
            stacklevel=2,
        )
    return tally


def _check(strength: float, max_change: float | None, min_psnr: float | None, min_fidelity: float) -> None:
    if not 0 <= strength <= 1:
        raise RefineWrapError(f"strength is {strength}", "a number in [0, 1]")
    if max_change is not None and not 0 < max_change <= 1:
        raise RefineWrapError(f"max_change is {max_change}", "a share of the full range in (0, 1], such as 0.1")
    for name, bound in (("min_psnr", min_psnr), ("min_fidelity", min_fidelity)):
        if bound is not None and not (math.isfinite(bound) and 0 <= bound <= 120):
            raise RefineWrapError(f"{name} is {bound}", "a number of dB from 0 to 120, such as 38")


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root.is_dir() else path.name


def _called(source: object) -> str:
    """What a network was asked for by, without the place of a file on this machine."""
    if isinstance(source, nn.Module):
        return type(source.module if isinstance(source, Backbone) else source).__name__
    path = Path(str(source))
    return path.name if path.exists() else str(source)  # else a name on the Hub, or of what comes with the package


@dataclass
class _Worker:
    """One picture of the folder."""

    enhancer: Enhancer
    manifest: ManifestFile
    source: Path
    below: str
    """The ground truth's path below its folder."""
    target: Path
    overwrite: bool

    @property
    def name(self) -> str:
        """The enhanced picture's path below its folder."""
        return self.target.relative_to(self.manifest.out).as_posix()

    def run(self) -> bool:
        """Whether something had to be made. Raises RefineWrapError."""
        digest = source_digest(self.source, self.below)
        variants = self.enhancer.variants.digests(self.below)
        entry = self.manifest.entries.get(self.name)
        if entry is not None and not self.overwrite:
            if (entry.source, entry.sha256, entry.variants) != (self.below, digest, variants):
                same = (entry.source, entry.sha256) == (self.below, digest)
                raise DataError(
                    f"{self.target} was made of {'other variants' if same else 'another picture'} than {self.source} "
                    + ("has now" if same else "is now"),
                    "the same as before",
                    f"{ANOTHER} to make all of it anew",
                )
            if is_right(self.target, entry.output):
                return False
        try:
            picture, change = self.enhancer(read_image(self.source), self.below)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                f"{self.source} does not fit into memory", "about 120 bytes a pixel", "use a machine with more memory"
            ) from error
        write_image(self.target, picture, overwrite=True)
        made = EnhancedPicture(
            source=self.below,
            sha256=digest,
            variants=variants,
            output=file_digest(self.target),
            change=change,
            flagged=False,
        )
        self.manifest.add(self.name, made.judged(self.manifest.settings.min_fidelity))
        return True
