"""Paper 2: codebooks, the restorer, quality as a condition. Parity with the golden files, and what the published code lacks."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from networks import FAMILIES
from torch import nn
from typer.testing import CliRunner

from refine_wrap import (
    Backbone,
    Picture,
    Recipe,
    RefineWrapError,
    RefineWrapper,
    load_backbone,
    read_image,
    write_image,
)
from refine_wrap.cli.main import app
from refine_wrap.errors import CheckpointError, ImageError, RecipeError
from refine_wrap.hub import load_adapter
from refine_wrap.quality import (
    CodebookRestorer,
    Condition,
    DualCodebookAutoencoder,
    load_autoencoder,
    restorer_from_published,
)
from refine_wrap.quality.autoencoder import Generator, Layout
from refine_wrap.quantize import VectorQuantizer, choose, silhouette, usage
from refine_wrap.resources import weights_dir
from refine_wrap.restore import DoNoHarm
from refine_wrap.training import finetune
from refine_wrap.training.codebook import CodesObjective
from refine_wrap.training.objectives import build_objective

LAYOUT: dict[str, Any] = {
    "nf": 32,
    "ch_mult": (1, 1, 1),
    "res_blocks": 1,
    "attn_resolutions": (4,),
    "emb_dim": 8,
    "codebook_size": 16,
    "hq_codebook_size": 16,
}
RESTORER = dict(FAMILIES["CodebookRestorer"][1])
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")


def spread(network: nn.Module) -> None:
    """Codes as far apart as latents are, as after training: with the narrow first ones all positions take a few."""
    for module in network.modules():
        if isinstance(module, VectorQuantizer):
            nn.init.normal_(module.embedding.weight)


@pytest.fixture
def autoencoder() -> DualCodebookAutoencoder:
    made = DualCodebookAutoencoder(**LAYOUT).eval()
    spread(made)
    return made


@pytest.fixture
def restorer() -> CodebookRestorer:
    made = CodebookRestorer(**RESTORER).eval()
    spread(made)
    return made


# Parity


@pytest.mark.shared
@needs_shared
def test_the_official_autoencoder() -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = SHARED / "golden/dual_codebook_s32.safetensors"
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        about = dict(file.metadata())
    assert about.pop("arch") == "VQAutoEncoder" and about.pop("img_size") == "32"
    kinds = {"hq_threshold": float, "hq_weight": float, "fusion": str}
    options = {
        key: [int(n) for n in value.split(",")]
        if key in ("ch_mult", "attn_resolutions")
        else kinds.get(key, int)(value)
        for key, value in about.items()
    }
    network = DualCodebookAutoencoder(**options).eval()
    network.load_state_dict({n.removeprefix("state."): v for n, v in golden.items() if n.startswith("state.")})
    with torch.no_grad():
        got = network(golden["input"], golden["score"])
    for name in ("latent", "output"):
        assert (getattr(got, name) - golden[name]).abs().max() < 1e-5
    for name in ("loss_common", "loss_hq"):
        assert abs(float(getattr(got, name)) - float(golden[name])) < 1e-6
    for name in ("index_common", "index_hq"):
        assert torch.equal(getattr(got, name).flatten(), golden[name].flatten())
    assert DualCodebookAutoencoder(**network.config()).config() == network.config()


def by_formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of `iqpir_formula`, as golden/README.md has them."""
    count = math.prod(shape)
    wave = np.sin(12.9898 * np.arange(count, dtype=np.float64) + 78.233 * (zlib.crc32(name.encode()) % 99991))
    v = (wave * 43758.5453 - np.floor(wave * 43758.5453)) * 2 - 1
    norm = name.endswith("norm.weight") or (".norm" in name and name.endswith(".weight"))
    if norm or name == "idx_pred_layer.0.weight":
        v = 1 + 0.1 * v
    elif len(shape) == 1:
        v = 0.1 * v
    elif name.startswith(("quantize", "position", "score")):
        v = 0.5 * v
    else:
        v = v * math.sqrt(3 * shape[0] / count)
    return torch.from_numpy(v.astype(np.float32)).reshape(shape)


