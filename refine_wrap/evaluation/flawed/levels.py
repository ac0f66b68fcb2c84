"""How flawed the ground truths of a pristine-referenced test set are, by level.

What kind of flaw each level has is that of a real data set. How much of it is a choice: of 209 sharp photos (CID22, the
central 256x256), level 1 lies 40.9 dB from the pristine photo, level 2 33.8 dB and level 3 30.0 dB in the mean, and of
each photo in this order. Only the JPEG settings could be read from real files: PolyU's 100 ground truths have
quality 75 and 4:2:0, and 19 photos from the web (CC0) a median quality of 84, half of them with 4:2:0.
"""

from __future__ import annotations

from ...degradation.settings import Blur, Degradation, Jpeg, Noise, Section


class Level(Section):
    """One strength of flaws."""

    stands_for: str
    """The real ground truths that have such flaws."""
    flaws: Degradation
    """What is drawn, in a recipe's words."""


def _noise(sigma: list[float], correlation: list[float]) -> Noise:
    """What a sensor leaves: mostly shot noise in linear light, smeared by demosaicking."""
    return Noise(kind="poisson-gaussian", sigma=sigma, shot=[0.7, 0.95], linear_light=True, correlation=correlation)


LEVELS = {
    1: Level(
        stands_for="Means of many frames, as SIDD's ground truth: registering them leaves a slight blur, averaging a "
        "rest of noise; compression hardly shows.",
        flaws=Degradation(
            blur=Blur(sigma=[0.36, 0.42], anisotropic=0.5),
            noise=_noise([0.5, 1.0], [0.3, 0.5]),
            jpeg=Jpeg(quality=[96, 98], subsampling="4:4:4"),
        ),
    ),
    2: Level(
        stands_for="Single photos from phones and the web: soft from lens and demosaicking, with the noise that the "
        "camera left, and its JPEG.",
        flaws=Degradation(
            blur=Blur(sigma=[0.43, 0.49], anisotropic=0.5),
            noise=_noise([1.2, 1.8], [0.3, 0.6]),
            jpeg=Jpeg(quality=[84, 92], subsampling="4:2:0"),
        ),
    ),
    3: Level(
        stands_for="Frames of a hand-held high-speed camera, as GoPro's ground truth: a streak of the shake within one "
        "exposure, the noise of a short exposure, and compression as strong as that of PolyU's ground truth.",
        flaws=Degradation(
            blur=Blur(sigma=[0.5, 0.55], anisotropic=0.5, motion=[1.2, 2.0]),
            noise=_noise([2.0, 3.0], [0.4, 0.7]),
            jpeg=Jpeg(quality=[75, 82], subsampling="4:2:0"),
        ),
    ),
}
"""The flaws of the ground truth: 1 mild to 3 strong. Of each part the ranges lie apart, so that levels never swap."""
