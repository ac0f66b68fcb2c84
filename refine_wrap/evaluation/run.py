"""Evaluate candidates against a baseline: metrics, judges that are valid, and checks of how the scores were gained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import DataError, RefineWrapError
from ..folder import PathLike
from ..resources import versions
from ..scorers.core import Scorer
from . import gaming
from .bench import Bench
from .gaming import Signs
from .gate import THRESHOLD, Validity, carried, read_validity, trainer, validity_of
from .metrics import Metric, full_reference
from .places import Outputs, Places, gather
from .result import Candidate, Evaluation, Image, Measure
from .statistics import CONFIDENCE, RESAMPLES, TIE, gain, versus

Notify = Callable[[int, int, str, "str | None"], None]
"""Called after each image as notify(done, in all, name, reason): a reason where it was left out."""
Judges = Sequence[str | Path | Scorer]


def evaluate(
    candidates: Sequence[PathLike | Outputs],
    baseline: PathLike | Outputs,
    *,
    gt: PathLike | None = None,
    lq: PathLike | None = None,
    metrics: Sequence[str | Metric] | None = None,
    judges: Judges = (),
    validity: PathLike | Iterable[Validity] | None = None,
    ranked_by: str | None = None,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
    pattern: str | None = None,
    subset: bool = False,
    border: int = 0,
    luma: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
    device: str = "cpu",
    notify: Notify | None = None,
) -> Evaluation:
    """Evaluate candidates against a baseline, image by image.

    Images are paired by name, as `pair_by_name` does it, and taken upright, without their transparency. An image that
    cannot be read in one place, or is of another size there, is left out everywhere and named in the result: all
    figures are over the same images. An input that is smaller by a whole factor is enlarged by bicubic before it is
    judged and looked at. Of a set, one image at a time is in memory.

    A judge counts where it prefers the ground truth to the input on at least 70% of the pairs, and did not train the
    candidate or the baseline. For one that does not count there is no win rate.

    Args:
        candidates: folders of outputs, adapters to run on the inputs, or `Outputs`.
        baseline: what they are compared with; the same.
        gt: folder of the ground truth. Without it there are no metrics, and no ratios of texture.
        lq: folder of the inputs.
        metrics: names as `full_reference` takes them, or metrics. None: PSNR and SSIM, with ground truth.
        judges: scorers as `load_scorer` takes them.
        validity: without pairs, where judges' validity is carried from: the JSON of an earlier evaluation with pairs,
            or what `judge_validity` gave. With pairs, their own counts.
        ranked_by: the measure by whose gain the best, the median and the worst image are shown. None: the first metric,
            or without one, the first judge that counts, or if none does, the first.
        gt_pattern, lq_pattern: how files' names are made of the common name, such as "{name}_mean".
        pattern: the same of the outputs' names. None: as the inputs'.
        subset: candidates and the baseline may lack images; these are left out and counted instead of refused.
        border: pixels left out at each side by metrics that are named.
        luma: PSNR and SSIM on Y instead of RGB.
        seed, resamples: of the bootstrap.
        device: where judges, metrics and adapters run.
        notify: called after each image.

    Raises:
        DataError: nothing to measure, a folder is missing or empty, images without a partner, names that are not
            distinct, or no image that can be used.
        RefineWrapError: an unknown metric or judge, or an adapter that cannot be loaded.
    """
    if not candidates or isinstance(candidates, (str, os.PathLike)):
        raise DataError("No candidates are given", "one or more folders of outputs, in a list")
    outputs = [each if isinstance(each, Outputs) else Outputs(each) for each in (baseline, *candidates)]
    bench = Bench(_metrics(metrics, gt is not None, border, luma), _judges(judges, device), device)
    _check_names(bench, ranked_by)
    known = read_validity(validity) if isinstance(validity, (str, os.PathLike)) else list(validity or ())
    names = {"gt_pattern": gt_pattern, "lq_pattern": lq_pattern, "pattern": pattern}
    places = gather(outputs, gt, lq, **names, subset=subset, device=device)
    images, signs, left_out = _look(bench, places, notify)
    measures = _measures(bench, places, images, known)
    ranked_by = ranked_by or _first_counted(measures)
    ranked = next(measure for measure in measures if measure.name == ranked_by)
    chosen = []
    for place in range(1, len(outputs)):
        candidate = _candidate(bench, places, images, measures, place, seed, resamples)
        candidate.flags = gaming.flags([one[place - 1] for one in signs])
        candidate.detail, candidate.noise = _ratios([one[place - 1] for one in signs])
        candidate.shown = _shown(images, ranked, place)
        chosen.append(candidate)
    return Evaluation(
        measures=measures,
        baseline=places.outputs[0].label,
        candidates=chosen,
        images=images,
        left_out=left_out,
        unused=places.unused,
        ranked_by=ranked_by,
        settings={**names, **_settings(seed, resamples)},
        data=places.about(images),
        versions=versions("torch", "numpy", "scipy", "pillow", "opencv-python"),
        places=places,
    )


def judge_validity(
    judges: Judges,
    gt: PathLike,
    lq: PathLike,
    *,
    gt_pattern: str | None = None,
    lq_pattern: str | None = None,
    device: str = "cpu",
    notify: Notify | None = None,
) -> list[Validity]:
    """How often each judge prefers the ground truth to the input, on a set of pairs; arguments as `evaluate`."""
    bench = Bench([], _judges(judges, device), device)
    places = gather([], gt, lq, gt_pattern=gt_pattern, lq_pattern=lq_pattern)
    images, _, _ = _look(bench, places, notify)
    return [measure.validity for measure in _measures(bench, places, images, ()) if measure.validity is not None]


# ---------------------------------------------------------------- what is measured


def _metrics(given: Sequence[str | Metric] | None, has_gt: bool, border: int, luma: bool) -> list[Metric]:
    if not has_gt:
        if given:
            raise DataError("Metrics are given without ground truth", "the folder of the ground truth, gt")
        return []
    return [
        each if isinstance(each, Metric) else full_reference(each, border=border, **_colour(each, luma))
        for each in (("PSNR", "SSIM") if given is None else given)
    ]


def _colour(name: str, luma: bool) -> dict[str, bool]:
    """Only these two are usual on either."""
    return {"luma": luma} if name.upper() in ("PSNR", "SSIM") else {}


def _judges(given: Judges, device: str) -> list[Scorer]:
    from ..scorers import load_scorer

    return [load_scorer(each, device=device) for each in given]


def _check_names(bench: Bench, ranked_by: str | None) -> None:
    names = [metric.name for metric in bench.metrics] + [judge.name for judge in bench.judges]
    if not names:
        raise DataError("There is nothing to measure", "ground truth for metrics, or judges", "give gt, or judges")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise DataError(f"{name} is given twice", "each metric and judge once")
    if ranked_by is not None and ranked_by not in names:
        raise DataError(f"Images cannot be ranked by {ranked_by!r}", "one of " + ", ".join(names))


def _look(
    bench: Bench, places: Places, notify: Notify | None
) -> tuple[list[Image], list[list[Signs]], list[tuple[str, str]]]:
    """All images, one after the other: figures, the candidates' signs, and what was left out."""
    images: list[Image] = []
    signs: list[list[Signs]] = []
    left_out: list[tuple[str, str]] = []
    for number, name in enumerate(places.names, 1):
        reason = None
        try:
            image, seen = bench.look(places, name)
            images.append(image)
            signs.append(seen)
        except RefineWrapError as error:
            reason = places.without_paths(error.came, name)
            left_out.append((name, reason))
        if notify is not None:
            notify(number, len(places.names), name, reason)
    if not images:
        raise DataError(
            f"None of the {len(left_out)} images can be used; the first, {left_out[0][0]}: {left_out[0][1]}",
            "images that can be read, of one size in every folder",
        )
    return images, signs, left_out


