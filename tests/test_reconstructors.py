"""Reconstructors as networks: published sizes, any image, no chance where none may be, no seams, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from reconstructors import SMALL, need, small
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from refine_wrap import RefineWrapError
from refine_wrap.errors import CheckpointError, ImageError
from refine_wrap.reconstruction import (
    DDIM,
    MAE,
    VQVAE2,
    Reconstruction,
    Reconstructor,
    VanillaVAE,
    load_reconstructor,
    save_reconstructor,
)
from refine_wrap.reconstruction.load import RECONSTRUCTORS, build_reconstructor
from refine_wrap.reconstruction.tiles import blended, starts

BOOKS = ("embedding.weight", "counts", "sums")


def test_all_kinds_are_tried() -> None:
    assert set(SMALL) == set(RECONSTRUCTORS)


def test_the_published_size_of_vqvae2() -> None:
    """1,388,867 parameters beside the codebooks, 64 tensors, 3.77 G multiply-adds at 256 pixels."""
    network = VQVAE2().eval()
    state = network.state_dict()
    assert len(state) == 64
    assert sum(value.numel() for name, value in state.items() if not name.endswith(BOOKS)) == 1_388_867
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 256, 256))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions / 2 == pytest.approx(3.77e9, rel=0.002)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_sizes_of_the_others() -> None:
    """The VAE of AntixK, ViT-B with MAE's decoder, and Ho's U-Net for 256 pixels, on no device: they are large."""
    with torch.device("meta"):
        assert parameters(VanillaVAE()) == 3_937_635
        mae = MAE()
        # The published count is 111,907,840 and has the fixed positions of patches and class token in it.
        fixed = (14 * 14 + 1) * (768 + 512)
        assert mae.places.shape == (196, 768) and mae.decoder_places.shape == (196, 512)
        assert parameters(mae) + fixed == 111_907_840
        assert (VanillaVAE().stride, mae.stride) == (64, 224)
        need("ddim")
        assert parameters(DDIM()) == 113_673_219


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 16), (50, 33)])
def test_any_size(kind: str, size: tuple[int, int]) -> None:
    made = small(kind).reconstruct(torch.rand(2, 3, *size))
    assert made.shape == (2, 3, *size) and float(made.min()) >= 0 and float(made.max()) <= 1
    assert float(made.std()) > 0


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_padding_is_of_no_account_where_there_is_none(kind: str) -> None:
    network = small(kind)
    image = torch.rand(1, 3, 16, 16 if network.fixed else 24)
    with torch.no_grad():
        plain = ((network.paint(image * 2 - 1) + 1) / 2).clamp(0, 1)
        wrong = network.paint(image).clamp(0, 1)
    assert torch.equal(network.reconstruct(image), plain)
    assert torch.equal(network.reconstruct(image, half_range=True), wrong), "as the author's script generates"
    assert not torch.equal(plain, wrong)


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in RECONSTRUCTORS), ("mae", {"masked_in_use": 0.5})]
)
def test_nothing_is_left_to_chance(kind: str, options: dict[str, Any]) -> None:
    """The same at each call, alone or in a batch, and in training mode too, whose statistics it leaves alone."""
    network, images = small(kind, **options), torch.rand(2, 3, 21, 18)
    made = network.reconstruct(images)
    torch.manual_seed(7)
    assert torch.equal(network.reconstruct(images), made)
    alone = torch.cat([network.reconstruct(one) for one in images.split(1)])
    assert torch.allclose(made, alone, atol=1e-5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(network.train().reconstruct(images), made)
    assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_training_reaches_everything(kind: str) -> None:
    """All parameters have a gradient; what is drawn follows from torch's seed."""
    network = small(kind).train()
    image = torch.rand(2, 3, 16, 16) * 2 - 1

    def step(seed: int) -> Tensor:
        torch.manual_seed(seed)
        made: Reconstruction = network(image)
        assert made.output.shape == image.shape
        return (made.output - image).square().mean() + (0 if made.loss is None else made.loss)

    step(1).backward()
    for name, value in network.named_parameters():
        if value.requires_grad and not name.endswith("bias"):  # before a norm or in a softmax some of these do nothing
            assert value.grad is not None and value.grad.any(), name
    if kind in ("vae", "mae", "ddim"):
        one, same, other = (float(step(seed).detach()) for seed in (1, 1, 2))
        assert one == same != other


