"""From image to image: what `restore` adds to the network it runs."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import backbone
from torch import Tensor, nn

from refine_wrap import Backbone, Picture, RefineWrapError, RefineWrapper, read_image
from refine_wrap.backbone import Spec
from refine_wrap.errors import ImageError, OutputError
from refine_wrap.restore import DoNoHarm, restore_pictures, trace

TINY = {"preset": "ornet-lite", "width": 4}


def wrapper_of(body: nn.Module, seed: int = 5) -> RefineWrapper:
    """A wrapper whose refiner does something."""
    wrapper = RefineWrapper(body, refiner=TINY).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapper.refiner.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return wrapper


def picture(height: int, width: int, seed: int = 1, **more: object) -> Picture:
    rng = np.random.default_rng(seed)
    return Picture(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), **more)  # type: ignore[arg-type]


def test_a_tensor_comes_back_as_a_clamped_tensor_of_its_batch() -> None:
    wrapper = wrapper_of(backbone("SRVGG x2"))
    x = torch.rand(3, 3, 9, 14)
    with torch.no_grad():
        expected = wrapper(x, 0.8).clamp(0, 1)
    torch.testing.assert_close(wrapper.restore(x, strength=0.8), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["SRVGG x4", "DnCNN", "RRDBNet x2", "stride 4"])
def test_tiles_equal_the_whole_on_odd_sizes(name: str) -> None:
    wrapper = wrapper_of(backbone(name))
    image = picture(61, 83)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody declared "stride 4", so its tiles are not promised to be exact
        whole = wrapper.restore(image, tile=None).pixels.astype(int)
        tiled = wrapper.restore(image, tile=24, halo=64).pixels.astype(int)
    assert abs(whole - tiled).max() <= 1


@pytest.mark.parametrize("name", ["SRVGG x4", "NAFNet", "SwinIR x2 light"])
def test_inference_mode_does_not_change_what_the_layers_say(name: str) -> None:
    from refine_wrap.restore import trace

    expected = trace(wrapper_of(backbone(name)))
    with torch.inference_mode():
        assert trace(wrapper_of(backbone(name))) == expected


def test_a_notice_says_once_how_far_tiles_are() -> None:
    wrapper = wrapper_of(backbone("NAFNet"))
    with torch.no_grad():  # an untrained NAFNet is the identity, which tiles cannot change
        for parameter in wrapper.backbone.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    with pytest.warns(UserWarning, match=r"NAFNet \(.*mean.*largest difference [\d.e+]+/255"):
        wrapper.restore(picture(70, 70), tile=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper.restore(picture(70, 70), tile=32)


def test_exact_tiles_need_no_notice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapper_of(backbone("DnCNN")).restore(picture(70, 70), tile=32)


class SmallMemory(nn.Module):
    """Runs out of memory above 40x40 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] * x.shape[-2] > 40 * 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        self.most = max(self.most, x.shape[-1] * x.shape[-2])
        return x + self.layer(x)


def test_out_of_memory_halves_the_tile_and_loses_nothing() -> None:
    module = SmallMemory()
    spec = Spec("small", tiling="exact")
    wrapper = RefineWrapper(Backbone(module, spec), refiner={"preset": "ornet-lite", "width": 4}).eval()
    wrapper.layers = None
    image = picture(90, 70)
    expected = (image.tensor() + module.layer(image.tensor())).clamp(0, 1)
    from refine_wrap.tiling import trace_layers

    wrapper.layers = trace_layers(wrapper, 32, 32)
    with pytest.warns(UserWarning, match="could not be measured"):  # the halo is narrower than the refiner's reach
        result = wrapper.restore(image, tile=64, halo=2)
    assert 0 < module.most <= 1600
    assert (result.tensor() - expected).abs().max() <= 0.5 / 255 + 1e-5


def test_memory_that_never_suffices_is_an_error_and_no_picture(tmp_path: Path) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return x

    wrapper = RefineWrapper(Backbone(Never(), Spec("never")), refiner=TINY)
    from refine_wrap.tiling import trace_layers

    wrapper.layers = trace_layers(wrapper.refiner, 32, 32)
    picture(50, 50).save(tmp_path / "in.png")
    with pytest.raises(RefineWrapError, match="memory"):
        wrapper.restore(tmp_path / "in.png", tmp_path / "out.png")
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_a_half_type_that_overflows_is_done_again_in_float32() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1, bias=False)
            with torch.no_grad():
                self.layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y / 0 * 0 if y.dtype == torch.bfloat16 else y

    wrapper = RefineWrapper(Backbone(Overflows(), Spec("overflows")), refiner=TINY).eval()
    image = picture(20, 20)
    with pytest.warns(UserWarning, match="float32"):
        result = wrapper.restore(image, dtype="bfloat16")
    assert np.array_equal(result.pixels, image.pixels)