def _measures(bench: Bench, places: Places, images: list[Image], known: Iterable[Validity]) -> list[Measure]:
    known = list(known)
    pairs = [(one.gt.figures, one.lq.figures) for one in images if one.gt is not None and one.lq is not None]
    found = [Measure(each.name, str(each), each.higher_is_better, each.unit) for each in bench.metrics]
    for judge in bench.judges:
        if pairs:
            gt, lq = ([figures[judge.name] for figures in side] for side in zip(*pairs, strict=True))
            validity = validity_of(judge, gt, lq, places.pairs_name(images))
        else:
            validity = carried(known, judge)
        rises = judge.best > judge.worst
        words = f"{judge.name}, raw, {judge.worst:g} (worst) to {judge.best:g}, weights {validity.digest[:8]}"
        found.append(Measure(judge.name, words, rises, about=judge.about(), validity=validity))
    return found


# ---------------------------------------------------------------- what is found


def _first_counted(measures: Sequence[Measure]) -> str:
    return next((measure.name for measure in measures if measure.gate is None), measures[0].name)


def _candidate(
    bench: Bench,
    places: Places,
    images: list[Image],
    measures: Sequence[Measure],
    place: int,
    seed: int,
    resamples: int,
) -> Candidate:
    own, of_baseline = places.trained_on[place], places.trained_on[0]
    found = Candidate(places.outputs[place].label, own)
    for measure, judge in zip(measures, (*bench.metrics, *bench.judges), strict=True):
        who = judge if isinstance(judge, Scorer) else measure.name
        reason = measure.gate
        for whose, trained_on in (("the baseline", of_baseline), ("it", own)):
            entry = trainer(who, trained_on)
            reason = f"{whose} was trained on {entry}" if entry is not None else reason
        if reason is None:
            one = versus(
                [image.outputs[place].figures[measure.name] for image in images],
                [image.outputs[0].figures[measure.name] for image in images],
                higher_is_better=measure.higher_is_better,
                seed=seed,
                resamples=resamples,
            )
            if one is not None:
                found.versus[measure.name] = one
                continue
            reason = "has no number for any image"
        found.not_counted[measure.name] = reason
    return found


