"""What a recipe says about degradation, as strict models. Nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, core_schema


class Section(BaseModel):
    """A part of a recipe: unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def cross(key: str, came: str, expected: str, next_step: str = "") -> PydanticCustomError:
    """A refusal of values that do not go together; `key` is where the line is taken from."""
    context = {"key": key, "came": came, "expected": expected, "next_step": next_step}
    return PydanticCustomError("cross", "values that do not go together", context)


@dataclass(frozen=True)
class Between:
    """Marks a `list[float]` or `list[int]` field as a range [low, high] within bounds; one number means both ends."""

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._pair, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        number = {**handler(schema)["items"], "minimum": self.low, "maximum": self.high}
        return {"anyOf": [number, {"type": "array", "items": number, "minItems": 2, "maxItems": 2}]}

    def _pair(self, value: Any) -> Any:
        pair = value if isinstance(value, list) else [value, value]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in pair)
        if len(pair) != 2 or not numbers or not self.low <= pair[0] <= pair[1] <= self.high:
            raise PydanticCustomError("range", "is no range in bounds", {"expected": self.words()})
        return pair

    def words(self) -> str:
        """The accepted values, for people."""
        return f"[low, high] with {self.low:g} <= low <= high <= {self.high:g}, or one number for both"


def _at_home(value: str | None) -> str | None:
    """`~` to the home folder; Hub and shipped addresses stay."""
    return str(Path(value).expanduser()) if value is not None and value.startswith("~") else value


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
Share = Annotated[float, Field(ge=0, le=1)]
Match = Literal["none", "lab", "low-frequency"]
PAINTED = 16
"""Low-quality pixels around a crop that a reconstructor is shown."""


class Blur(Section):
    """Gaussian blur and shake, applied to the ground truth before it is made smaller."""

    sigma: Annotated[list[float], Between(0, 20)] = [0.2, 2.0]
    """Standard deviation in ground-truth pixels, drawn evenly from [low, high]."""
    anisotropic: Share = 0.0
    """Share of the blurred samples whose blur has two different sigmas, along a random direction."""
    motion: Annotated[list[float], Between(0, 50)] = [0.0, 0.0]
    """Length of a straight streak in a random direction, as shake leaves it, in pixels drawn from [low, high]."""
    probability: Share = 1.0
    """Share of the samples that are blurred at all."""


class Noise(Section):
    """Noise, added after the image is made smaller."""

    kind: Literal["gaussian", "poisson-gaussian"] = "gaussian"
    """gaussian: of one strength everywhere. poisson-gaussian: shot noise that grows with the light, plus read noise."""
    sigma: Annotated[list[float], Between(0, 200)] = [1.0, 25.0]
    """Standard deviation in 1/255, drawn evenly from [low, high]. For poisson-gaussian: that of mid-grey (0.5)."""
    shot: Annotated[list[float], Between(0, 1)] = [0.3, 0.9]
    """poisson-gaussian: share of shot noise in mid-grey's variance, drawn from [low, high]; the rest is read noise."""
    linear_light: bool = False
    """poisson-gaussian: add the noise to linear light (sRGB curve undone), as a sensor does, and curve it back."""
    correlation: Annotated[list[float], Between(0, 5)] = [0.0, 0.0]
    """Blur of the noise itself, sigma in pixels drawn from [low, high], as demosaicking leaves it; strength is kept."""
    grey: Share = 0.0
    """Share of the samples whose noise is the same in red, green and blue."""
    channel_spread: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Each channel's noise is scaled by a factor drawn from [1 - spread, 1 + spread], as white balance does."""
    probability: Share = 1.0
    """Share of the samples that get noise at all."""


class Jpeg(Section):
    """JPEG compression, applied last."""

    quality: Annotated[list[int], Between(1, 100)] = [40, 95]
    """JPEG quality, drawn evenly from the whole numbers of [low, high]."""
    subsampling: Literal["4:4:4", "4:2:0", "random"] = "4:2:0"
    """Resolution of the colour planes; random: either, with equal chance."""
    probability: Share = 1.0
    """Share of the samples that are compressed at all."""


