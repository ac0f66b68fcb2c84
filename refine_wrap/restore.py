"""The whole way of an image: read, cut into tiles, restore, refine, clamp, write at the depth it came in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .backbone import check_image
from .errors import ImageError, RefineWrapError, check_share
from .images import Picture, bleed_alpha, read_image, resize_alpha, write_image
from .tiling import (
    LayerTrace,
    TilePlan,
    is_out_of_memory,
    measure_tiling,
    memory_budget,
    plan_tiles,
    run_tiles,
    trace_layers,
)

if TYPE_CHECKING:
    from .scorers import Scorer
    from .wrapper import RefineWrapper

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Notify = Callable[[int, int], None]
Networks = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]
Made = TypeVar("Made", list[Picture], list[Tensor])


def restore(
    wrapper: RefineWrapper,
    image: str | Path | Picture | Tensor,
    output: str | Path | None = None,
    *,
    strength: float | Tensor | None = None,
    quality: float | Tensor | None = None,
    tile: int | str | None = "auto",
    halo: int | None = None,
    dtype: str = "float32",
    bits: int | None = None,
    overwrite: bool = False,
    guard: DoNoHarm | None = None,
    notify: Notify | None = None,
) -> Picture | Tensor:
    """Restore one image, of any size, in bounded memory.

    Grey stays grey, alpha is carried (the colour under it is extended from its edge first), depth, ICC and EXIF are
    kept. Tiles equal the whole within 1/255 where the halo covers the receptive field; where they cannot, a warning
    says once how far they are. A tile that runs out of memory is halved and done again; one that is not finite in a
    half type is done again in float32.

    Args:
        wrapper: what restores; it runs in evaluation mode on its own device.
        image: a file, a `Picture`, or a tensor (B, 3, H, W) in [0, 1].
        output: file to write, by its suffix; None writes nothing.
        strength: in [0, 1], a number, or (B,) for a tensor; None is the adapter's default.
        quality: the same, for a wrapper that knows it.
        tile: "auto", a side in input pixels, or None for the whole image at once.
        halo: input pixels around a tile; None is the receptive field, at most 96.
        dtype: "float32", "bfloat16" or "float16", by autocast.
        bits: 8 or 16 for the output; None as it came.
        overwrite: replace an existing `output`.
        guard: keeps what the bare backbone makes where a judge finds the result worse; see `DoNoHarm`.
        notify: called with (tiles done, tiles in all).

    Returns:
        A `Picture` for a file or a `Picture`, a tensor in [0, 1] for a tensor.

    Raises:
        ImageError: the image cannot be read, or the result is not finite.
        OutputError: the output cannot be written.
        RefineWrapError: an argument is wrong, or memory runs out at the smallest tile.
    """
    wrapper.check_dials(strength, quality)
    if isinstance(image, Tensor):
        check_image(image)
    options: dict[str, Any] = {"tile": tile, "halo": halo, "notify": notify}
    batch = image if isinstance(image, Tensor) else torch.empty(1)
    dials = zip(_each(strength, batch, "strength"), _each(quality, batch, "quality"), strict=True)
    networks = [_networks(wrapper, *pair, dtype) for pair in dials]
    if isinstance(image, Tensor):
        if not bool(torch.isfinite(image).all()):
            raise ImageError("The image holds values that are not finite", "values in [0, 1]")
        if output is not None:
            raise RefineWrapError("A tensor is restored and an output file is named", "a file or a Picture for that")
        each = zip(networks, image, strict=True)
        made = [_kept(wrapper, guard, partial(_restore_tensor, wrapper, *one, **options)) for one in each]
        return torch.stack([one for some in made for one in some])
    picture = image if isinstance(image, Picture) else read_image(image)
    [result] = _kept(wrapper, guard, partial(_restore_pictures, wrapper, networks[0], [picture], **options))
    if output is not None:
        write_image(output, result, bits=bits, overwrite=overwrite)
    return result


def restore_pictures(
    wrapper: RefineWrapper,
    pictures: Sequence[Picture],
    *,
    strength: float | None = None,
    quality: float | None = None,
    tile: int | str | None = "auto",
    halo: int | None = None,
    dtype: str = "float32",
    guard: DoNoHarm | None = None,
    notify: Notify | None = None,
) -> list[Picture]:
    """Restore pictures of one size: together where they fit into memory as wholes, else one after the other.

    Together they run through the network as one batch, which keeps a GPU busy with small pictures. Each is restored as
    by itself, within rounding. Arguments and errors are those of `restore`.

    Raises:
        RefineWrapError: they are not of one size.
    """
    sizes = {(picture.height, picture.width) for picture in pictures}
    if len(sizes) > 1:
        raise RefineWrapError(f"Pictures of {len(sizes)} sizes are to be restored together", "one size")
    wrapper.check_dials(strength, quality)
    check_share(strength=strength, quality=quality)
    networks = _networks(wrapper, strength, quality, dtype)
    groups = [[picture] for picture in pictures]
    if len(pictures) > 1 and plan_for(wrapper, *sizes.pop(), tile, halo, count=len(pictures)).tile is None:
        groups = [list(pictures)]
    make = partial(_restore_pictures, wrapper, networks, tile=tile, halo=halo, notify=notify)
    return [made for group in groups for made in _kept(wrapper, guard, partial(make, group))]


class DoNoHarm:
    """A judge that has the backbone's own output kept where what was added to it makes a picture worse.

    Args:
        judge: what `load_scorer` takes; a scorer that the wrapper was trained on is refused.
        device: where it runs.
    """

    def __init__(self, judge: str | Path | Scorer, device: str | torch.device = "cpu") -> None:
        from .scorers import load_scorer

        self.judge = load_scorer(judge, device=device)
        self.seen, self.kept = 0, 0
        """Pictures, and those of which the backbone's output was kept."""

    def check(self, wrapper: RefineWrapper) -> None:
        """Raises RefineWrapError: nothing was added, or the judge, or a part of it, trained what is to be judged."""
        from .evaluation.gate import trainer

        if wrapper.refiner is None and wrapper.quality_head is None:
            raise RefineWrapError(
                "Nothing was added to this backbone: there is nothing that a judge could keep out", "an adapter"
            )
        entry = trainer(self.judge, wrapper.scorers)
        if entry is not None:
            raise RefineWrapError(
                f"{self.judge.name} cannot judge this adapter, which was trained on {entry}", "another scorer"
            )

    @torch.no_grad()
    def worse(self, result: Picture | Tensor, bare: Picture | Tensor) -> bool:
        """Whether the result scores below what the bare backbone makes."""
        device = next((t.device for t in (*self.judge.parameters(), *self.judge.buffers())), torch.device("cpu"))
        images = (each.tensor() if isinstance(each, Picture) else each[None] for each in (result, bare))
        ours, theirs = (float(self.judge.raw(image.to(device))) for image in images)
        low = self.judge.best < self.judge.worst
        harm = not (ours <= theirs if low else ours >= theirs)  # no number: harm
        self.seen, self.kept = self.seen + 1, self.kept + harm
        return harm