def test_what_is_never_finite_is_refused(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float("nan")

    wrapper = RefineWrapper(Backbone(Broken(), Spec("broken")), refiner=TINY)
    picture(20, 20).save(tmp_path / "in.png")
    with pytest.raises(ImageError, match="finite"):
        wrapper.restore(tmp_path / "in.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(ImageError, match="finite"):
        wrapper.restore(torch.full((1, 3, 4, 4), float("inf")))


def test_bfloat16_is_near_and_float16_needs_a_declaration() -> None:
    wrapper = wrapper_of(backbone("DnCNN"))
    x = torch.rand(1, 3, 24, 24)
    assert (wrapper.restore(x, dtype="bfloat16") - wrapper.restore(x)).abs().max() < 0.05
    with pytest.raises(RefineWrapError, match="float16"):
        wrapper.restore(x, dtype="float16")


def test_alpha_is_carried_and_hidden_colour_does_not_bleed() -> None:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    alpha = np.full((16, 16), 255, np.uint8)
    pixels[:, 8:], alpha[:, 8:] = 0, 0  # black, but transparent
    wrapper = RefineWrapper(backbone("upscaler x2"), refiner=TINY).eval()
    with torch.no_grad():
        for parameter in wrapper.backbone.parameters():
            parameter.zero_()
    result = wrapper.restore(Picture(pixels, alpha=alpha))
    assert result.alpha is not None and result.alpha.shape == (32, 32)
    assert (result.pixels[:, :16] == 200).all(), "the black under the transparent half reached the visible one"


def test_training_mode_is_left_as_it_was_and_existing_files_are_kept(tmp_path: Path) -> None:
    wrapper = wrapper_of(backbone("DnCNN")).train()
    wrapper.restore(picture(8, 8), tmp_path / "a.png")
    assert wrapper.training and not wrapper.backbone.training
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OutputError, match=r"a\.png"):
        wrapper.restore(picture(9, 9), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    wrapper.restore(picture(9, 9), tmp_path / "a.png", overwrite=True)
    assert read_image(tmp_path / "a.png").height == 9


def test_sixteen_bits_stay_sixteen() -> None:
    pixels = np.arange(12 * 12 * 3, dtype=np.uint16).reshape(12, 12, 3) * 100
    result = RefineWrapper(nn.Identity(), refiner=TINY).restore(Picture(pixels))
    assert np.array_equal(result.pixels, pixels)


@pytest.mark.parametrize("name", ["SRVGG x2", "DnCNN"])
def test_pictures_of_one_size_go_together_and_come_out_as_by_themselves(name: str) -> None:
    wrapper = wrapper_of(backbone(name))
    pictures = [picture(20, 31, seed=seed) for seed in range(3)]
    pictures[1] = Picture(np.ascontiguousarray(pictures[1].pixels[..., :1]))
    pictures[2] = Picture(pictures[2].pixels.astype(np.uint16) * 257, np.full((20, 31), 65535, np.uint16))
    seen = shapes_of(wrapper)
    together = restore_pictures(wrapper, pictures, strength=0.7)
    assert [shape[0] for shape in seen] == [3]
    for made, one in zip(together, pictures, strict=True):
        alone = wrapper.restore(one, strength=0.7)
        assert made.pixels.shape == alone.pixels.shape and made.pixels.dtype == alone.pixels.dtype
        assert np.abs(made.pixels.astype(int) - alone.pixels).max() <= (1 if made.bits == 8 else 20)
    assert together[1].grey and together[2].alpha is not None and len(np.unique(together[0].pixels)) > 20


def test_pictures_that_do_not_fit_together_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = wrapper_of(backbone("DnCNN"))
    pictures = [picture(20, 31, seed=seed) for seed in range(3)]
    needed = trace(wrapper).peak_bytes_per_pixel * 20 * 31
    monkeypatch.setattr("refine_wrap.restore.memory_budget", lambda device: int(2.5 * needed))
    seen = shapes_of(wrapper)
    restore_pictures(wrapper, pictures[:2])
    assert [shape[0] for shape in seen] == [2]
    restore_pictures(wrapper, pictures)
    assert [shape[0] for shape in seen] == [2, 1, 1, 1]
    with pytest.raises(RefineWrapError, match="2 sizes"):
        restore_pictures(wrapper, [*pictures, picture(20, 32)])


def test_a_guard_keeps_each_of_a_batch_by_itself() -> None:
    wrapper = wrapper_of(backbone("DnCNN"))
    pictures = [picture(24, 24, seed=seed) for seed in range(3)]

    class Judge(DoNoHarm):
        def __init__(self) -> None:
            self.answers = [False, True, False]

        def check(self, wrapper: RefineWrapper) -> None:
            pass

        def worse(self, result: object, bare: object) -> bool:
            return self.answers.pop(0)

    kept = restore_pictures(wrapper, pictures, guard=Judge())
    refined = restore_pictures(wrapper, pictures)
    with wrapper.disabled():
        bare = restore_pictures(wrapper, pictures)
    for made, wanted, other in zip(
        kept, [refined[0], bare[1], refined[2]], [bare[0], refined[1], bare[2]], strict=True
    ):
        assert np.array_equal(made.pixels, wanted.pixels) and not np.array_equal(made.pixels, other.pixels)


def shapes_of(wrapper: RefineWrapper) -> list[tuple[int, ...]]:
    """The shapes that the backbone is given from now on."""
    trace(wrapper)
    seen: list[tuple[int, ...]] = []
    wrapper.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    return seen
