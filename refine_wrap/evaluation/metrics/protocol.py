"""Full-reference metrics by name, each with the protocol that a published number depends on.

The same pair of images gives figures some tenths of a dB apart between RGB and luma, with and without the border, and
before and after rounding to 8 bits. A metric here is therefore made with those choices, and printing it writes them
beside the number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import ImageError, RefineWrapError
from . import fsim as phase
from . import structure
from .colour import ciede2000
from .metric import Metric, depth, version
from .nlpd import nlpd
from .strips import Colour, Rows, checked, prepared


@dataclass(frozen=True)
class _Measure:
    """What stands behind a name of `Protocol`."""

    of: Callable[[Rows, Rows], Tensor]
    words: str
    colour: Colour
    """What it takes."""
    space: str
    """The same in words."""
    smallest: int = 1
    higher_is_better: bool = True
    unit: str = ""


_GREY = "grey (BT.601)"
_MEASURES: dict[tuple[str, bool], _Measure] = {
    # (name, luma); the first of a name is what it is without a word about colour.
    ("PSNR", False): _Measure(structure.psnr, "PSNR", "RGB", "RGB", unit="dB"),
    ("PSNR", True): _Measure(structure.psnr, "PSNR", "luma", "Y (BT.601)", unit="dB"),
    ("SSIM", False): _Measure(structure.ssim, "SSIM", "RGB", "RGB", structure.WINDOW),
    ("SSIM", True): _Measure(structure.ssim, "SSIM", "luma", "Y (BT.601)", structure.WINDOW),
    ("MS-SSIM", True): _Measure(structure.ms_ssim, "MS-SSIM", "grey", _GREY, 16 * structure.WINDOW),
    ("FSIM", False): _Measure(phase.fsim, "FSIMc", "RGB", "YIQ", phase.SMALLEST),
    ("FSIM", True): _Measure(phase.fsim_grey, "FSIM", "RGB", _GREY, phase.SMALLEST),
    ("GMSD", True): _Measure(structure.gmsd, "GMSD", "grey", _GREY, 4, False),
    ("VIF", True): _Measure(structure.vif, "VIF in the pixel domain", "grey", _GREY, 41),
    ("NLPD", True): _Measure(nlpd, "NLPD", "grey", _GREY, 17, False),
    ("CIEDE2000", False): _Measure(ciede2000, "CIEDE2000", "RGB", "CIELAB of sRGB (D65)", 1, False),
}


@dataclass(frozen=True)
class Protocol(Metric):
    """A metric that needs nothing but the two images.

    >>> str(Protocol("SSIM", luma=True, border=4))
    'SSIM, Y (BT.601), 8-bit, border 4'

    Memory beside the two images: some MB of strips for PSNR, SSIM, CIEDE2000 and FSIM, which reduces images to about
    256 pixels first; GMSD, MS-SSIM, NLPD and VIF keep both at half the height and width, 5 bytes a pixel.

    Args:
        metric: PSNR, SSIM, MS-SSIM, FSIM, GMSD, VIF, NLPD or CIEDE2000.
        border: pixels left out at each edge.
        luma: measure on BT.601 luma in place of the colours, for PSNR and SSIM with Y from 16 to 235 as BasicSR and
            MATLAB. FSIM knows both as well (FSIMc and FSIM); CIEDE2000 has colours only and the others grey only, as
            they were published. None: what is usual, colours where there is a choice.
        eight_bit: round to 8 bits first, as if both had been saved as 8-bit files. Luma itself is never rounded.

    Raises:
        ImageError: there is no such metric, or it is not defined for that colour.
    """

    metric: str = "PSNR"
    border: int = 0
    luma: bool | None = None
    eight_bit: bool = True

    def __post_init__(self) -> None:
        known = [luma for name, luma in _MEASURES if name == self.metric]
        if not known:
            names = dict.fromkeys(name for name, _ in _MEASURES)
            raise ImageError(f"{self.metric!r} is not a metric of two images alone.", ", ".join(names))
        if self.luma is None:
            object.__setattr__(self, "luma", known[0])
        if self.luma not in known:
            raise ImageError(
                f"{self.metric} is not defined for {'luma alone' if self.luma else 'colours'}.", f"luma={known[0]}"
            )

    @property
    def _measure(self) -> _Measure:
        return _MEASURES[self.metric, bool(self.luma)]

    @property
    def name(self) -> str:
        return self.metric

    @property
    def higher_is_better(self) -> bool:
        return self._measure.higher_is_better

    @property
    def unit(self) -> str:
        return self._measure.unit

    @property
    def smallest(self) -> int:
        return 2 * self.border + self._measure.smallest

    def __str__(self) -> str:
        words = f"{self._measure.words}, {self._measure.space}, {depth(self.eight_bit)}, border {self.border}"
        return words + (f", {version('scikit-image')}" if self.metric == "CIEDE2000" else "")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        measure = self._measure
        ready = partial(prepared, colour=measure.colour, eight_bit=self.eight_bit)
        a, b = checked(a, b, self.border, measure.smallest)
        return measure.of(Rows(a, ready), Rows(b, ready))


def psnr(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, eight_bit: bool = True) -> Tensor:
    """`Protocol("PSNR", ...)(a, b)`: (B,) in dB, `inf` where the two images are identical.

    With `eight_bit` it equals `basicsr.metrics.calculate_psnr` on the two 8-bit images.
    """
    return Protocol("PSNR", border, luma, eight_bit)(a, b)


def ssim(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, eight_bit: bool = True) -> Tensor:
    """`Protocol("SSIM", ...)(a, b)`: (B,), at most 1; exactly 1 where the two images are identical.

    Wang et al. 2004: Gaussian window of 11x11 with sigma 1.5, only where it lies wholly inside the image, K1 = 0.01,
    K2 = 0.03; the mean over pixels and channels. No downsampling beforehand. With `eight_bit` it equals
    `basicsr.metrics.calculate_ssim` on the two 8-bit images.
    """
    return Protocol("SSIM", border, luma, eight_bit)(a, b)


def full_reference_names() -> list[str]:
    """What `full_reference` takes."""
    from .features import FEATURE_METRICS

    return [*dict.fromkeys(name for name, _ in _MEASURES), *FEATURE_METRICS]


def full_reference(name: str, **options: Any) -> Metric:
    """A full-reference metric by name, e.g. `full_reference("GMSD", border=4)`.

    Args:
        name: one of `full_reference_names()`, whatever its case, or NAME=FILE for one with weights from a file.
        options: `border` and `eight_bit` of all, `luma` as `Protocol`; `file` of squeeze, LPIPS and DISTS, `input` of
            squeeze and `net` of LPIPS, see `feature_nets`.

    Raises:
        RefineWrapError: there is no such metric or option, or a package or a file of weights is missing.

    Memory: PSNR to CIEDE2000 as `Protocol`; squeeze in tiles, 1 GB at most for one pair. LPIPS and DISTS take an image
    whole: 0.3 GB a megapixel for LPIPS with alex, 2.4 with vgg, and 1.5 for DISTS.
    """
    from .features import FEATURE_METRICS

    plain, _, file = name.partition("=")
    names = {each.lower(): each for each in full_reference_names()}
    found = names.get(plain.lower())
    if found is None:
        near = get_close_matches(plain.lower(), names, 1)
        raise RefineWrapError(
            f"There is no full-reference metric {plain!r}",
            ", ".join(names.values()),
            f"did you mean {names[near[0]]}?" if near else None,
        )
    build = FEATURE_METRICS.get(found) or partial(Protocol, found)
    if file:
        options["file"] = file
    known = [option for option in inspect.signature(build).parameters if option != "metric"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise RefineWrapError(f"{found} has no option {unknown[0]!r}", ", ".join(known))
    return build(**options)