def _kept(wrapper: RefineWrapper, guard: DoNoHarm | None, make: Callable[[], Made]) -> Made:
    """What is made, or where a guard finds it worse, what the bare backbone makes."""
    results = make()
    if guard is None:
        return results
    guard.check(wrapper)
    with wrapper.disabled():
        bare = make()
    kept: Made = [b if guard.worse(result, b) else result for result, b in zip(results, bare, strict=True)]
    return kept


def _each(dial: float | Tensor | None, batch: Tensor, name: str) -> Sequence[float | None]:
    """The dial of each image of a batch. Raises RefineWrapError, ImageError."""
    from .quality.condition import quality_values

    if isinstance(dial, Tensor):
        values: list[float] = quality_values(dial, batch, name).tolist()
        return values
    check_share(**{name: dial})
    return [dial] * len(batch)


def _restore_pictures(
    wrapper: RefineWrapper, networks: Networks, pictures: Sequence[Picture], **options: Any
) -> list[Picture]:
    """Pictures of one size, as one batch."""
    pictures = [bleed_alpha(picture) for picture in pictures]
    height, width = pictures[0].height, pictures[0].width
    results = [picture.blank_like(height * wrapper.scale, width * wrapper.scale) for picture in pictures]
    device = wrapper.backbone.device

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        return torch.cat([picture.tensor(top, left, height, width) for picture in pictures]).to(device)

    def write(top: int, left: int, part: Tensor) -> None:
        for result, one in zip(results, torch.split(part, 1), strict=True):
            result.put(top, left, one)

    _run(wrapper, networks, read, write, height, width, **options)
    for picture, result in zip(pictures, results, strict=True):
        result.alpha = resize_alpha(picture, result.height, result.width)
    return results


def _restore_tensor(wrapper: RefineWrapper, networks: Networks, image: Tensor, **options: Any) -> list[Tensor]:
    _, height, width = image.shape
    result = image.new_empty(3, height * wrapper.scale, width * wrapper.scale)
    device = wrapper.backbone.device

    def read(top: int, left: int, h: int, w: int) -> Tensor:
        return image[None, :, top : top + h, left : left + w].to(device)

    def write(top: int, left: int, part: Tensor) -> None:
        result[:, top : top + part.shape[-2], left : left + part.shape[-1]] = part[0].clamp(0, 1)

    _run(wrapper, networks, read, write, height, width, **options)
    return [result]