class Light(Section):
    """Too little light on the scene, in linear light (sRGB's curve undone)."""

    stops: Annotated[list[float], Between(0, 12)] = [1.0, 4.0]
    """How much too dark, drawn from [low, high]; a stop is half the light."""
    backlit: Share = 0.0
    """Share of the samples that are lit from behind: a part with soft borders is so dark, the rest is too bright. A
    small crop of a large margin may show one part alone."""
    overexposure: Annotated[list[float], Between(0, 4)] = [0.0, 1.0]
    """backlit: of the rest, in stops drawn from [low, high]; what leaves the range is lost."""
    probability: Share = 1.0
    """Share of the samples that are too dark at all."""


class Water(Section):
    """The scene under water: light loses its colours with the way through it, and the water's own light is added."""

    red: Annotated[list[float], Between(0, 5)] = [0.25, 0.6]
    """Attenuation of red per metre, drawn from [low, high]. The defaults reach from clear to coastal water."""
    green: Annotated[list[float], Between(0, 5)] = [0.05, 0.2]
    """Attenuation of green per metre."""
    blue: Annotated[list[float], Between(0, 5)] = [0.03, 0.25]
    """Attenuation of blue per metre."""
    depth: Annotated[list[float], Between(0, 100)] = [0.0, 5.0]
    """Metres that the light came down, drawn from [low, high]."""
    distance: Annotated[list[float], Between(0, 100)] = [1.0, 8.0]
    """Metres to the camera; those of the nearest and of the farthest part are drawn from [low, high]."""
    veiling_light: Annotated[list[float], Between(0, 1)] = [0.3, 0.8]
    """How bright the water itself is at the surface, in linear light, drawn from [low, high]: the backscatter."""
    probability: Share = 1.0
    """Share of the samples that are under water at all."""


class Holes(Section):
    """White strokes of a brush over the finished picture, for inpainting."""

    share: Annotated[list[float], Between(0, 0.9)] = [0.05, 0.3]
    """Share of the pixels that is covered, drawn from [low, high]. In training, of the crop with the margin that its
    blur, shrink and JPEG need."""
    width: Annotated[list[float], Between(1, 500)] = [6.0, 20.0]
    """Width of a stroke in low-quality pixels, drawn from [low, high]; thinner where little is left to cover."""
    probability: Share = 1.0
    """Share of the samples that have holes at all."""


class Reconstruct(Section):
    """Painted again by a network that was trained too little (paper 3), after the image is made smaller."""

    checkpoints: Annotated[list[FilePath], Field(min_length=1)]
    """Reconstructors, as folders, shipped:NAME or org/name on the Hub; each sample takes one of them, with equal
    chance. One that is named twice is taken twice as often. Of several seeds and steps, none decides alone."""
    strength: Annotated[list[float], Between(0, 1)] = [1.0, 1.0]
    """How much of what the network paints is taken, drawn from [low, high]; the rest is the image as it came."""
    match: Match = "low-frequency"
    """Colours of what the network paints, which are wrong when little trained. low-frequency: all that is coarser than
    8 pixels stays as it was. lab: each channel of LAB gets the mean and deviation that it had; cures a cast over all,
    and where a network knows hardly any colours yet, makes them worse."""
    max_delta_e: Annotated[float, Field(gt=0, le=100)] | None = None
    """Bound of the mean CIEDE2000 difference between the image after and before, both rounded to 8 bits. Where it would
    be more, the strength is lowered until it holds. null: none."""
    half_range: bool = False
    """Feed [0, 1] to the network, which was trained on [-1, 1], as the first author's script for generation does."""
    vary: bool = True
    """Show the image to the network turned, mirrored and moved within its grid, as drawn, so that it does not do the
    same to each copy of a thing; the result is put back. false: as the paper."""
    probability: Share = 1.0
    """Share of the samples that are painted again at all."""