def _ratios(signs: Sequence[Signs]) -> tuple[float | None, float | None]:
    details = [one.detail for one in signs if one.detail is not None]
    noises = [one.noise for one in signs if one.noise is not None]
    return (median(details), median(noises)) if details and noises else (None, None)


def _shown(images: Sequence[Image], measure: Measure, place: int) -> dict[str, str]:
    """Names of the images where the candidate gains most, least, and in the middle."""
    gains = []
    for image in images:
        own, of_baseline = (image.outputs[number].figures[measure.name] for number in (place, 0))
        value = gain(own, of_baseline, measure.higher_is_better)
        if value is not None:
            gains.append((value, image.name))
    if not gains:
        return {}
    gains.sort()
    return {"best": gains[-1][1], "median": gains[(len(gains) - 1) // 2][1], "worst": gains[0][1]}


def _settings(seed: int, resamples: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "win_rate": f"share of images, ties half; numbers that differ by at most {TIE:g} of themselves are a tie",
        "interval": "percentile bootstrap over images; Clopper-Pearson where all images agree",
        "test": "two-sided sign test, ties left out",
        "validity": f"the judge prefers the ground truth to the input on at least {THRESHOLD:.0%} of the pairs",
        "input": "enlarged by bicubic (Pillow) where it is smaller",
        "high_frequency": f"luma energy above {gaming.FREQUENCY} cycles a pixel, {gaming.BLOCK}-pixel blocks",
        "high_frequency_limits": list(gaming.DETAIL_LIMITS),
        "noise": "median of the diagonal Haar coefficients / 0.6745, luma, levels of 255",
        "noise_limit": gaming.NOISE_LIMIT,
        "flagged_from_share_of_images": gaming.IMAGES_LIMIT,
        "copy_psnr": gaming.COPY_PSNR,
    }