@pytest.mark.parametrize("kind", RECONSTRUCTORS)
def test_on_disk(kind: str, tmp_path: Path) -> None:
    network = small(kind)
    network.train()(torch.rand(2, 3, 16, 16))  # statistics that are no longer those of the start
    network.eval()
    save_reconstructor(tmp_path / "made", network)
    loaded = load_reconstructor(tmp_path / "made")
    assert type(loaded) is type(network) and loaded.config() == network.config() and not loaded.training
    for half_range in (False, True):
        image = torch.rand(1, 3, 20, 20)
        one, two = (each.reconstruct(image, half_range=half_range) for each in (loaded, network))
        assert torch.equal(one, two)


def test_what_is_no_image_is_refused() -> None:
    for wrong in (torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ImageError):
            small("vqvae2").reconstruct(wrong)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vqvae2", {"channels": 3}),
        ("vqvae2", {"codes": 0}),
        ("vqvae2", {"res_blocks": -1}),
        ("vqvae2", {"decay": 1.0}),
        ("vqvae2", {"chanels": 8}),
        ("vae", {"latent": 0}),
        ("vae", {"channels": []}),
        ("vae", {"channels": 8}),
        ("vae", {"kl": -1.0}),
        ("vae", {"kl": float("nan")}),
        ("mae", {"size": 20, "patch": 16}),
        ("mae", {"dim": 30, "heads": 3}),
        ("mae", {"heads": 5}),
        ("mae", {"decoder_depth": 0}),
        ("mae", {"masked": 1.0}),
        ("mae", {"masked_in_use": -0.1}),
        ("mae", {"size": "64"}),
        ("ddim", {"channels": []}),
        ("ddim", {"channels": [6]}),
        ("ddim", {"attention": [9]}),
        ("ddim", {"layers": 0}),
        ("ddim", {"steps": 0}),
        ("ddim", {"steps": 1001}),
        ("ddim", {"depth": 0.0}),
    ],
)
def test_networks_that_cannot_be(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(RefineWrapError) as refused:
        build_reconstructor(kind, **options)
    assert len(str(refused.value).splitlines()) <= 3


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RefineWrapError, match="There is no reconstructor 'vae3'"):
        build_reconstructor("vae3")


# ---------------------------------------------------------------- tiles


class Same(Reconstructor):
    """The identity, of squares alone."""

    kind = "same"
    stride = 16
    fixed = True

    def forward(self, image: Tensor) -> Reconstruction:
        assert image.shape[-2:] == (self.stride, self.stride)
        return Reconstruction(image, None)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 16), (15, 40), (33, 100)])
