"""Light, blur, smaller, noise, JPEG, holes: what each does, and that one generator gives one image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from refine_wrap.degradation import Blur, Degradation, Holes, Jpeg, Light, Noise, Water, degrade
from refine_wrap.degradation.rounding import to_8bit
from refine_wrap.degradation.scene import to_linear
from refine_wrap.degradation.synthetic import (
    Drawn,
    add_noise,
    blur,
    compress,
    downsample,
    filtered,
    gaussian_kernel,
    streak_kernel,
)
from refine_wrap.errors import ImageError

EVERYTHING = Degradation(
    scale=2,
    blur=Blur(sigma=[0.5, 2.0], anisotropic=0.5),
    noise=Noise(kind="poisson-gaussian", sigma=[5, 20], correlation=[0.2, 0.8], channel_spread=0.2),
    jpeg=Jpeg(quality=[30, 90], subsampling="random"),
    light=Light(backlit=0.5),
    water=Water(),
    shrink=[1.0, 3.0],
    grey=0.5,
    holes=Holes(),
)


def photo(height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth colours with edges, float32 in [0, 1]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [0.5 + 0.4 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)]
    image = np.stack(planes, 2)
    image[height // 3 : height // 2, width // 4 : width // 2] = (0.9, 0.2, 0.1)
    return image.astype(np.float32)


def flat(level: float, side: int = 192) -> np.ndarray:
    return np.full((side, side, 3), level, np.float32)


def spread(settings: Noise, level: float = 0.5, seed: int = 0) -> np.ndarray:
    """The noise on a flat image, in 1/255."""
    image = flat(level)
    return (add_noise(image, settings, np.random.default_rng(seed)) - image) * 255


def test_one_generator_gives_one_image() -> None:
    first = degrade(photo(), EVERYTHING, np.random.default_rng(3))
    again = degrade(photo(), EVERYTHING, np.random.default_rng(3))
    other = degrade(photo(), EVERYTHING, np.random.default_rng(4))
    assert first.dtype == np.uint8 and first.shape == (32, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_input_is_not_changed() -> None:
    image = photo()
    before = image.copy()
    degrade(image, EVERYTHING, np.random.default_rng(0))
    assert np.array_equal(image, before)


def test_a_part_that_changes_leaves_the_draws_of_the_others() -> None:
    """Noise is the same whether the blur drew two sigmas or was off."""
    noise = Noise(sigma=[10, 10])
    still = flat(0.5, 64)  # blur does nothing to it
    with_blur = degrade(still, Degradation(blur=Blur(), noise=noise), np.random.default_rng(1))
    without = degrade(still, Degradation(noise=noise), np.random.default_rng(1))
    assert np.array_equal(with_blur, without)


def test_nothing_asked_is_rounding_alone() -> None:
    image = photo()
    assert np.array_equal(degrade(image, Degradation(), np.random.default_rng(0)), np.floor(image * 255 + 0.5))


SOFT, LOUD = Degradation(blur=Blur(sigma=[2, 2])), Degradation(noise=Noise(sigma=[20, 20]))


def test_several_kinds_are_taken_with_equal_chance_and_never_mixed() -> None:
    several = Degradation(jpeg=Jpeg(), also=[SOFT, LOUD])
    taken = []
    for seed in range(300):
        drawn: Drawn = {}
        several_made = degrade(photo(16, 16), several, np.random.default_rng(seed), drawn)
        taken.append(drawn["kind"]["number"])
        assert list(drawn) == ["kind", ("jpeg", "blur", "noise")[taken[-1]]]
        # The one that is taken draws as it would alone, once the choice is made.
        rng = np.random.default_rng(seed)
        rng.integers(3)
        assert np.array_equal(several_made, degrade(photo(16, 16), several.kinds()[taken[-1]], rng))
    assert all(75 <= taken.count(number) <= 125 for number in range(3))


def test_the_margin_of_several_kinds_is_that_of_the_farthest() -> None:
    assert Degradation(also=[SOFT, LOUD]).margin() == SOFT.margin() == 6 > LOUD.margin()
    assert Degradation(blur=Blur(sigma=[3, 3]), also=[SOFT]).margin() == 9
    # In whole blocks of JPEG, of all planes: 6 of the blur and 8 of a block are 16, in the pixels of the larger photo.
    assert Degradation(also=[SOFT, Degradation(jpeg=Jpeg())]).margin() == 16
    assert Degradation(scale=2, also=[Degradation(scale=2, jpeg=Jpeg())]).margin() == 32
    assert Degradation(also=[Degradation(shrink=[1, 3.5])]).margin() == 7


def test_several_kinds_do_nothing_only_where_none_does_anything() -> None:
    assert Degradation().does_nothing() and Degradation(also=[Degradation()]).does_nothing()
    assert not Degradation(also=[LOUD]).does_nothing() and not Degradation(scale=2).does_nothing()
    for part in ({"light": Light()}, {"water": Water()}, {"holes": Holes()}, {"shrink": [1, 2]}, {"grey": 0.1}):
        assert not Degradation(**part).does_nothing()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downsampling_is_pillows_antialiased_bicubic(scale: int) -> None:
    image = photo(48, 96)
    ours = downsample(image, scale)
    theirs = [
        np.asarray(Image.fromarray(image[:, :, c]).resize((96 // scale, 48 // scale), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    assert np.abs(ours - np.stack(theirs, 2)).max() < 2e-5


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_blur_has_the_sigma_asked_for(sigma: float) -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    spread = blur(point, Blur(sigma=[sigma, sigma]), np.random.default_rng(0))[:, :, 0]
    x = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert np.sqrt((spread.sum(0) * x**2).sum()) == pytest.approx(
        sigma, rel=0.08
    )  # sampled at pixels, it is a little narrower


def test_anisotropic_kernel_is_turned() -> None:
    kernel = gaussian_kernel(3.0, 0.8, np.pi / 4)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert kernel[12, 12] > 3 * kernel[12, 6]  # along the diagonal, against across it
    assert np.allclose(kernel, kernel[::-1, ::-1])


@pytest.mark.parametrize("length", [1.5, 4.0, 9.0])
def test_a_streak_has_the_length_asked_for(length: float) -> None:
    kernel = streak_kernel(length, 0.0)
    across = kernel.sum(1)
    assert kernel.sum() == pytest.approx(1, abs=1e-6) and np.count_nonzero(across > 1e-6) == 1
    assert kernel.max() == pytest.approx(1 / length, rel=1e-5)  # as much of it in each pixel
    turned = streak_kernel(length, np.pi / 2)
    assert np.allclose(turned, kernel.T, atol=1e-6)
    assert np.allclose(streak_kernel(length, 0.7), streak_kernel(length, 0.7)[::-1, ::-1])
    assert streak_kernel(0.0, 0.3).shape == (1, 1)


def test_shake_smears_along_one_direction_and_leaves_the_other_draws() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    smeared = blur(point, Blur(sigma=[0, 0], motion=[8, 8]), np.random.default_rng(2))[:, :, 0]
    y, x = np.mgrid[-20:21, -20:21]
    moments = np.linalg.eigvalsh(
        [[(smeared * x * x).sum(), (smeared * x * y).sum()], [(smeared * x * y).sum(), (smeared * y * y).sum()]]
    )
    assert moments[1] == pytest.approx(8**2 / 12, rel=0.15) and moments[0] < 0.3
    settings = Blur(sigma=[0.5, 2.0], anisotropic=0.5)
    still: Drawn = {}
    moved: Drawn = {}
    blur(point, settings, np.random.default_rng(3), still)
    blur(point, settings.model_copy(update={"motion": [2.0, 5.0]}), np.random.default_rng(3), moved)
    assert 2 <= moved["motion"] <= 5 and still == {key: moved[key] for key in still} and "motion" not in still


def test_what_was_drawn_is_told() -> None:
    for seed in range(4):
        drawn: Drawn = {}
        settings = Degradation(blur=Blur(sigma=[0.5, 2.0], anisotropic=0.5, motion=[0, 6]))
        image = degrade(photo(), settings, np.random.default_rng(seed), drawn)
        told = drawn.pop("blur")
        again = filtered(photo(), gaussian_kernel(*told["sigma"], told["angle"]))
        again = filtered(again, streak_kernel(told["motion"], told["direction"]))
        assert np.array_equal(image, to_8bit(again)) and drawn == {}
        image = degrade(photo(), Degradation(jpeg=EVERYTHING.jpeg), np.random.default_rng(seed), drawn)
        told = drawn.pop("jpeg")
        one_file = Jpeg(quality=[told["quality"]] * 2, subsampling=told["subsampling"])
        assert np.array_equal(image, compress(to_8bit(photo()), one_file, np.random.default_rng()))
        image = degrade(flat(0.5), Degradation(noise=EVERYTHING.noise), np.random.default_rng(seed), drawn)
        told = drawn.pop("noise")
        assert 0.2 <= told["correlation"] <= 0.8 and 0.3 <= told["shot"] <= 0.9 and told["grey"] is False
        for channel, gain in enumerate(told["gains"]):
            assert image[:, :, channel].std() == pytest.approx(told["sigma"] * gain, rel=0.05)
    degrade(photo(), Degradation(noise=Noise(probability=0)), np.random.default_rng(0), drawn)
    assert drawn == {}


def test_anisotropic_share() -> None:
    point = np.zeros((31, 31, 3), np.float32)
    point[15, 15] = 1
    settings = Blur(sigma=[0.5, 3.0], anisotropic=0.5)
    round_ones = 0
    for seed in range(60):
        spread = blur(point, settings, np.random.default_rng(seed))[:, :, 0]
        round_ones += bool(np.allclose(spread, spread.T, atol=1e-6) and np.allclose(spread, spread[::-1], atol=1e-6))
    assert 18 <= round_ones <= 42


def test_gaussian_noise_has_the_sigma_asked_for_at_every_level() -> None:
    for level in (0.1, 0.9):
        assert spread(Noise(sigma=[10, 10]), level).std() == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("linear", [False, True])
def test_shot_noise_grows_with_the_light_and_has_the_sigma_at_mid_grey(linear: bool) -> None:
    settings = Noise(kind="poisson-gaussian", sigma=[8, 8], shot=[0.8, 0.8], linear_light=linear)
    assert spread(settings, 0.5).std() == pytest.approx(8, rel=0.05)
    if not linear:
        # Variance at level x: read 0.2 * 64, shot 0.8 * 64 * x / 0.5.
        for level in (0.1, 0.8):
            assert spread(settings, level).var() == pytest.approx(0.2 * 64 + 0.8 * 64 * level / 0.5, rel=0.06)
    else:
        # In linear light the curve makes shadows noisier than the same noise in sRGB would.
        assert spread(settings, 0.2).std() > 8


def test_correlation_smears_the_noise_and_keeps_its_strength() -> None:
    def neighbours(noise: np.ndarray) -> float:
        return float(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1])

    white, smeared = spread(Noise(sigma=[10, 10])), spread(Noise(sigma=[10, 10], correlation=[0.8, 0.8]))
    assert smeared.std() == pytest.approx(10, rel=0.03)
    assert abs(neighbours(white)) < 0.02
    assert neighbours(smeared) > 0.4


def test_grey_noise_is_one_for_all_channels() -> None:
    grey, colour = spread(Noise(sigma=[10, 10], grey=1.0)), spread(Noise(sigma=[10, 10]))
    assert np.allclose(grey[:, :, 0], grey[:, :, 2], atol=1e-4)
    assert abs(np.corrcoef(colour[:, :, 0].ravel(), colour[:, :, 2].ravel())[0, 1]) < 0.03


def test_channels_differ_by_their_spread() -> None:
    ratios = []
    for seed in range(20):
        deviations = spread(Noise(sigma=[10, 10], channel_spread=0.5), seed=seed).std(axis=(0, 1))
        ratios += list(deviations / 10)
    assert 0.48 < min(ratios) < 0.7 and 1.3 < max(ratios) < 1.52


def test_sigma_is_drawn_from_the_whole_range() -> None:
    drawn = [spread(Noise(sigma=[2, 20]), seed=seed).std() for seed in range(40)]
    assert 2 < min(drawn) < 5 and 17 < max(drawn) < 20.5


def test_jpeg_hurts_more_at_low_quality() -> None:
    image = photo()

    def loss(quality: int) -> float:
        low = degrade(image, Degradation(jpeg=Jpeg(quality=[quality, quality])), np.random.default_rng(0))
        return float(np.abs(low / 255.0 - image).mean())

    assert loss(10) > 1.5 * loss(60) > loss(98)


def test_jpeg_keeps_colours_in_place() -> None:
    red = np.zeros((32, 32, 3), np.float32)
    red[..., 0] = 0.8
    low = degrade(red, Degradation(jpeg=Jpeg(quality=[95, 95])), np.random.default_rng(0))
    assert low[..., 0].mean() == pytest.approx(204, abs=3) and low[..., 2].mean() < 6


def test_full_colour_resolution_keeps_colour_edges() -> None:
    stripes = np.zeros((32, 32, 3), np.float32)
    stripes[:, ::2, 0] = 1
    stripes[:, 1::2, 2] = 1

    def error(subsampling: str) -> float:
        settings = Degradation(jpeg=Jpeg(quality=[95, 95], subsampling=subsampling))  # type: ignore[arg-type]
        return float(np.abs(degrade(stripes, settings, np.random.default_rng(0)) / 255.0 - stripes).mean())

    assert error("4:4:4") < 0.5 * error("4:2:0")


def test_a_stop_is_half_the_light() -> None:
    image = photo() * 0.9
    dark = degrade(image, Degradation(light=Light(stops=[1, 1])), np.random.default_rng(0))
    light, before = to_linear(dark / np.float32(255)), to_linear(image)
    assert np.abs(light - before / 2).max() < 0.004


def test_against_the_light_a_part_is_dark_and_the_rest_too_bright() -> None:
    settings, drawn = (
        Degradation(light=Light(stops=[3, 3], backlit=1.0, overexposure=[1, 1])),
        dict[str, dict[str, float]](),
    )
    made = degrade(flat(0.5), settings, np.random.default_rng(0), drawn)
    ratio = to_linear(made / np.float32(255)) / to_linear(np.float32(0.5))
    assert ratio.min() == pytest.approx(1 / 8, rel=0.1) and ratio.max() == pytest.approx(2, rel=0.02)
    dark, bright = (float(share.mean()) for share in (ratio < 0.2, ratio > 1.8))
    assert dark > 0.1 < bright and dark + bright > 0.4, "soft borders between two parts"
    assert drawn["light"] == {"stops": 3.0, "overexposure": 1.0}


def test_water_by_hand() -> None:
    """A grey thing at one distance, in water whose coefficients are known."""
    water = Water(
        red=[0.5, 0.5], green=[0.2, 0.2], blue=[0.1, 0.1], depth=[2, 2], distance=[4, 4], veiling_light=[0.5, 0.5]
    )
    made = degrade(flat(0.8), Degradation(water=water), np.random.default_rng(0))
    assert (made == made[0, 0]).all(), "one distance, one colour"
    light = float(to_linear(np.float32(0.8)))
    for channel, b in enumerate((0.5, 0.2, 0.1)):
        left = np.exp(-4 * b)
        wanted = (light * left + 0.5 * (1 - left)) * np.exp(-2 * b)
        assert float(to_linear(made[0, 0, channel] / np.float32(255))) == pytest.approx(wanted, abs=0.006)


def test_farther_things_lose_more_of_their_contrast_under_water() -> None:
    board = np.indices((192, 192)).sum(0) % 2 * np.float32(0.8)
    image = np.repeat(board[..., None], 3, 2).astype(np.float32)
    drawn: Drawn = {}
    made = degrade(image, Degradation(water=Water(distance=[1, 9])), np.random.default_rng(1), drawn)
    near, far = drawn["water"]["distance"]
    contrast = to_linear(made / np.float32(255))
    contrast = np.abs(contrast[:, ::2] - contrast[:, 1::2])[..., 2]
    blue = drawn["water"]["attenuation"][2]
    assert contrast.max() / contrast.min() == pytest.approx(np.exp(blue * (far - near)), rel=0.1) and far > near + 1


def test_grey_is_luma_in_every_channel() -> None:
    image = photo()
    made = degrade(image, Degradation(grey=1.0), np.random.default_rng(0))
    assert (made[..., :1] == made).all()
    assert np.abs(made[..., 0] / 255 - image @ [0.299, 0.587, 0.114]).max() < 0.003
    kept = sum(np.ptp(degrade(image, Degradation(grey=0.5), np.random.default_rng(s))[0, 0]) > 0 for s in range(40))
    assert 10 <= kept <= 30


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_holes_are_white_and_cover_their_share(share: float) -> None:
    image = photo(128, 128) * 0.8
    drawn: Drawn = {}
    made = degrade(image, Degradation(holes=Holes(share=[share, share])), np.random.default_rng(0), drawn)
    plain = degrade(image, Degradation(), np.random.default_rng(0))
    holes = (made != plain).any(2)
    assert (made[holes] == 255).all() and (made[~holes] == plain[~holes]).all()
    assert share - 0.001 <= holes.mean() < share + 0.01
    assert drawn["holes"]["share"] == pytest.approx(holes.mean())


def test_small_crops_have_no_larger_holes_than_asked_for() -> None:
    settings = Degradation(holes=Holes(share=[0.05, 0.3], width=[6, 20]))
    found = []
    for seed in range(60):
        drawn: Drawn = {}
        degrade(flat(0.5, 32), settings, np.random.default_rng(seed), drawn)
        found.append(drawn["holes"]["share"])
    assert min(found) > 0.04 and max(found) < 0.33 and 0.13 < np.mean(found) < 0.22


def test_what_is_shrunk_comes_back_soft_and_of_its_size() -> None:
    image = photo(61, 97)
    sharp = degrade(image, Degradation(), np.random.default_rng(0)).astype(float)
    edges = []
    for times in (1.0, 2.5, 8.0, 32.0):
        made = degrade(image, Degradation(shrink=[times, times]), np.random.default_rng(0)).astype(float)
        assert made.shape == sharp.shape
        edges.append(np.abs(np.diff(made, axis=1)).max())
    assert edges[0] == np.abs(np.diff(sharp, axis=1)).max() > edges[1] > edges[2] > edges[3]
    assert degrade(photo(1, 1), Degradation(shrink=[30, 30]), np.random.default_rng(0)).shape == (1, 1, 3)


def test_new_parts_leave_the_draws_of_the_old() -> None:
    """Sets and runs of before these parts were there can be made again."""
    noise = Degradation(noise=Noise(sigma=[5, 25]))
    drawn: list[Drawn] = [{}, {}]
    more = noise.model_copy(update={"light": Light(), "holes": Holes()})
    for settings, told in zip((noise, more), drawn, strict=True):
        degrade(photo(), settings, np.random.default_rng(5), told)
    assert drawn[0]["noise"] == drawn[1]["noise"]
    expected = np.random.default_rng(np.random.default_rng(5).integers(0, 2**63, 3)[1])
    expected.random()
    assert drawn[0]["noise"]["sigma"] == pytest.approx(expected.uniform(5, 25))


def test_probability_leaves_samples_alone() -> None:
    image = photo(32, 32)
    settings = Degradation(noise=Noise(sigma=[30, 30], probability=0.5))
    clean = degrade(image, Degradation(), np.random.default_rng(0))
    untouched = sum(np.array_equal(degrade(image, settings, np.random.default_rng(s)), clean) for s in range(40))
    assert 10 <= untouched <= 30


def test_the_margin_covers_blur_and_downsampling() -> None:
    """A crop degraded with its margin equals that part of the whole image degraded."""
    settings = Degradation(scale=2, blur=Blur(sigma=[2.0, 2.0]))
    image, margin = photo(96, 96), settings.margin()
    whole = degrade(image, settings, np.random.default_rng(0))
    top, left, side = 32, 28, 32
    part = image[top - margin : top + side + margin, left - margin : left + side + margin]
    low = degrade(np.ascontiguousarray(part), settings, np.random.default_rng(0))
    inner = low[margin // 2 : margin // 2 + side // 2, margin // 2 : margin // 2 + side // 2]
    difference = inner.astype(int) - whole[top // 2 : top // 2 + side // 2, left // 2 : left // 2 + side // 2]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "image", [np.zeros((7, 8, 3), np.float32), np.zeros((8, 8), np.float32), np.zeros((8, 8, 3), np.uint8)]
)
def test_refuses_what_it_cannot_degrade(image: np.ndarray) -> None:
    with pytest.raises(ImageError):
        degrade(image, Degradation(scale=2), np.random.default_rng(0))