class Degradation(Section):
    """Ground truth to low quality, in this order: light, water, blur, smaller by `scale` (bicubic, antialiased),
    painted again by `reconstruct`, smaller by `shrink`, noise, grey, rounded to 8 bits, JPEG, enlarged by `shrink`,
    holes; and the rounds of `then`."""

    scale: Annotated[int, Field(ge=1, le=4)] = 1
    """How many times smaller each side becomes; it must be the backbone's scale."""
    blur: Blur | None = None
    """Blur before the image is made smaller; null: none."""
    noise: Noise | None = None
    """Noise after the image is made smaller; null: none."""
    jpeg: Jpeg | None = None
    """JPEG compression; null: none."""
    light: Light | None = None
    """Too little light, before everything else; null: as much as there was."""
    water: Water | None = None
    """The scene under water; null: in air."""
    shrink: Annotated[list[float], Between(1, 32)] = [1.0, 1.0]
    """How many times smaller each side is, drawn from [low, high], while noise and JPEG meet it; it is enlarged again
    after, as small faces are. Both bilinear, antialiased."""
    grey: Share = 0.0
    """Share of the samples that lose their colour."""
    holes: Holes | None = None
    """White strokes over the finished picture; null: none."""
    reconstruct: Reconstruct | None = None
    """Painted again by an undertrained network; null: not."""
    then: list[Degradation] = []
    """More rounds of scale 1, each made of the one before, as a picture that is saved and passed on: [{reconstruct:
    ...}] paints again what has its noise and JPEG already. Those of `also` have their own."""
    also: list[Degradation] = []
    """Other kinds, of the same scale: a sample takes this degradation or one of them, with equal chance. So flaws that
    come together in real photos (little blur with little noise, say) come together here."""

    @model_validator(mode="after")
    def _check(self) -> Degradation:
        for number, kind in enumerate(self.also):
            if kind.scale != self.scale:
                came = f"a kind of degradation has scale {kind.scale}, the first has {self.scale}"
                raise cross(f"also.{number}.scale", came, f"scale: {self.scale}")
            if kind.also:
                raise cross(f"also.{number}.also", "a kind of degradation has kinds of its own", "one list of kinds")
        for number, following in enumerate(self.then):
            if following.scale != 1:
                came = f"a later round of degradation has scale {following.scale}"
                raise cross(f"then.{number}.scale", came, "scale: 1, as the image is small by then")
            if any(kind.then for kind in following.kinds()):
                raise cross(f"then.{number}.then", "a later round of degradation has its own", "one list of rounds")
        return self

    def kinds(self) -> list[Degradation]:
        """This one alone, and those beside it."""
        return [self.model_copy(update={"also": []}), *self.also]

    def stages(self) -> list[Degradation]:
        """All kinds, and all kinds of the rounds that follow each."""
        return [stage for kind in self.kinds() for stage in (kind, *(r for step in kind.then for r in step.kinds()))]

    def checkpoints(self) -> list[str]:
        """The reconstructors that any stage names, each once."""
        named = (stage.reconstruct.checkpoints for stage in self.stages() if stage.reconstruct is not None)
        return list(dict.fromkeys(name for names in named for name in names))

    def does_nothing(self) -> bool:
        """Whether the low-quality version is the ground truth, rounded."""
        return self.scale == 1 and not any(
            stage.shrink[1] > 1 or stage.grey or getattr(stage, part) is not None
            for stage in self.stages()
            for part in ("light", "water", "blur", "reconstruct", "noise", "jpeg", "holes")
        )

    def grid(self) -> int:
        """Ground-truth pixels between places where blocks of all planes of a JPEG begin, and cells of a reconstructor;
        without them, `scale`.

        With `shrink` blocks lie on the smaller picture, anywhere in this one.
        """
        return 16 * self.scale if any(stage.jpeg or stage.reconstruct for stage in self.stages()) else self.scale

    def margin(self) -> int:
        """Ground-truth pixels around a crop that its low-quality version depends on, a multiple of `grid()`.

        Covers the blur and the kernels of resizing of the kind that reaches farthest, and one JPEG block (unshrunk).
        Of a reconstructor, whose reach is much wider, `PAINTED` pixels: more would change little and cost much.
        """
        reach = 2 * self.scale if self.scale > 1 else 0
        shrink = max(kind.shrink[1] for kind in self.kinds())
        reach += math.ceil(2 * shrink) * self.scale if shrink > 1 else 0
        reach += max(
            blur_radius(kind.blur.sigma[1]) + streak_radius(kind.blur.motion[1]) if kind.blur else 0
            for kind in self.kinds()
        )
        reach += 8 * self.scale if any(kind.jpeg for kind in self.kinds()) else 0
        reach += self.scale * max(
            (PAINTED if kind.reconstruct else 0) + sum(following.margin() for following in kind.then)
            for kind in self.kinds()
        )
        return math.ceil(reach / self.grid()) * self.grid()


def blur_radius(sigma: float) -> int:
    """Pixels on each side that a Gaussian of `sigma` is computed over."""
    return math.ceil(3 * sigma)


def streak_radius(length: float) -> int:
    """Pixels on each side that a streak of `length` is computed over."""
    return math.ceil(length / 2) + 1 if length else 0