def test_the_identity_in_tiles_is_the_identity(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    assert torch.equal(Same().reconstruct(image, half_range=True), image)
    assert torch.allclose(Same().reconstruct(image), image, atol=1e-6)


def test_tiles_that_differ_meet_without_a_step() -> None:
    """Tiles of quite other brightness: neighbours differ by little, though tiles differ by 1."""
    count = iter(range(100))
    image = blended(lambda part: torch.full_like(part, next(count) % 2), torch.zeros(1, 1, 64, 208), 64)
    assert float(image.max()) == 1 and float(image.min()) == 0
    assert float(image.diff(dim=3).abs().max()) < 0.08


@pytest.mark.parametrize("length", range(16, 90))
def test_tiles_cover_everything_and_overlap(length: int) -> None:
    begin = starts(length, 16)
    assert begin[0] == 0 and begin[-1] == length - 16
    assert all(0 < b - a <= 12 for a, b in pairwise(begin))


# ---------------------------------------------------------------- what each is by itself


@torch.no_grad()
def test_the_divergence_of_a_vae() -> None:
    """As torch.distributions has it, and none where the latent is normal."""
    network = small("vae", kl=0.5)
    image = torch.rand(4, 3, 16, 16)
    features = network.encoder(image)
    mean, deviation = network.mean(features), (network.log_variance(features) / 2).exp()
    normal = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = torch.distributions.kl_divergence(torch.distributions.Normal(mean, deviation), normal)
    assert float(network(image).loss) == pytest.approx(0.5 * float(divergence.sum(1).mean()), rel=1e-5)
    for layer in (network.mean, network.log_variance):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert float(network(image).loss) == 0


def test_an_mae_paints_from_what_it_sees_alone() -> None:
    """What is hidden changes nothing but the pattern; each patch that is seen changes all others."""
    network = small("mae").train()
    image = torch.rand(1, 3, 16, 16)
    torch.manual_seed(3)
    seen = network._seen(image)[0].tolist()
    assert len(seen) == 4 and seen == sorted(set(seen))
    for patch in range(16):
        row, column = divmod(patch, 4)
        changed = image.clone()
        changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
        torch.manual_seed(3)
        one = network(image).output
        torch.manual_seed(3)
        assert torch.equal(network(changed).output, one) == (patch not in seen)
    shares = {tuple(network._seen(image)[0].tolist()) for _ in range(20)}
    assert len(shares) > 10, "drawn anew"


def test_the_pattern_in_use_follows_from_the_picture() -> None:
    network = small("mae", masked_in_use=0.5)
    images = torch.rand(8, 3, 16, 16)
    seen = network._seen(images)
    assert seen.shape == (8, 8) and len({tuple(row) for row in seen.tolist()}) > 4
    eight_bit = (images * 255).round() / 255 * 2 - 1
    assert torch.equal(network._seen(eight_bit), network._seen(eight_bit + 1e-6)), "rounding changes nothing"
    assert torch.equal(small("mae")._seen(images), torch.arange(16).expand(8, -1)), "by default all is seen"


def test_patches_lie_where_they_belong() -> None:
    """An MAE whose decoder says the numbers of its patches."""
    network = small("mae")
    nn.init.zeros_(network.to_pixels.weight)
    network.to_pixels.bias.data = torch.arange(48.0)
    output = network(torch.rand(1, 3, 16, 16)).output[0]
    tile = torch.arange(48.0).reshape(3, 4, 4)
    assert torch.equal(output, tile.repeat(1, 4, 4))
    network.to_pixels.bias.data.zero_()
    network.to_pixels = nn.Linear(8, 48)
    network.decoder = nn.Identity()
    with torch.no_grad():
        network.to_decoder.weight.zero_()
        network.to_decoder.bias.zero_()
        made = network(torch.rand(1, 3, 16, 16)).output
        patches = network.to_pixels(network.decoder_places).reshape(4, 4, 3, 4, 4)
    for row in range(4):
        for column in range(4):
            part = made[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.allclose(part, patches[row, column], atol=1e-6)


class Told(nn.Module):
    """A U-Net that says always the same noise."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise, self.levels = noise, []

    def forward(self, image: Tensor, level: Any) -> Any:
        self.levels.append(level)
        return type("Said", (), {"sample": self.noise})


@pytest.mark.parametrize("depth", [1.0, 0.5, 0.01])
def test_what_is_inverted_comes_back(depth: float) -> None:
    """Where the noise is said to be the same everywhere, the way back is the way there, step for step."""
    network = small("ddim", steps=10, depth=depth)
    network.unet = Told(torch.randn(1, 3, 8, 8))
    image = torch.rand(1, 3, 8, 8)
    assert torch.allclose(network.reconstruct(image), image, atol=1e-3)
    count = max(1, round(10 * depth))
    there = [100 * step for step in range(count)]
    assert network.unet.levels == there + there[::-1]


def test_the_noise_of_a_ddim() -> None:
    """A network that knows the noise has no loss and knows the image."""
    network, image = small("ddim"), torch.rand(2, 3, 8, 8) * 2 - 1
    torch.manual_seed(5)
    torch.randint(1000, (2,))
    network.unet = Told(torch.randn_like(image))
    torch.manual_seed(5)
    made = network(image)
    assert float(made.loss) == 0 and torch.allclose(made.output, image, atol=1e-3)


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for kind in ("vae", "vqvae", "vqvae2", "mae"):
        small(kind)
    with pytest.raises(RefineWrapError, match="needs the package diffusers") as refused:
        build_reconstructor("ddim")
    assert refused.value.next_step == "pip install 'refine-wrap[ddim]'"


def test_an_adapter_without_diffusers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_reconstructor(tmp_path / "made", small("ddim"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CheckpointError, match="needs the package diffusers") as refused:
        load_reconstructor(tmp_path / "made")
    assert refused.value.next_step == "pip install 'refine-wrap[ddim]'"


def test_diffusers_is_imported_where_it_is_used() -> None:
    lines = "import sys\nfrom refine_wrap.reconstruction import *\nVanillaVAE(), VQVAE(), DDIM\n"
    done = subprocess.run([sys.executable, "-c", f"{lines}print(*sys.modules)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"diffusers", "timm"} & set(done.stdout.split())