def _run(
    wrapper: RefineWrapper,
    networks: Networks,
    read: Callable[[int, int, int, int], Tensor],
    write: Callable[[int, int, Tensor], None],
    height: int,
    width: int,
    *,
    tile: int | str | None,
    halo: int | None,
    notify: Notify | None,
) -> None:
    plan = plan_for(wrapper, height, width, tile, halo)
    if plan.tile is not None and not plan.exact:
        _notice(wrapper, plan)
    network, float32 = networks
    with _evaluating(wrapper), torch.inference_mode():
        run_tiles(
            network,
            read,
            write,
            height=height,
            width=width,
            scale=wrapper.scale,
            tile=plan.tile,
            halo=plan.halo,
            multiple_of=wrapper.tile_grid,
            float32=float32,
            notify=notify,
        )


@contextmanager
def _evaluating(wrapper: RefineWrapper) -> Iterator[None]:
    """Inside, the wrapper is in evaluation mode; after, as it was."""
    was_training = wrapper.training
    wrapper.eval()
    try:
        yield
    finally:
        wrapper.train(was_training)


def _networks(wrapper: RefineWrapper, strength: float | None, quality: float | None, dtype: str) -> Networks:
    """The wrapper as image -> float32 image in the asked type, and in float32 where that is another."""
    if dtype not in DTYPES:
        raise RefineWrapError(f"dtype is {dtype!r}", "one of " + ", ".join(DTYPES))
    if dtype == "float16" and not wrapper.backbone.spec.half_ok:
        raise RefineWrapError(
            f"float16 is not declared safe for {wrapper.backbone.spec.family}", "float32 or bfloat16 for this backbone"
        )

    def plain(image: Tensor) -> Tensor:
        result: Tensor = wrapper(image, strength, quality)
        return result

    if dtype == "float32":
        return plain, None

    def low(image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, DTYPES[dtype]):
            return plain(image).float()

    return low, plain


def trace(wrapper: RefineWrapper) -> LayerTrace:
    """What the layers of the wrapper say of its receptive field, memory and cost; worked out once for each wrapper."""
    if wrapper.layers is None:
        if wrapper.is_disabled:  # what was added reaches further than the bare backbone
            with wrapper.disabled(False):
                return trace(wrapper)
        grid = wrapper.tile_grid
        side = -(-max(64, wrapper.backbone.spec.minimum) // grid) * grid
        wrapper.layers = trace_layers(wrapper, side, side, device=wrapper.backbone.device, dtype=wrapper.backbone.dtype)
    return wrapper.layers


def plan_for(
    wrapper: RefineWrapper,
    height: int,
    width: int,
    tile: int | str | None = "auto",
    halo: int | None = None,
    count: int = 1,
) -> TilePlan:
    """How an image of (height, width), or each of a batch of `count`, would be cut."""
    return plan_tiles(
        trace(wrapper),
        height,
        width,
        tile=tile,
        halo=halo,
        multiple_of=wrapper.tile_grid,
        exact=wrapper.exact_tiles,
        available_bytes=memory_budget(wrapper.backbone.device) // count,
    )


def tile_difference(wrapper: RefineWrapper, halo: int) -> float:
    """Largest |tiled - whole| on a small photo-like picture, in [0, 1]: what tiles of 64 pixels with this halo cost."""
    grid = wrapper.tile_grid
    tile = -(-64 // grid) * grid
    with _evaluating(wrapper):
        return measure_tiling(
            wrapper,
            scale=wrapper.scale,
            multiple_of=grid,
            tile=tile,
            halo=halo,
            size=(tile, 3 * tile),
            device=wrapper.backbone.device,
        )


def _notice(wrapper: RefineWrapper, plan: TilePlan) -> None:
    """Say once for each wrapper that its tiles are not exact, and by how much."""
    if wrapper.tiles_noticed:
        return
    wrapper.tiles_noticed = True
    reasons = ", ".join(trace(wrapper).global_operations[:3]) or f"a receptive field of {plan.receptive_radius} pixels"
    try:
        cost = f"largest difference {tile_difference(wrapper, plan.halo) * 255:.2g}/255 on a test picture"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cost = "by how much could not be measured in the memory there is"
    warnings.warn(
        f"Tiles of {plan.tile} pixels with a halo of {plan.halo} do not equal the whole image with "
        f"{wrapper.backbone.spec.family} ({reasons}): {cost}. "
        "tile=None runs the whole image at once where memory allows.",
        stacklevel=5,
    )
