"""What was made fast stays fast: ratios of one run side by side, with a wide margin for a busy machine."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

from refine_wrap import ORNet
from refine_wrap.naf import LayerNorm2d
from refine_wrap.pipeline import process
from refine_wrap.supervision import FrequencyMaskGenerator, frequency_mixup


def times_faster(slow: Callable[[], object], fast: Callable[[], object], runs: int = 5) -> float:
    """Median time of the first over that of the second, their calls interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    slow(), fast()
    for _ in range(runs):
        for call, each in zip((slow, fast), times, strict=True):
            start = time.perf_counter()
            call()
            each.append(time.perf_counter() - start)
    return median(times[0]) / median(times[1])


@torch.inference_mode()
def test_ornet_is_not_slower_than_with_channels_first_and_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = ORNet(width=32).eval(), torch.rand(1, 3, 384, 384)

    def plain() -> Tensor:
        with monkeypatch.context() as patched:
            patched.setattr("refine_wrap.refiner.cpu_layout", lambda x: x)
            return net(image)

    assert times_faster(plain, lambda: net(image)) > 1  # measured: 2


PEAK = """
import sys, torch
from pathlib import Path
import refine_wrap.naf as naf, refine_wrap.refiner
torch.set_num_threads(1)
net = refine_wrap.ORNet(width=32).eval()
if sys.argv[1] == "whole":
    naf._LEAST_ROWS = 10**6
image = torch.rand(1, 3, 768, 768)
def held(key):  # of this process alone, in KiB: ru_maxrss begins at what the parent held
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
with torch.inference_mode():
    net(image[..., :64, :64])
    before = held("VmRSS")
    net(image)
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_strips_take_less_memory() -> None:
    strips, whole = (
        int(subprocess.run([sys.executable, "-c", PEAK, how], capture_output=True, text=True, check=True).stdout)
        for how in ("strips", "whole")
    )
    assert 0 < strips < 0.8 * whole  # measured: 0.6


@torch.inference_mode()
def test_layer_norm_with_channels_last_is_faster_than_by_hand() -> None:
    norm, image = LayerNorm2d(64), torch.rand(1, 64, 256, 256)
    last = image.contiguous(memory_format=torch.channels_last)
    assert times_faster(lambda: norm(image), lambda: norm(last)) > 1  # measured: 13


@torch.inference_mode()
def test_masks_and_mixup_are_faster_than_written_as_published() -> None:
    generator = FrequencyMaskGenerator(width=1).eval()
    images, weights = torch.rand(1, 4, 3, 360, 640), torch.rand(1, 4, 25).softmax(1)

    def published() -> Tensor:
        """Paper 1, 3.2: each image has a copy of the ring maps, complex transforms over all axes."""
        y, x = torch.linspace(-1, 1, 360)[:, None], torch.linspace(-1, 1, 640)[None]
        place = torch.linspace(0, 1, 25).square()[:, None, None]
        radius = (x.square() + y.square()).sqrt()
        rings = torch.exp(-((radius - math.sqrt(2) * place) ** 2) / (2 * (0.05 * (1 + 10 * place)) ** 2))
        masks = (rings.expand(1, 4, -1, -1, -1).clone() * weights[..., None, None]).sum(2).softmax(1)
        spectra = [torch.fft.fftshift(torch.fft.fftn(images[:, number], norm="ortho")) for number in range(4)]
        mixed = sum(spectrum * masks[:, number : number + 1] for number, spectrum in enumerate(spectra))
        assert isinstance(mixed, Tensor)
        return torch.fft.ifftn(torch.fft.ifftshift(mixed), norm="ortho").real

    def ours() -> Tensor:
        return frequency_mixup(images, generator.masks(weights, 360, 640))

    assert torch.allclose(ours(), published(), atol=1e-5)
    assert times_faster(published, ours) > 1.5  # measured: 9


def test_a_folder_takes_as_long_as_its_longest_stage(tmp_path: Path) -> None:
    def stage(item: object, _: object = None) -> object:
        time.sleep(0.05)
        return item

    jobs = [(tmp_path / f"{number}", tmp_path / f"{number}.png") for number in range(12)]

    def write(item: object, path: Path) -> None:
        stage(item)
        path.write_text(str(item))

    start = time.perf_counter()
    assert process(jobs, stage, lambda items: [stage(item) for item in items], write).done == 12
    assert time.perf_counter() - start < 0.75 * 12 * 3 * 0.05  # one after the other takes all of it, overlapped a third