@pytest.mark.shared
@needs_shared
def test_the_official_restorer(tmp_path: Path) -> None:
    """Layout, and what the published network computes, by way of a checkpoint file of its own form."""
    from safetensors.torch import load_file

    layouts = json.loads((SHARED / "golden/iqpir_checkpoint_layout.json").read_text())
    plain, add, adaln = layouts.values()
    for conditioning, added in ((None, {}), ("add", add), ("adaln", adaln)):
        with torch.device("meta"):
            state = CodebookRestorer(conditioning=conditioning).state_dict()
        assert {name: list(value.shape) for name, value in state.items()} == {**plain, **added}
    assert len({**plain, **add}) == 517
    state = {name: by_formula(name, tuple(shape)) for name, shape in {**plain, **add}.items()}
    wrong = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"params": wrong, "params_ema": state}, tmp_path / "iqpir.pth")
    network = restorer_from_published(tmp_path / "iqpir.pth", hq_weight=0.8, quality=0.95)
    golden = load_file(SHARED / "golden/iqpir_formula.safetensors")
    row, col = np.arange(512)[:, None], np.arange(512)[None]
    waves = [0.5 * np.sin(col / 17 + row / 29 + c) + 0.4 * np.cos(col * row / 9000 + c) for c in range(3)]
    image = torch.from_numpy(np.clip(waves, -1, 1).astype(np.float32))[None]
    with torch.no_grad():
        got = network.restore(image)
    assert (got.logits[0, 0] - golden["logits_row0"]).abs().max() < 1e-3
    assert (got.logits.mean(2) - golden["logits_mean"]).abs().max() < 1e-3
    clear = golden["index_gap"] > 1e-3
    assert clear.float().mean() > 0.9 and torch.equal(got.logits.argmax(2)[clear], golden["index"][clear])
    assert (got.latent.mean((2, 3)) - golden["latent_mean"]).abs().max() < 1e-5
    pooled = torch.nn.functional.avg_pool2d(got.output, 8)
    assert (pooled - golden["output_64"]).abs().max() < 1e-3
    assert (got.output[..., :16, :16] - golden["output_corner"]).abs().max() < 1e-3


# What the published code lacks


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (12, 28), (64, 8)])
def test_any_multiple_of_the_stride(
    autoencoder: DualCodebookAutoencoder, restorer: CodebookRestorer, size: tuple[int, int]
) -> None:
    image = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        got = autoencoder(image, 0.9)
        assert got.output.shape == image.shape and got.index_common.shape == (2, size[0] // 4, size[1] // 4)
        for fidelity in (0.0, 0.5):
            assert restorer(image, 0.9, fidelity).shape == image.shape
    for network in (lambda x: autoencoder(x, 0.5), restorer):
        with pytest.raises(ImageError, match="multiples of 4"):
            network(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize("conditioning", ["add", "adaln"])
def test_a_quality_for_each_image_of_a_batch(conditioning: str) -> None:
    network = CodebookRestorer(**{**RESTORER, "conditioning": conditioning}).eval()
    spread(network)
    for name, parameter in network.named_parameters():
        if "adaLN" in name:  # zero when new
            nn.init.normal_(parameter, std=0.1)
    image = (torch.rand(3, 3, 16, 16) * 2 - 1)[:1].repeat(3, 1, 1, 1)
    wanted = torch.tensor([0.0, 0.5, 1.0])
    with torch.no_grad():
        together = network.predict(image, wanted)[0]
        alone = torch.cat([network.predict(image[:1], float(q))[0] for q in wanted])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-4)
        assert not torch.allclose(together[1], together[2], atol=1e-4)
        near = network.predict(image[:1], 0.5 + 1e-4)[0]
        assert (near - alone[1:2]).abs().max() < 1e-2, "no steps between qualities"
        flat = [network.predict(image[:1], q)[0] for q in (0.95, 1.0)]
        assert torch.equal(*flat), "above the middle of the last bin it stays, as the published bins do"


@pytest.mark.parametrize(
    "quality",
    [-0.1, 1.01, float("nan"), torch.rand(3), torch.tensor([0.5, 2.0]), [0.2, 0.9], "0.5", np.array([0.2, 0.9])],
)
def test_a_wrong_quality_is_refused(
    autoencoder: DualCodebookAutoencoder, restorer: CodebookRestorer, quality: Any
) -> None:
    image = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ImageError, match="quality"):
        restorer(image, quality)
    with pytest.raises(ImageError, match="score"):
        autoencoder(image, quality)


def test_only_scores_above_the_threshold_reach_the_hq_codebook() -> None:
    network = DualCodebookAutoencoder(**LAYOUT, hq_threshold=0.6, hq_weight=0.5)
    spread(network)
    assert network.quantize_aesthetic is not None
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        low, high = network(image, torch.tensor([0.6, 0.1])), network(image, torch.tensor([0.61, 0.1]))
    assert float(low.loss_hq) == 0 and float(high.loss_hq) > 0
    assert torch.equal(low.output[1], high.output[1]) and not torch.equal(low.output[0], high.output[0])
    weight = network.quantize_aesthetic.embedding.weight
    for score, reached in ((0.6, False), (0.7, True)):
        network.zero_grad()
        got = network(image, score)
        (got.loss_common + got.loss_hq).backward()
        assert (weight.grad is not None and bool(weight.grad.any())) is reached
        assert bool(network.quantize.embedding.weight.grad.any())


def test_codes_make_the_image_again(autoencoder: DualCodebookAutoencoder) -> None:
    image = torch.rand(2, 3, 16, 12) * 2 - 1
    with torch.no_grad():
        got, indices = autoencoder(image, 1.0), autoencoder.indices(image)
        assert torch.equal(indices[:, 0], got.index_common) and torch.equal(indices[:, 1], got.index_hq)
        torch.testing.assert_close(autoencoder.decode(indices), got.output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["add", "attention"])
