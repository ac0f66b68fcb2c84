"""Scorers: one contract for all of them, agreement with what is published, and what load_scorer refuses."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from torch import Tensor

from refine_wrap.errors import CheckpointError, ImageError, RefineWrapError
from refine_wrap.hub import Adapter, save_adapter
from refine_wrap.images import read_image
from refine_wrap.resources import weights_dir
from refine_wrap.scorers import Ensemble, Scorer, load_scorer, scorer_names
from refine_wrap.scorers.learned import LearnedScorer
from refine_wrap.scorers.niqe import NIQE

# ---------------------------------------------------------------- what can be had here


def weights(shared: Path, name: str) -> str:
    return str(shared / "weights" / name)


def niqe(shared: Path) -> Scorer:
    return load_scorer(f"niqe={weights(shared, 'niqe_pris_params.npz')}")


def cnniqa(shared: Path) -> Scorer:
    return load_scorer(f"cnniqa={weights(shared, 'cnniqa_live.safetensors')}")


def nima(shared: Path) -> Scorer:
    return load_scorer(f"nima={weights(shared, 'nima_mobilenet_aesthetic_keras.safetensors')}")


def brisque(shared: Path) -> Scorer:
    pytest.importorskip("brisque")
    return load_scorer("brisque")


def piqe(shared: Path) -> Scorer:
    pytest.importorskip("pyiqa")
    return load_scorer("piqe")


def ensemble(shared: Path) -> Scorer:
    return Ensemble([cnniqa(shared), nima(shared)], [(10.0, 90.0), (2.0, 7.0)])


def ranker(shared: Path | None = None) -> Scorer:
    return load_scorer("shipped:ranker")


def gauge(shared: Path | None = None) -> Scorer:
    return load_scorer("shipped:gauge")


SHIPPED = {"ranker": ranker, "gauge": gauge}
SCORERS = {
    "niqe": niqe,
    "cnniqa": cnniqa,
    "nima": nima,
    "brisque": brisque,
    "piqe": piqe,
    "ensemble": ensemble,
    **SHIPPED,
}
DIFFERENTIABLE = {"cnniqa", "nima", "ensemble", *SHIPPED}
_made: dict[str, Scorer] = {}


@pytest.fixture(params=[pytest.param(n, marks=[] if n in SHIPPED else pytest.mark.shared) for n in SCORERS])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    if request.param not in _made:
        _made[request.param] = SCORERS[request.param](SHARED)
    return _made[request.param]


def texture(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Something like a photo: coarse shapes and a little grain, 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 2 + height // 16, 2 + width // 16, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    image = image + 0.03 * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round() / 255


def photo(path: Path) -> Tensor:
    pixels = torch.from_numpy(read_image(path).pixels.astype(np.float32) / 255)
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous()


def size_for(scorer: Scorer) -> tuple[int, int]:
    return max(scorer.smallest, 40) + 9, max(scorer.smallest, 40) + 22


# ---------------------------------------------------------------- the contract


def test_a_batch_scores_as_its_images(scorer: Scorer) -> None:
    images = torch.cat([texture(*size_for(scorer), seed=seed) for seed in range(3)])
    before = images.clone()
    with torch.no_grad():
        batch, singles = scorer(images), torch.cat([scorer(image[None]) for image in images])
        assert torch.equal(batch, scorer(images))
    assert batch.shape == (3,) and batch.dtype == torch.float32
    torch.testing.assert_close(batch, singles, rtol=1e-4, atol=1e-5)
    assert len(set(batch.tolist())) == 3
    assert ((batch >= 0) & (batch <= 1)).all()
    assert torch.equal(images, before)


def test_its_scale_runs_from_worst_to_best(scorer: Scorer) -> None:
    ends = torch.tensor([scorer.worst, (scorer.worst + scorer.best) / 2, scorer.best])
    torch.testing.assert_close(scorer.normalised(ends), torch.tensor([0.0, 0.5, 1.0]))
    beyond = torch.tensor([2 * scorer.worst - scorer.best, 2 * scorer.best - scorer.worst])
    assert scorer.normalised(beyond).tolist() == [0.0, 1.0]
    image = texture(*size_for(scorer))
    torch.testing.assert_close(scorer(image), scorer.normalised(scorer.raw(image)))


def test_sizes(scorer: Scorer) -> None:
    least = scorer.smallest
    for height, width in {(least, least), (least, least + 33), (least + 1, least)}:
        try:
            score = scorer(texture(height, width))
        except ImageError as error:
            assert f"{width}x{height}" in str(error) and scorer.name == "piqe"  # a library's own, unknown limit
        else:
            assert 0 <= float(score) <= 1
    if least > 1:
        for height, width in ((least - 1, least + 50), (least + 50, least - 1), (1, 1)):
            with pytest.raises(ImageError, match=f"{width}x{height}.*\n.*{least}x{least}"):
                scorer(texture(height, width))


def test_a_flat_image_is_scored_or_refused(scorer: Scorer) -> None:
    for level in (0.0, 0.5, 1.0):
        image = torch.full((1, 3, *size_for(scorer)), level)
        try:
            score = scorer(image)
        except ImageError as error:
            assert "texture" in str(error)
        else:
            assert 0 <= float(score) <= 1


def test_the_gradient_is_as_declared(scorer: Scorer) -> None:
    assert scorer.differentiable == any(scorer.name.startswith(name) for name in DIFFERENTIABLE)
    image = texture(*size_for(scorer), batch=2).requires_grad_()
    score = scorer(image)
    if not scorer.differentiable:
        assert not score.requires_grad or not torch.autograd.grad(score.sum(), image, allow_unused=True)[0].any()
        return
    (gradient,) = torch.autograd.grad(score.sum(), image)
    assert gradient.isfinite().all() and all(part.any() for part in gradient)
    for level in (0.0, 0.5):
        flat = torch.full((1, 3, *size_for(scorer)), level, requires_grad=True)
        assert torch.autograd.grad(scorer.raw(flat).sum(), flat)[0].isfinite().all()
    assert not any(parameter.requires_grad for parameter in scorer.parameters())


def test_the_gradient_is_that_of_the_score(scorer: Scorer) -> None:
    """The score moves by what the gradient says, along the gradient."""
    if not scorer.differentiable:
        return
    image = 0.25 + 0.5 * texture(*size_for(scorer))
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.raw(image).sum(), image)
    step = gradient / gradient.abs().max()
    size = 0.005 * abs(scorer.best - scorer.worst) / float((gradient * step).sum())
    with torch.no_grad():
        found = (scorer.raw(image + size * step) - scorer.raw(image - size * step)) / (2 * size)
    assert float(found) == pytest.approx(float((gradient * step).sum()), rel=0.05)


def test_bad_images_are_refused(scorer: Scorer) -> None:
    good = texture(*size_for(scorer))
    for value in (math.nan, math.inf, -math.inf):
        bad = good.clone()
        bad[0, 1, 5, 7] = value
        with pytest.raises(ImageError, match="not finite"):
            scorer(bad)
    for bad in (good[0], good[:, :1], good[:, :, :0], good[:0], (good * 255).to(torch.uint8)):
        with pytest.raises(ImageError, match=r"\(B, 3, H, W\)"):
            scorer(bad)


def test_values_beyond_the_range_count_as_a_file_would_hold_them(scorer: Scorer) -> None:
    image = texture(*size_for(scorer))
    image[:, :, ::3, ::2] = image[:, :, ::3, ::2] * 1.5 - 0.25
    assert torch.equal(scorer.raw(image), scorer.raw(image.clamp(0, 1)))


def test_every_floating_type_is_scored_in_float32(scorer: Scorer) -> None:
    image = (texture(*size_for(scorer)) * 64).round() / 64  # exact in half precision
    expected = scorer(image)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        score = scorer(image.to(dtype))
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(scorer(image), expected, rtol=0, atol=1e-6)


def test_moving_keeps_its_precision_and_mode(scorer: Scorer) -> None:
    image = texture(*size_for(scorer))
    expected, digest = scorer(image), scorer.digest()
    host = torch.nn.ModuleDict({"scorer": scorer})
    for move in (lambda: host.half(), lambda: host.to("cpu", torch.bfloat16), lambda: host.double()):
        move()
        assert torch.equal(scorer(image), expected)
    host.train()
    assert not any(module.training for module in scorer.modules())
    assert torch.equal(scorer(image), expected) and scorer.digest() == digest
    if torch.cuda.is_available():
        on_gpu = scorer.to("cuda")(image.cuda())
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), expected, rtol=1e-3, atol=1e-3)
        scorer.to("cpu")


def test_it_says_what_it_is(scorer: Scorer) -> None:
    about = json.loads(json.dumps(scorer.about()))
    assert about["name"] == scorer.name and about["scale"] == [scorer.worst, scorer.best]
    assert about["differentiable"] is scorer.differentiable
    assert scorer.licence and len(about["digest"]) == 64
    others = {other.digest() for name, other in _made.items() if other is not scorer}
    assert about["digest"] not in others
    assert about["digest"] == SCORERS[scorer.name.split("(")[0]](SHARED).digest()


# ---------------------------------------------------------------- NIQE

NIQE_PHOTOS = (
    ("photos/night-lossless.png", (575, 569)),
    ("photos/city-lossless.png", (576, 576)),
    ("real_lq/RealSRSet/pattern.png", (192, 192)),  # flat areas and sharp edges
    ("real_lq/RealSRSet/dog.png", (300, 320)),
    ("paired/polyu/Canon80D_8_8_12800_printer_11_mean.JPG", (300, 421)),  # smooth: rounding counts most
    ("paired/polyu/Canon5D2_5_160_3200_plug_12_real.JPG", (512, 193)),
)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "size"), NIQE_PHOTOS, ids=[name for name, _ in NIQE_PHOTOS])
def test_niqe_equals_basicsr(shared: Path, name: str, size: tuple[int, int]) -> None:
    image = photo(shared / "data" / name)[:, :, : size[0], : size[1]].contiguous()
    assert float(niqe(shared).raw(image)) == pytest.approx(niqe_of_basicsr(image), abs=1e-2)


@pytest.mark.shared
def test_niqe_equals_basicsr_where_whole_blocks_are_flat(shared: Path) -> None:
    image = photo(shared / "data" / "photos" / "city-lossless.png")
    image[:, :, :300, :210] = 1.0
    assert float(niqe(shared).raw(image)) == pytest.approx(niqe_of_basicsr(image), abs=1e-2)


@pytest.mark.shared
def test_niqe_stays_on_the_cpu(shared: Path) -> None:
    image = texture(200, 210)
    assert torch.equal(niqe(shared).to("meta").raw(image), niqe(shared).raw(image))


def niqe_of_basicsr(image: Tensor) -> float:
    pytest.importorskip("basicsr")
    pixels = (image[0].flip(0) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from basicsr.metrics.niqe import calculate_niqe

        return calculate_niqe(pixels, 0)


@pytest.mark.shared
def test_niqe_where_basicsr_is_not(shared: Path) -> None:
    """The same figure that BasicSR gave: 2.99558."""
    image = photo(shared / "data" / "photos" / "night-lossless.png")
    assert float(niqe(shared).raw(image)) == pytest.approx(2.9956, abs=1e-2)


@pytest.mark.shared
def test_niqe_takes_the_statistics_of_an_installed_basicsr_without_importing_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("basicsr")
    for module in [name for name in sys.modules if name.partition(".")[0] == "basicsr"]:
        monkeypatch.delitem(sys.modules, module)
    assert load_scorer("niqe").digest() == niqe(shared).digest()
    assert "basicsr" not in sys.modules


def test_niqe_without_its_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="niqe=FILE"):
        load_scorer("niqe")
    good = {
        "mu_pris_param": np.zeros((1, 36)),
        "cov_pris_param": np.eye(36),
        "gaussian_window": np.full((7, 7), 1 / 49),
    }
    cases = {
        "missing": ({key: value for key, value in good.items() if key != "cov_pris_param"}, "cov_pris_param"),
        "shape": ({**good, "mu_pris_param": np.zeros(36)}, "mu_pris_param"),
        "window": ({**good, "gaussian_window": np.eye(7) / 7}, "window"),
    }
    for name, (content, word) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(CheckpointError, match=word):
            NIQE(tmp_path / f"{name}.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shape.npz").read_bytes()[:300])
    for name in ("cut", "there_is_none"):
        with pytest.raises(CheckpointError, match=name):
            NIQE(tmp_path / f"{name}.npz")


# ---------------------------------------------------------------- CNNIQA and NIMA against plain code


@pytest.mark.shared
def test_cnniqa_equals_its_paper_patch_by_patch(shared: Path) -> None:
    from safetensors.numpy import load_file

    state = load_file(weights(shared, "cnniqa_live.safetensors"))
    image = photo(shared / "data" / "photos" / "city-lossless.png")[:, :, 100:171, 40:140].contiguous()
    grey = (image[0].double().numpy() * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    scores = []
    for top in (0, 32):
        for left in (0, 32, 64):
            patch = grey[top : top + 32, left : left + 32]
            padded = np.pad(patch, 1, mode="symmetric")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
            normal = (patch - windows.mean((2, 3))) / (windows.std((2, 3)) + 1)
            places = np.lib.stride_tricks.sliding_window_view(normal, (7, 7))
            found = np.einsum("yxij,kij->kyx", places, state["conv1.weight"][:, 0]) + state["conv1.bias"][:, None, None]
            hidden = np.concatenate((found.max((1, 2)), found.min((1, 2))))
            for layer in ("fc1", "fc2"):
                hidden = np.maximum(state[f"{layer}.weight"] @ hidden + state[f"{layer}.bias"], 0)
            scores.append(float((state["fc3.weight"] @ hidden + state["fc3.bias"])[0]))
    assert float(cnniqa(shared).raw(image)) == pytest.approx(np.mean(scores), abs=2e-3)


def keras_mobilenet(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """MobileNetV1 as Keras runs it, of weights by Keras' names and layouts: (B, 3, H, W) in [-1, 1] -> (B, 10)."""

    def same(x: Tensor, stride: int) -> Tensor:
        """TensorFlow's "same" for a window of 3: what is odd goes to the right and the bottom."""
        (above, below), (left, right) = (
            (total // 2, total - total // 2)
            for total in (max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[2:])
        )
        return torch.nn.functional.pad(x, (left, right, above, below))

    def norm(x: Tensor, layer: str) -> Tensor:
        gamma, beta, mean, variance = (
            state[f"{layer}/{layer}/{part}:0"].view(1, -1, 1, 1)
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (gamma * (x - mean) / torch.sqrt(variance + 0.001) + beta).clamp(0, 6)

    x = same(image, 2)
    x = torch.nn.functional.conv2d(x, state["conv1/conv1/kernel:0"].permute(3, 2, 0, 1), stride=2)
    x = norm(x, "conv1_bn")
    for pair in range(1, 14):
        stride = 2 if pair in (2, 4, 6, 12) else 1
        kernel = state[f"conv_dw_{pair}/conv_dw_{pair}/depthwise_kernel:0"].permute(2, 3, 0, 1)
        x = norm(
            torch.nn.functional.conv2d(same(x, stride), kernel, stride=stride, groups=x.shape[1]), f"conv_dw_{pair}_bn"
        )
        kernel = state[f"conv_pw_{pair}/conv_pw_{pair}/kernel:0"][0, 0]
        x = norm(torch.einsum("bchw,cd->bdhw", x, kernel), f"conv_pw_{pair}_bn")
    return (x.mean((2, 3)) @ state["dense_1/dense_1/kernel:0"] + state["dense_1/dense_1/bias:0"]).softmax(1)


@pytest.mark.shared
def test_nima_equals_a_mobilenet_written_after_keras(shared: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(weights(shared, "nima_mobilenet_aesthetic_keras.safetensors"))
    image = photo(shared / "data" / "photos" / "dog-lossless.png")[:, :, :224, :224].contiguous()
    marks = keras_mobilenet(state, image * 2 - 1)
    scorer: Any = nima(shared)
    torch.testing.assert_close(scorer.distribution(image), marks, rtol=1e-3, atol=1e-5)
    assert float(scorer.raw(image)) == pytest.approx(float((marks * torch.arange(1, 11)).sum()), abs=1e-3)


@pytest.mark.shared
def test_nima_of_a_large_photo_is_that_of_its_antialiased_thumbnail(shared: Path) -> None:
    """Pillow's bilinear resize, with which 3.90 for RealSRSet was found, rounds to 8 bits; ours does not."""
    from PIL import Image

    scorer = nima(shared)
    files = sorted((shared / "data" / "real_lq" / "RealSRSet").iterdir())
    ours, by_pillow = [], []
    for file in files:
        image = photo(file)
        ours.append(float(scorer.raw(image)))
        pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        small = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
        by_pillow.append(float(scorer.raw(torch.from_numpy(small).permute(2, 0, 1)[None])))
    assert np.mean(ours) == pytest.approx(3.90, abs=0.01)
    np.testing.assert_allclose(ours, by_pillow, atol=0.05)


# ---------------------------------------------------------------- other libraries


@pytest.mark.shared
def test_brisque_is_the_packages(shared: Path) -> None:
    library = pytest.importorskip("brisque").BRISQUE(url=False)
    plain = library.scale_features
    library.scale_features = lambda features: plain([float(np.ravel(feature)[0]) for feature in features])
    image = photo(shared / "data" / "photos" / "city-lossless.png")[:, :, :120, :160]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = library.score((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert float(brisque(shared).raw(image)) == pytest.approx(expected, abs=1e-4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, source in (("brisque", "brisque"), ("pyiqa", "piqe"), ("pyiqa", "pyiqa:musiq")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RefineWrapError, match=f"needs the package {module}.*\n.*\n.*pip install"):
            load_scorer(source)


@pytest.mark.shared
def test_piqe_is_pyiqas(shared: Path) -> None:
    pytest.importorskip("pyiqa")
    from pyiqa.models.inference_model import InferenceModel

    images = torch.cat([texture(70, 90, seed=seed) for seed in range(2)])
    scorer = piqe(shared)
    assert (scorer.worst, scorer.best, scorer.name) == (100.0, 0.0, "piqe")
    torch.testing.assert_close(scorer.raw(images), InferenceModel("piqe", device="cpu")(images).view(-1).float())
    assert load_scorer("pyiqa:piqe").about() == scorer.about()


def test_pyiqa_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pyiqa")
    from huggingface_hub import constants

    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    asked: list[Any] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: asked.append(args) or real(*args, **more))
    for metric, file in (("musiq", "musiq_koniq_ckpt"), ("maniqa-pipal", "pytorch_model.bin")):
        with pytest.raises(CheckpointError, match=f"pyiqa:{metric} needs {file}.*nothing is downloaded"):
            load_scorer(f"pyiqa:{metric}")
    assert not asked and not list(tmp_path.iterdir()) and not constants.HF_HUB_OFFLINE
    server = socket.create_server(("127.0.0.1", 0))  # the network is there again
    with server, socket.create_connection(("localhost", server.getsockname()[1]), timeout=5):
        assert asked


def test_pyiqas_metric_with_its_weights_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pyiqa")
    from pyiqa.archs.cnniqa_arch import CNNIQA, default_model_urls

    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    network = CNNIQA(pretrained=None).eval()
    torch.save({"params": network.state_dict()}, tmp_path / default_model_urls["koniq10k"].rsplit("/", 1)[-1])
    scorer = load_scorer("pyiqa:cnniqa")
    image = texture(64, 64)
    torch.testing.assert_close(scorer.raw(image), network(image).detach().view(-1))
    assert scorer.differentiable and (scorer.worst, scorer.best) == (0.0, 1.0)
    image.requires_grad_()
    scorer.raw(image).sum().backward()
    assert image.grad is not None and image.grad.any()


def test_pyiqas_metrics_that_are_no_scorers() -> None:
    pytest.importorskip("pyiqa")
    for metric, word in (("psnr", "needs a reference"), ("pi", "no range"), ("piqq", "did you mean pyiqa:piqe")):
        with pytest.raises(RefineWrapError, match=word):
            load_scorer(f"pyiqa:{metric}")


# ---------------------------------------------------------------- ensembles


class Mean(Scorer):
    """The mean of the image, times a factor: something whose ensemble can be calculated by hand."""

    def __init__(self, name: str, factor: float, worst: float, best: float) -> None:
        super().__init__()
        self.name, self.worst, self.best, self.differentiable = name, worst, best, True
        self.register_buffer("factor", torch.tensor(factor))

    def raw(self, image: Tensor) -> Tensor:
        return self.checked(image).mean(dim=(1, 2, 3)) * self.factor


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_an_ensemble_is_the_mean_of_min_max_normalised_scores() -> None:
    up, down = Mean("up", 10.0, 0.0, 10.0), Mean("down", 100.0, 100.0, 0.0)
    table = {"up": [2.0, 8.0, 4.0], "down": [40.0, 20.0, 60.0], "other": [1.0]}
    both = Ensemble.fit([up, down], table)
    assert both.bounds == [(2.0, 8.0), (20.0, 60.0)]
    # up: (3 - 2) / 6 and (6 - 2) / 6; down: 1 - (30 - 20) / 40 and 1 - (60 - 20) / 40.
    expected = torch.tensor([(1 / 6 + 3 / 4) / 2, (4 / 6 + 0) / 2])
    torch.testing.assert_close(both(grey(0.3, 0.6)), expected)
    assert float(both.raw(grey(0.0))) == pytest.approx((-2 / 6 + 1.5) / 2)
    assert float(Ensemble([up, down], [(-9.0, -8.0), (200.0, 201.0)])(grey(0.5))) == 1.0  # held there


def test_an_ensemble_says_what_it_is_made_of() -> None:
    up, down = Mean("up", 10.0, 0.0, 10.0), Mean("down", 100.0, 100.0, 0.0)
    both = Ensemble([up, down], [(0.0, 1.0), (2.0, 3.0)])
    about = json.loads(json.dumps(both.about()))
    assert about["name"] == "ensemble(up+down)" and about["bounds"] == [[0.0, 1.0], [2.0, 3.0]]
    assert [part["name"] for part in about["scorers"]] == ["up", "down"]
    again = Ensemble([up, down], about["bounds"])
    assert again.digest() == both.digest()
    others = [
        Ensemble([up, down], [(0.0, 1.0), (2.0, 3.5)]),
        Ensemble([Mean("up", 11.0, 0.0, 10.0), down], [(0.0, 1.0), (2.0, 3.0)]),
    ]
    assert len({both.digest(), *(other.digest() for other in others)}) == 3


def test_an_ensemble_refuses() -> None:
    up, down = Mean("up", 10.0, 0.0, 10.0), Mean("down", 100.0, 100.0, 0.0)
    cases: list[tuple[Callable[[], Ensemble], str]] = [
        (lambda: Ensemble([up], [(0, 1)]), "An ensemble of up"),
        (lambda: Ensemble([up, up], [(0, 1), (0, 1)]), "An ensemble of up, up"),
        (lambda: Ensemble([up, down], [(0, 1)]), "2 scorers has 1 bounds"),
        (lambda: Ensemble([up, down], [(0, 1), (1, 1)]), "bounds of down"),
        (lambda: Ensemble([up, down], [(0, math.inf), (0, 1)]), "bounds of up"),
        (lambda: Ensemble.fit([up, down], {"up": [1.0, 2.0]}), "down has no scores"),
        (lambda: Ensemble.fit([up, down], {"up": [1.0, 2.0], "down": [3.0, 3.0]}), "1 of them different"),
        (lambda: Ensemble.fit([up, down], {"up": [1.0, math.nan], "down": [3.0, 4.0]}), "up has 2 scores"),
    ]
    for make, words in cases:
        with pytest.raises(RefineWrapError, match=words):
            make()


# ---------------------------------------------------------------- load_scorer

TRUNK = {"name": "tiny", "trunk": "test_efficientnet", "options": {}}


def scorer_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    tensors = dict(LearnedScorer(**TRUNK).state_dict()) if tensors is None else tensors
    return save_adapter(folder, Adapter(kind="scorer", config=config, tensors=tensors, licence="CC0-1.0"))


def test_a_trained_scorer_comes_from_its_folder(tmp_path: Path) -> None:
    trained = LearnedScorer(**TRUNK)
    folder = scorer_folder(tmp_path / "tiny", {"scorer": "learned", **TRUNK}, dict(trained.state_dict()))
    for source in (folder, str(folder)):
        scorer = load_scorer(source)
        assert scorer.about() == trained.about() and scorer.licence == "CC0-1.0"
        assert not scorer.training and not any(parameter.requires_grad for parameter in scorer.parameters())
        image = texture(50, 60)
        torch.testing.assert_close(scorer(image), trained.eval()(image).detach())
    assert load_scorer(scorer) is scorer


def test_a_folder_that_is_no_scorer_is_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1)}
    refiner = save_adapter(tmp_path / "refiner", Adapter(kind="refiner", config={}, tensors=tensors))
    cases = [
        (refiner, "of kind refiner"),
        (scorer_folder(tmp_path / "newer", {"scorer": "telepathy"}), "network 'telepathy'.*\n.*learned.*\n.*upgrade"),
        (scorer_folder(tmp_path / "option", {"scorer": "learned", **TRUNK, "speed": 3}), "cannot be built.*speed"),
        (scorer_folder(tmp_path / "keys", {"scorer": "learned", **TRUNK}, tensors), "missing"),
        (tmp_path, "not an adapter folder"),
        (tmp_path / "nowhere", "There is no folder"),
    ]
    for folder, words in cases:
        with pytest.raises(CheckpointError, match=words):
            load_scorer(folder)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("niqq", "no scorer 'niqq'.*\n.*pyiqa:NAME.*\n.*did you mean niqe"),
        ("Nima2", "did you mean nima"),
        ("something else", "no scorer 'something else'"),
        ("cnniqa", "cnniqa=FILE"),
        ("nima", "nima=FILE"),
        ("cnniqa=", "names no file"),
        ("cnniqa=/nowhere/at/all.safetensors", "There is no file /nowhere/at/all.safetensors"),
        ("brisque=a.npz", "takes no file"),
        ("niqqe=a.npz", "did you mean niqe"),
        ("shipped:there_is_none", "there_is_none"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, words: str) -> None:
    with pytest.raises(RefineWrapError, match=words):
        load_scorer(source)


@pytest.mark.shared
def test_files_of_another_scorer_are_refused(shared: Path) -> None:
    nima_file, cnniqa_file = (
        weights(shared, "nima_mobilenet_aesthetic_keras.safetensors"),
        weights(shared, "cnniqa_live.safetensors"),
    )
    for source, words in (
        (f"nima={cnniqa_file}", "does not fit NIMA"),
        (f"cnniqa={nima_file}", "does not fit CNNIQA"),
        (f"niqe={nima_file}", "not a whole .npz"),
        (Path(nima_file), "does not say which scorer.*\n.*\n.*nima="),
    ):
        with pytest.raises(RefineWrapError, match=words):
            load_scorer(source)


def test_the_names() -> None:
    names = scorer_names()
    assert {"niqe", "brisque", "cnniqa", "nima", "piqe"} <= set(names)
    shipped = set(names) - {"niqe", "brisque", "cnniqa", "nima", "piqe"}
    assert shipped == {f"shipped:{name}" for name in SHIPPED}
    for name in shipped:
        assert sum(file.stat().st_size for file in (weights_dir() / name.removeprefix("shipped:")).iterdir()) < 6e6


# ---------------------------------------------------------------- memory


@pytest.mark.shared
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in other units elsewhere")
def test_memory_does_not_grow_with_the_photo(shared: Path) -> None:
    """In a process of its own, whose peak is asked for after each. Whole, NIQE would take 250 MB and CNNIQA 400 MB."""
    sources = {
        "nima": weights(shared, "nima_mobilenet_aesthetic_keras.safetensors"),
        "niqe": weights(shared, "niqe_pris_params.npz"),
        "cnniqa": weights(shared, "cnniqa_live.safetensors"),
    }
    code = f"""
import resource, torch
from refine_wrap.scorers import load_scorer
torch.set_num_threads(1)
torch.set_grad_enabled(False)
scorers = [load_scorer(f"{{name}}={{file}}") for name, file in {sources!r}.items()]
for scorer in scorers[:2]:
    scorer(torch.rand(1, 3, 200, 200))
image = torch.empty(1, 3, 1500, 2000).uniform_()
for scorer in (None, *scorers):
    if scorer is not None:
        scorer(image)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, *after = map(float, done.stdout.split())
    for name, peak, bound in zip(sources, after, (30, 50, 200), strict=True):
        assert peak - before < bound, f"{name}: {peak - before:.0f} MB beside an image of 34 MB"