def test_without_hq_the_fusion_is_the_common_codes(fusion: str) -> None:
    network = DualCodebookAutoencoder(**LAYOUT, fusion=fusion).eval()
    spread(network)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        got = network(image, 0.1)
        expected = network.generator(network.quantize.look_up(got.index_common))
        torch.testing.assert_close(got.output, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(network(image, 0.9).output, expected, atol=1e-3)


@pytest.mark.parametrize("codes", ["hard", "straight", "gumbel", "soft"])
def test_a_quality_loss_reaches_transformer_heads_and_codebooks(restorer: CodebookRestorer, codes: Any) -> None:
    """With `hard` codes, the published way, none of them has a gradient."""
    got = restorer.restore(torch.rand(2, 3, 16, 16) * 2 - 1, 0.8, codes=codes)
    got.output.mean().backward()
    reached = {name.split(".")[0] for name, p in restorer.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder", "generator"} <= reached
    steered = {"ft_layers", "idx_pred_layer", "feat_emb", "position_emb"}
    assert steered & reached == (set() if codes == "hard" else steered)
    assert restorer.quantize_aesthetic is not None
    for book in (restorer.quantize, restorer.quantize_aesthetic):
        rows = 0 if book.embedding.weight.grad is None else int(book.embedding.weight.grad.any(1).sum())
        assert (rows > 0) == (codes != "hard")
        assert (rows == book.codes) == (codes == "soft")


def test_straight_codes_are_hard_ones_forward(restorer: CodebookRestorer) -> None:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        hard, straight, cold, soft = (
            restorer.restore(image, 0.8, codes=kind, temperature=t).output
            for kind, t in (("hard", 1.0), ("straight", 1.0), ("soft", 1e-4), ("soft", 1.0))
        )
    torch.testing.assert_close(straight, hard, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cold, hard, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(soft, hard, atol=1e-3)


def test_attention_counts_with_adaln_too() -> None:
    """In the published code all attention weights may be replaced and the logits stay the same."""
    network = CodebookRestorer(**{**RESTORER, "conditioning": "adaln"}).eval()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "adaLN" in name:
                parameter.normal_(std=0.1)
        before = network.predict(image, 0.8)[0]
        for name, parameter in network.named_parameters():
            if "self_attn" in name:
                parameter.normal_()
        assert (network.predict(image, 0.8)[0] - before).abs().max() > 1e-3


def test_new_adaln_layers_are_the_identity() -> None:
    network = CodebookRestorer(**{**RESTORER, "conditioning": "adaln"}).eval()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(network.predict(image, 0.1)[0], network.predict(image, 0.9)[0])
        tokens = network.feat_emb(network.encoder(image).flatten(2).permute(2, 0, 1))
        assert torch.equal(network.predict(image, 0.1)[0].flatten(2), network.idx_pred_layer(tokens).transpose(0, 1))


def test_low_qualities_have_no_hq_codes(autoencoder: DualCodebookAutoencoder) -> None:
    """As in the autoencoder; published restorers add them always."""
    autoencoder.hq_threshold = 0.5
    options = {key: RESTORER[key] for key in ("dim", "heads", "layers", "mlp", "connect")}
    restorer = CodebookRestorer.of_autoencoder(autoencoder, **options, conditioning=None).eval()
    image = (torch.rand(1, 3, 16, 16) * 2 - 1).repeat(2, 1, 1, 1)
    with torch.no_grad():
        low, high = restorer(image, torch.tensor([0.5, 0.51]))
        restorer.quantize_aesthetic.embedding.weight.zero_()
        assert torch.equal(restorer(image, 0.5)[0], low) and not torch.equal(restorer(image, 0.51)[0], high)


def test_fuse_blocks_take_part_only_when_asked(restorer: CodebookRestorer) -> None:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        without = restorer(image, fidelity=0.0)
        assert not torch.allclose(restorer(image, fidelity=1.0), without, atol=1e-3)
        for parameter in restorer.fuse_convs_dict.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(restorer(image, fidelity=0.0), without)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(RefineWrapError, match="fidelity"):
            restorer(image, fidelity=wrong)


# In the house


def test_stage_1_is_taken_over(autoencoder: DualCodebookAutoencoder) -> None:
    autoencoder = DualCodebookAutoencoder(**LAYOUT, decay=0.9, restart_after=5)
    options = {key: RESTORER[key] for key in ("dim", "heads", "layers", "mlp", "connect")}
    restorer = CodebookRestorer.of_autoencoder(autoencoder, **options)
    own = restorer.state_dict()
    for name, value in autoencoder.state_dict().items():
        if name.split(".")[-1] not in ("counts", "sums", "idle"):
            assert torch.equal(own[name], value)
    assert restorer.quantize.embedding.weight.requires_grad
    with pytest.raises(RefineWrapError, match="which the autoencoder has"):
        CodebookRestorer.of_autoencoder(autoencoder, **{**options, "nf": 64})


def test_a_restorer_is_a_backbone(restorer: CodebookRestorer, tmp_path: Path) -> None:
    body = Backbone(restorer, source={"arch": "CodebookRestorer", "options": restorer.config()})
    assert body.spec.value_range == (-1, 1)
    image = torch.rand(1, 3, 13, 21)
    with torch.no_grad():
        expected = body(image)
    again = load_backbone(body.save_published(tmp_path / "restorer.safetensors"))
    wrapper = RefineWrapper(again, refiner={"preset": "ornet-lite", "width": 4})
    with torch.no_grad():
        assert torch.equal(wrapper(image), expected) and expected.shape == image.shape
        assert wrapper.knows_quality and not torch.equal(wrapper(image, quality=0.1), expected)
        assert torch.equal(wrapper(image, quality=restorer.quality), expected)
    wrapper.save_pretrained(tmp_path / "adapter")
    loaded = RefineWrapper.from_pretrained(tmp_path / "adapter", backbone=tmp_path / "restorer.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(image), expected)


def test_published_files_that_are_something_else(tmp_path: Path, restorer: CodebookRestorer) -> None:
    torch.save({"params_ema": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"no codebook restorer: it has no encoder\.blocks"):
        restorer_from_published(tmp_path / "other.pth")
    state = restorer.state_dict()
    torch.save({"params_ema": state}, tmp_path / "tiny.pth")
    options = {key: RESTORER[key] for key in ("ch_mult", "res_blocks", "attn_resolutions", "heads", "mlp")}
    again = restorer_from_published(tmp_path / "tiny.pth", **options)
    assert again.config() == restorer.config()
    with pytest.raises(RefineWrapError, match=r"levels of \[8\]"):
        restorer_from_published(tmp_path / "tiny.pth")
    with pytest.raises(RefineWrapError, match="cannot be built"):
        restorer_from_published(tmp_path / "tiny.pth", nonsense=1)
    del state["quantize_aesthetic.embedding.weight"]
    torch.save({"params_ema": state}, tmp_path / "short.pth")
    with pytest.raises(CheckpointError):
        restorer_from_published(tmp_path / "short.pth", **options)


# The quantiser


def test_the_nearest_code() -> None:
    book = VectorQuantizer(5, 3)
    nn.init.normal_(book.embedding.weight)
    latent = torch.randn(2, 3, 4, 6, requires_grad=True)
    got = book(latent)
    distance = (latent.movedim(1, -1)[..., None, :] - book.embedding.weight).square().sum(-1)
    assert torch.equal(got.index, distance.argmin(-1))
    assert torch.allclose(got.latent, book.embedding.weight[got.index].movedim(-1, 1))
    expected = 1.25 * distance.min(-1).values.flatten(1).mean(1) / 3
    torch.testing.assert_close(got.loss, expected)
    got.latent.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent)), "straight-through"


def test_averaged_codes_come_to_the_means_of_what_chose_them() -> None:
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    book = VectorQuantizer(3, 2, decay=0.8).train()
    with torch.no_grad():
        book.embedding.weight.copy_(centres * 0.5)
        book.sums.copy_(book.embedding.weight)
    assert not book.embedding.weight.requires_grad
    for _ in range(60):
        picked = torch.randint(3, (4, 8, 8))
        book((centres[picked] + 0.1 * torch.randn(4, 8, 8, 2)).movedim(-1, 1))
    assert (book.embedding.weight - centres).abs().max() < 0.1
    before = book.embedding.weight.clone()
    far = torch.full((1, 2, 4, 4), 30.0)
    book.eval()(far)
    with torch.no_grad():
        book.train()(far)  # validation and frozen passes must not teach it
    book(far, learn=torch.tensor([False]))
    book(torch.full((1, 2, 4, 4), float("nan")))  # a step that the trainer skips
    assert torch.equal(book.embedding.weight, before)


def test_new_codes_begin_on_latents() -> None:
    """Codes that all lie about zero would be chosen by few, and the latents would shrink to them."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 4, decay=0.99, restart_after=50).train()
    latent = torch.randn(2, 4, 16, 16) * 3
    quantizer(latent)
    assert float(quantizer.embedding.weight.std()) > 1
    assert len(quantizer.nearest(latent).unique()) > 40


def test_loaded_codes_are_no_new_ones() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, 4, restart_after=50)
    codes = torch.randn(64, 4)
    quantizer.load_state_dict({"embedding.weight": codes}, strict=False)
    quantizer.train()(torch.randn(1, 4, 2, 2))
    assert torch.equal(quantizer.embedding.weight, codes)


def test_as_many_groups_as_channels_lose_the_brightness() -> None:
    """Why `groups` can be fewer than the published 32: of narrow networks the last norm takes the mean away."""
    means = {}
    for groups in (32, 8):
        torch.manual_seed(0)
        made = Generator(Layout(nf=32, ch_mult=(1, 2), res_blocks=1, attn_resolutions=(), emb_dim=8, groups=groups))
        with torch.no_grad():
            images = made(torch.randn(6, 8, 16, 16) * torch.arange(1, 7)[:, None, None, None])
        means[groups] = float(images.mean((2, 3)).std(0).mean())
    assert 4 * means[32] < means[8], "what is left comes from the border"


@pytest.mark.parametrize("decay", [None, 0.9])
def test_dead_codes_come_back(decay: float | None) -> None:
    book = VectorQuantizer(8, 2, decay=decay, restart_after=3).train()
    with torch.no_grad():
        book.embedding.weight.fill_(100.0)
        book.embedding.weight[0] = 0.0
        if decay is not None:
            book.sums.copy_(book.embedding.weight)
        book.idle.zero_()  # as after its first batch
    used = []
    for step in range(8):
        torch.manual_seed(step)
        index = book(torch.randn(2, 2, 8, 8)).index
        used.append(usage(index, 8)[0])
    assert used[:3] == [1 / 8] * 3, "not before they were idle three batches long"
    assert used[-1] == 1.0
    twin = VectorQuantizer(8, 2, decay=decay, restart_after=3)
    twin.load_state_dict(book.state_dict())
    torch.manual_seed(99)
    batch = torch.randn(2, 2, 8, 8)
    book(batch), twin.train()(batch)
    assert torch.equal(book.embedding.weight, twin.embedding.weight), "a resumed run goes on alike"


def test_usage_and_separation() -> None:
    assert usage(torch.tensor([[0, 1], [2, 3]]), 8) == (0.5, pytest.approx(4.0))
    assert usage(torch.zeros(7, dtype=torch.int64), 8) == (0.125, pytest.approx(1.0))
    near, far = torch.randn(40, 6), torch.randn(40, 6) + 20
    assert silhouette(near, far) > 0.8
    assert abs(silhouette(near, torch.randn(40, 6))) < 0.05
    with pytest.raises(RefineWrapError, match="two"):
        silhouette(near, far[:1])


def test_the_silhouette_is_that_of_its_definition() -> None:
    a, b = torch.randn(4, 3), torch.randn(5, 3) + 1
    found = []
    for own, other in ((a, b), (b, a)):
        for i, point in enumerate(own):
            inside = sum(float((point - q).norm()) for j, q in enumerate(own) if j != i) / (len(own) - 1)
            outside = sum(float((point - q).norm()) for q in other) / len(other)
            found.append((outside - inside) / max(outside, inside))
    assert silhouette(a, b) == pytest.approx(sum(found) / len(found), abs=1e-6)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (DualCodebookAutoencoder, {"nf": 20}),
        (DualCodebookAutoencoder, {"hq_threshold": 7.0}),
        (DualCodebookAutoencoder, {"fusion": "product"}),
        (CodebookRestorer, {"hq_weight": float("nan")}),
        (CodebookRestorer, {"dim": 30, "heads": 8}),
        (CodebookRestorer, {"heads": 0}),
        (CodebookRestorer, {"dim": 0}),
        (CodebookRestorer, {"mlp": -1}),
        (CodebookRestorer, {"layers": -1}),
        (DualCodebookAutoencoder, {"ch_mult": (1, -2)}),
        (DualCodebookAutoencoder, {"groups": 0}),
        (CodebookRestorer, {"hq_codebook_size": 8}),
        (CodebookRestorer, {"conditioning": "adain"}),
        (CodebookRestorer, {"quality": 1.5}),
    ],
)
def test_networks_that_cannot_be(network: Any, options: dict[str, Any]) -> None:
    with pytest.raises(RefineWrapError):
        network(**{**(RESTORER if network is CodebookRestorer else LAYOUT), **options})


def test_indices_are_those_of_float32(autoencoder: DualCodebookAutoencoder) -> None:
    book = autoencoder.quantize
    latent = torch.randn(4, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.nearest(latent), book(latent).index)
        assert torch.equal(book.nearest(latent), book.nearest(latent.double()))


@pytest.mark.parametrize("arguments", [(0, 4), (4, 0), (4, 4, 0.25, 1.0), (4, 4, 0.25, None, 0)])
def test_a_quantiser_that_cannot_be(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(RefineWrapError):
        VectorQuantizer(*arguments)


def test_choosing_needs_a_temperature() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(RefineWrapError, match="temperature"):
            choose(torch.zeros(3), wrong, noise=False, hard=False)


# Training in three stages


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of the demo photo, two of them blurred."""
    folder = tmp_path_factory.mktemp("codebook")
    photo = read_image(weights_dir() / "demo_photo.png").pixels
    for number in range(4):
        crop = photo[40 * number : 40 * number + 64, 30:94].astype(np.float32)
        if number % 2:
            padded = np.pad(crop, ((2, 2), (2, 2), (0, 0)), mode="edge")
            crop = np.mean([padded[y : y + 64, x : x + 64] for y in range(5) for x in range(5)], 0)
        write_image(folder / f"photos/{number}.png", Picture(crop.round().astype(np.uint8)))
    return folder


def stage(place: Path, output: Path, kind: str, codebook: dict[str, Any], **train: Any) -> Recipe:
    values: dict[str, Any] = {
        "version": 1,
        "name": kind,
        "objective": "codebook",
        "codebook": {"stage": kind, **codebook},
        "quality": {"default": 0.8},
        "data": {
            "train": {"gt": [str(place / "photos")]},
            "validation": {"gt": [str(place / "photos")], "limit": 2, "crop": 32},
            "crop": 32,
            **({} if kind == "autoencoder" else {"degradation": {"noise": {"sigma": [10, 10]}}}),
        },
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "ema": 0.0, **train},
        "output": str(output),
    }
    return Recipe.from_dict(values)


NEW = {**LAYOUT, "hq_threshold": 0.5, "decay": 0.9, "restart_after": 10}
OWN = {key: RESTORER[key] for key in ("dim", "heads", "layers", "mlp", "connect")}


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each stage made, from the one before it."""
    folder = tmp_path_factory.mktemp("stages")
    first = finetune(stage(place, folder / "1", "autoencoder", {"options": NEW}, steps=100, learning_rate=3e-3))
    options = {"options": OWN, "start": str(first), "scorers": ["shipped:gauge"]}
    second = next(finetune(stage(place, folder / "2", "codes", options, steps=6)).glob("*.safetensors"))
    fuse = finetune(stage(place, folder / "3", "fuse", {"start": str(second)}, steps=6))
    return {"autoencoder": first, "codes": second, "fuse": next(fuse.glob("*.safetensors"))}


def test_the_stages_hand_on_what_they_made(trained: dict[str, Path]) -> None:
    first = load_autoencoder(trained["autoencoder"])
    second, third = (load_backbone(trained[name]).module for name in ("codes", "fuse"))
    assert second.quality == 0.8 and first.hq_threshold == 0.5
    before, middle, after = first.state_dict(), second.state_dict(), third.state_dict()
    for name, value in middle.items():
        taught = name.split(".")[0] in (
            "encoder",
            "feat_emb",
            "ft_layers",
            "idx_pred_layer",
            "score_embed",
            "position_emb",
        )
        if name in before:
            assert torch.equal(value, before[name]) == (not taught) or name.endswith(".bias"), name
        assert torch.equal(after[name], value) == (not name.startswith("fuse_convs_dict")), name
    adapter = load_adapter(trained["autoencoder"])
    assert adapter.kind == "codebook" and adapter.scorers[0].startswith("ranker@")
    names = {metric["name"] for metric in adapter.metrics}
    assert {"PSNR", "common perplexity", "HQ+ codes used", "separation"} <= names
    assert "load_autoencoder" in (trained["autoencoder"] / "README.md").read_text()
    assert (second.fidelity, third.fidelity) == (0.0, 1.0), "what the last stage was trained at"
    for name in ("codes", "fuse"):
        scorers = json.loads((trained[name].parent / "backbone.json").read_text())["scorers"]
        assert sorted(entry.split("@")[0] for entry in scorers) == ["gauge", "ranker"]


def test_codes_are_watched_without_validation_too(trained: dict[str, Path]) -> None:
    run = [json.loads(line) for line in (trained["autoencoder"].parent / "metrics.jsonl").read_text().splitlines()]
    measured = [line["measured"] for line in run if line["kind"] == "train"]
    assert len(measured) == 100
    for each in measured:
        assert 0 < each["common codes used"] <= 1 <= each["common perplexity"] <= 16
        assert -1 <= each["separation"] <= 1
    assert any("HQ+ perplexity" in each for each in measured)
    assert len({each["common perplexity"] for each in measured}) > 10


def test_quality_means_the_same_in_all_stages(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    first = load_autoencoder(trained["autoencoder"])
    assert first.condition is not None and first.condition["scorers"][0].startswith("ranker@")
    for name in ("codes", "fuse"):
        module = load_backbone(trained[name]).module
        assert module.condition == first.condition
    # On fewer images, a condition of their own would be another.
    write_image(tmp_path / "photos/0.png", read_image(place / "photos/1.png"))
    write_image(tmp_path / "photos/1.png", read_image(place / "photos/3.png"))
    recipe = stage(tmp_path, tmp_path / "run", "codes", {"options": OWN, "start": str(trained["autoencoder"])})
    objective = build_objective(recipe)
    data, _ = objective.data(recipe)
    scores = [[each[0] for each in objective.qualities.scores.values()]]
    assert sorted(Condition.fit(scores)(scores)) == [0, 1]
    assert max(float(data[i]["quality"]) for i in range(2)) < 0.9
    other = Recipe.from_dict(recipe.to_dict() | {"quality": {"scorers": ["shipped:gauge"]}})
    with pytest.raises(RefineWrapError, match="the same scorers in all stages"):
        build_objective(other).data(other)


def test_what_differs_between_the_stages_is_told(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    recipe = stage(place, tmp_path, "fuse", {"start": str(trained["codes"])})
    other = recipe.to_dict()
    other["data"]["degradation"]["noise"]["sigma"] = [20, 20]
    with pytest.warns(RuntimeWarning, match=r"data\.degradation is not that of codebook\.start"):
        build_objective(Recipe.from_dict(other))
    options = {"options": {**OWN, "hq_threshold": 0.2}, "start": str(trained["autoencoder"])}
    with pytest.warns(RuntimeWarning, match=r"HQ\+ takes part above 0\.2, and is trained above 0\.5"):
        build_objective(stage(place, tmp_path, "codes", options))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"img_size": 30}, "multiple of the stride, 4"), ({"attn_resolutions": [4, 5]}, r"levels of \[5\]")],
)
def test_layouts_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RefineWrapError, match=says):
        DualCodebookAutoencoder(**{**LAYOUT, **options})


def test_fidelity_on_the_command_line(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    common = ["restore", str(place / "photos/0.png"), "-b", str(trained["fuse"]), "--device", "cpu"]
    for fidelity in ("0", "1.0"):
        out = str(tmp_path / f"{fidelity}.png")
        done = CliRunner().invoke(app, [*common, "-o", out, "--backbone-option", f"fidelity={fidelity}"])
        assert done.exit_code == 0, done.output
    body = load_backbone(trained["fuse"], options={"fidelity": 0.0})
    expected = RefineWrapper(body, refiner=None).restore(read_image(place / "photos/0.png")).pixels
    assert np.array_equal(read_image(tmp_path / "0.png").pixels, expected)
    assert not np.array_equal(read_image(tmp_path / "1.0.png").pixels, expected)
    for wrong, says in (("fidelity", "key=value"), ("fidelity=2", "fidelity=2"), ("fidlity=1", "fidlity")):
        done = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "x.png"), "--backbone-option", wrong])
        assert done.exit_code == 2 and says in done.output, done.output
    alone = [*common[:2], "-o", str(tmp_path / "x.png"), "--backbone-option", "fidelity=1"]
    assert "without --backbone" in CliRunner().invoke(app, alone).output


def test_scorers_of_a_trained_restorer_do_not_judge_it(trained: dict[str, Path], tmp_path: Path) -> None:
    wrapper = RefineWrapper(load_backbone(trained["fuse"]))
    assert sorted(entry.split("@")[0] for entry in wrapper.scorers) == ["gauge", "ranker"]
    with pytest.raises(RefineWrapError, match="gauge cannot judge"):
        DoNoHarm("shipped:gauge").check(wrapper)
    saved = load_adapter(wrapper.save_pretrained(tmp_path / "adapter", scorers=["niqe@0"])).scorers
    assert sorted(entry.split("@")[0] for entry in saved) == ["gauge", "niqe", "ranker"], "evaluate reads these"


def test_the_autoencoder_learns_and_its_codes_are_used(trained: dict[str, Path]) -> None:
    run = [json.loads(line) for line in (trained["autoencoder"].parent / "metrics.jsonl").read_text().splitlines()]
    losses = [line["losses"]["l1"] for line in run if line["kind"] == "train"]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])
    figures = {metric["name"]: metric["value"] for metric in load_adapter(trained["autoencoder"]).metrics}
    assert figures["common codes used"] > 1 / 16 and figures["common perplexity"] > 1
    assert not math.isnan(figures["separation"])


def test_each_loss_of_the_codes_reaches_what_it_is_for(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    options = {"options": OWN, "start": str(trained["autoencoder"])}
    reached = {}
    for name, more in (("raised", {"scorers": ["shipped:gauge"]}), ("published", {"codes": "hard"})):
        recipe = stage(place, tmp_path, "codes", {**options, **more, "feature": 0, "index": 0})
        objective = build_objective(recipe)
        assert isinstance(objective, CodesObjective)
        data, _ = objective.data(recipe)
        batch = torch.utils.data.default_collate([data[i] for i in range(4)])
        losses = objective(batch)
        assert {"feature", "index_common", "index_hq", "l1"} <= set(losses)
        assert ("quality gauge" in losses) == (name == "raised")
        sum(losses.values()).backward()
        reached[name] = {
            n.split(".")[1] for n, p in objective.named_parameters() if p.grad is not None and bool(p.grad.any())
        }
    assert {"ft_layers", "idx_pred_layer", "encoder"} <= reached["raised"]
    assert "ft_layers" not in reached["published"] and "encoder" in reached["published"]


def test_codes_are_learned_without_looking_at_images(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    """As published; the other stages need a loss."""
    values = stage(place, tmp_path, "codes", {"options": OWN, "start": str(trained["autoencoder"]), "codes": "hard"})
    given = values.to_dict() | {"losses": {"l1": 0}}
    objective = build_objective(Recipe.from_dict(given))
    gt = torch.rand(2, 3, 32, 32)
    losses = objective({"lq": gt, "gt": gt, "quality": torch.ones(2)})
    assert set(losses) == {"feature", "index_common", "index_hq"}
    sum(losses.values()).backward()
    reached = {n.split(".")[1] for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder", "ft_layers", "idx_pred_layer", "score_embed"} <= reached
    with pytest.raises(RecipeError, match="loss"):
        Recipe.from_dict(stage(place, tmp_path, "autoencoder", {}).to_dict() | {"losses": {"l1": 0}})


def test_hq_codes_are_learned_of_good_ground_truths_alone(
    place: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    recipe = stage(place, tmp_path, "codes", {"options": OWN, "start": str(trained["autoencoder"])})
    objective = build_objective(recipe)
    gt = torch.rand(2, 3, 32, 32)
    losses = {quality: objective({"lq": gt, "gt": gt, "quality": torch.full((2,), quality)}) for quality in (0.5, 0.51)}
    assert losses[0.5]["index_hq"].item() == 0 < losses[0.51]["index_hq"].item()
    assert losses[0.5]["index_common"].item() > 0


@pytest.mark.parametrize(
    ("kind", "codebook", "says"),
    [
        ("autoencoder", {"start": "x"}, "first stage"),
        ("codes", {}, "start is not given"),
        ("fuse", {}, "start is not given"),
        ("codes", {"start": "x", "scorers": ["shipped:gauge"], "codes": "hard"}, "straight, gumbel or soft"),
        ("codes", {"start": "x", "temperature": 0}, "temperature"),
        ("autoencoder", {"optoins": {}}, "options"),
        ("autoencoder", {"scorers": ["shipped:gauge"]}, "stage codes"),
        ("fuse", {"start": "x", "options": {"dim": 8}}, "the restorer has its own"),
    ],
)
def test_stages_that_cannot_be(place: Path, tmp_path: Path, kind: str, codebook: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        stage(place, tmp_path, kind, codebook)


def test_the_shipped_networks_fit_one_another() -> None:
    """Their own options: the tests that train give smaller ones."""
    autoencoder = DualCodebookAutoencoder(**codebook_options("codebook"))
    assert autoencoder.layout.groups < autoencoder.layout.nf
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    for name in ("codes", *TASKS):
        restorer = CodebookRestorer.of_autoencoder(autoencoder, **codebook_options(name))
        assert restorer.adain is (name != "inpainting")
        with torch.no_grad():
            assert restorer(image, fidelity=1.0).shape == image.shape
        restorer.load_state_dict(restorer.state_dict(), strict=True)


TASKS = ("low_light", "backlit", "underwater", "colorization", "inpainting", "faces")


def codebook_options(name: str) -> dict[str, Any]:
    choice = Recipe.load(name).codebook
    assert choice is not None
    return choice.options


def test_what_codes_have_no_use_for(place: Path, tmp_path: Path) -> None:
    values = stage(place, tmp_path, "codes", {"start": "x"}).to_dict()
    for section, key, value in (("train", "compile", True), ("quality", "match_scores", 0.5)):
        with pytest.raises(RecipeError, match=f"{section}.{key} is given"):
            Recipe.from_dict({**values, section: {**values[section], key: value}})


def test_starts_that_do_not_fit(place: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build_objective(stage(place, tmp_path, "codes", {"start": str(tmp_path / "nothing")}))
    with pytest.raises(RefineWrapError, match="a CodebookRestorer, of stage codes"):
        build_objective(stage(place, tmp_path, "fuse", {"start": "shipped:demo_denoiser"}))
    with pytest.raises(CheckpointError, match="of kind codebook"):
        build_objective(stage(place, tmp_path, "codes", {"start": "shipped:masks"}))
    uneven = stage(place, tmp_path, "autoencoder", {"options": NEW}).to_dict()
    uneven["data"]["crop"] = 30
    with pytest.raises(RecipeError, match="multiple of the stride, 4"):
        build_objective(Recipe.from_dict(uneven))
    with pytest.raises(RecipeError, match="cannot be built"):
        build_objective(stage(place, tmp_path, "autoencoder", {"options": {"depth": 3}}))


def test_the_shipped_recipes_train_one_after_the_other(place: Path, tmp_path: Path) -> None:
    own = json.dumps({**{key: list(v) if isinstance(v, tuple) else v for key, v in LAYOUT.items()}, "decay": 0.9})
    stages = {
        "codebook": [f"codebook.options={own}"],
        "codes": [f"codebook.options={json.dumps(OWN)}", f"codebook.start={tmp_path / 'codebook/codebook'}"],
        "codes_fuse": [f"codebook.start={tmp_path / 'codes/backbone/codes.safetensors'}"],
    }
    common = [f"data.train.gt={place / 'photos'}", "data.crop=32", "train.steps=2", "train.batch_size=2"]
    for name, more in stages.items():
        overrides = [*common, *more, "train.device=cpu", f"output={tmp_path / name}"]
        done = CliRunner().invoke(app, ["finetune", name, *overrides, "--quiet"])
        assert done.exit_code == 0, done.output
    for name in TASKS:
        overrides = [*common, *stages["codes"], "train.device=cpu", f"output={tmp_path / name}"]
        done = CliRunner().invoke(app, ["finetune", name, *overrides, "--quiet"])
        assert done.exit_code == 0, done.output
        assert load_backbone(tmp_path / name / f"backbone/{name}.safetensors").spec.scale == 1
    restored = tmp_path / "restored.png"
    arguments = ["restore", str(place / "photos/0.png"), "-o", str(restored), "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "-b", str(tmp_path / "codes_fuse/backbone/codes_fuse.safetensors")])
    assert done.exit_code == 0, done.output
    assert read_image(restored).pixels.shape == (64, 64, 3)
