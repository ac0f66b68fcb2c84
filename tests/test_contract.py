"""The behaviour table: (backbone, refiner) x what the wrapper promises.

A new family costs one row in `networks.FAMILIES`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from networks import FAMILIES, UNKNOWN, backbone, family_backbone
from torch import nn

from refine_wrap import Backbone, RefineWrapError, RefineWrapper
from refine_wrap.errors import CheckpointError, ImageError, MismatchError

TINY = {"preset": "ornet-lite", "width": 4}
REFINERS = {"lite": TINY, "ornet": {"preset": "ornet", "width": 4}}
SIZES = [(1, 1), (1, 7), (17, 23), (32, 24)]
NAMES = [*FAMILIES, *UNKNOWN]


@pytest.fixture(params=NAMES)
def body(request: pytest.FixtureRequest) -> Backbone:
    return backbone(request.param)


def train_a_little(wrapper: RefineWrapper) -> None:
    """Move the refiner away from the identity by real steps."""
    wrapper.train()
    optimiser = torch.optim.SGD(wrapper.trainable_parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        x = torch.rand(2, 3, 16, 16)
        (wrapper(x) - torch.rand(2, 3, 16 * wrapper.scale, 16 * wrapper.scale)).square().mean().backward()
        optimiser.step()
    wrapper.eval()


@pytest.mark.parametrize("name", NAMES)
def test_declaration_is_what_the_network_does(name: str) -> None:
    body = backbone(name)
    expected = FAMILIES[name][2] if name in FAMILIES else UNKNOWN[name][1]
    assert {key: getattr(body.spec, key) for key in expected} == expected
    assert bool(body.assumed) == (name in UNKNOWN)
    if body.spec.tap is not None:
        assert isinstance(dict(body.module.named_modules())[body.spec.tap], nn.Module)
    spec = body.spec
    side = max(spec.minimum, spec.multiple_of)
    for sides in (
        (side, side),
        (side, side + spec.multiple_of),
        (side + 2 * spec.multiple_of, side + 3 * spec.multiple_of),
    ):
        with torch.no_grad():
            y = body.module(torch.rand(1, spec.channels, *sides))
        assert y.shape == (1, spec.channels, sides[0] * spec.scale, sides[1] * spec.scale), (
            "as declared, without our padding"
        )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_has_a_tap_that_sees_features(name: str) -> None:
    body = family_backbone(name)
    assert body.spec.tap is not None
    seen: list[torch.Tensor] = []
    handle = dict(body.module.named_modules())[body.spec.tap].register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        body(torch.rand(1, 3, 64, 64))
    handle.remove()
    assert seen[0].ndim == 4 and seen[0].shape[1] >= 8 - 4 * (name == "NAFNet"), "a feature map, not the image"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "no parameters"])
def test_lora_goes_where_the_declaration_says_and_merges_away(name: str) -> None:
    from refine_wrap.training.lora import add_lora, lora_targets, lora_weights, merged, without_lora

    body = backbone(name)
    each = [set(lora_targets(body, [pattern])) for pattern in body.spec.lora]
    layers = dict(body.module.named_modules())
    assert all(each) and all(isinstance(layers[layer], (nn.Linear, nn.Conv2d)) for found in each for layer in found)
    assert sum(map(len, each)) == len(set().union(*each)), "each layer is named by one pattern"
    kind, names, structure = type(body.module), list(body.published_state_dict()), body.structure_hash()
    for parameter in body.parameters():
        if not bool(parameter.any()):  # NAFNet's blocks start switched off
            nn.init.normal_(parameter, std=0.1)
    x = torch.rand(1, 3, 24, 20)
    with torch.no_grad():
        before = body(x)
    assert set(add_lora(body, rank=2)) == set().union(*each)
    with torch.no_grad():
        assert torch.equal(body(x), before), "nothing changes at the start"

    trained = dict(lora_weights(body).named_parameters())
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.05)
    after = body(x)
    after.square().mean().backward()
    assert {id(p) for p in body.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    for parameter, value in trained.items():
        assert value.grad is not None and bool(value.grad.abs().sum() > 0), f"{parameter} has no part in the output"
    assert all(p.grad is None for p in body.parameters() if not p.requires_grad)

    plain = merged(body)
    assert type(plain.module) is kind and list(plain.published_state_dict()) == names
    assert plain.structure_hash() == structure
    with torch.no_grad():
        assert not torch.allclose(after, before, atol=1e-3)
        torch.testing.assert_close(plain(x), after, atol=1e-5, rtol=1e-5)
        with without_lora(body):
            assert torch.equal(body(x), before)
        assert torch.equal(body(x), after), "it is back after that"
    assert all(p.requires_grad for p in trained.values())


@pytest.mark.parametrize("refiner", list(REFINERS))
def test_untrained_is_the_backbone_bit_for_bit(body: Backbone, refiner: str) -> None:
    wrapper = RefineWrapper(body, refiner=REFINERS[refiner]).eval()
    for height, width in SIZES:
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            expected = body(x)
            assert expected.shape == (2, 3, height * body.spec.scale, width * body.spec.scale)
            strengths = (None, 0.0, 1.0, torch.rand(2), torch.rand(2, 1, *expected.shape[-2:]))
            for strength in strengths if (height, width) == (17, 23) else strengths[:1]:
                assert torch.equal(wrapper(x, strength), expected)


def test_autocast_keeps_the_promise(body: Backbone) -> None:
    wrapper = RefineWrapper(body, refiner=TINY).eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, got = body(x), wrapper(x)
    assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_each_image_of_a_batch_is_as_it_is_alone(body: Backbone) -> None:
    wrapper = RefineWrapper(body, refiner=TINY)
    train_a_little(wrapper)
    x = torch.rand(3, 3, 17, 23)
    with torch.no_grad():
        whole, alone = wrapper(x), torch.cat([wrapper(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, alone, atol=2e-5, rtol=1e-4)


def test_only_the_refiner_trains_and_the_backbone_stays_as_it_was(body: Backbone) -> None:
    before = {name: value.clone() for name, value in body.state_dict().items()}
    wrapper = RefineWrapper(body, refiner=TINY)
    x = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        untouched = wrapper(x)
    train_a_little(wrapper)
    assert {id(p) for p in wrapper.trainable_parameters()} == {id(p) for p in wrapper.refiner.parameters()}
    for name, value in body.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed (norm statistics count)"
    assert all(p.grad is None for p in body.parameters())
    with torch.no_grad():
        assert not torch.equal(wrapper(x), untouched), "training changed nothing"
        with wrapper.disabled():
            assert torch.equal(wrapper(x), untouched)
        assert not torch.equal(wrapper(x), untouched)


def test_save_and_load_give_the_same_output_and_only_what_we_added(body: Backbone, tmp_path) -> None:
    from safetensors.torch import load_file

    wrapper = RefineWrapper(body, refiner=TINY, strength=0.6)
    train_a_little(wrapper)
    wrapper.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert set(stored) == {f"refiner.{name}" for name in wrapper.refiner.state_dict()}
    again = RefineWrapper.from_pretrained(tmp_path / "adapter", backbone=copy.deepcopy(body))
    x = torch.rand(1, 3, 19, 21)
    with torch.no_grad():
        assert torch.equal(again(x), wrapper(x)), "the default strength is part of the adapter"


def test_deepcopy_is_independent(body: Backbone) -> None:
    wrapper = RefineWrapper(body, refiner=TINY)
    twin = copy.deepcopy(wrapper)
    train_a_little(twin)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(wrapper(x), wrapper.backbone(x))
        assert not torch.equal(twin(x), wrapper(x))


def test_config_and_spec_pickle(body: Backbone) -> None:
    wrapper = RefineWrapper(body, refiner=TINY)
    assert pickle.loads(pickle.dumps((wrapper.refiner.config(), body.spec, body.source))) == (
        wrapper.refiner.config(),
        body.spec,
        body.source,
    )


def test_summary_counts(body: Backbone) -> None:
    wrapper = RefineWrapper(body, refiner=TINY)
    summary = wrapper.summary(64, 64)
    refiner = sum(p.numel() for p in wrapper.refiner.parameters())
    assert summary["parameters"]["trainable"] == summary["parameters"]["refiner"] == refiner
    assert summary["parameters"]["total"] == refiner + sum(p.numel() for p in body.parameters())
    assert summary["macs"]["refiner"] > 0


def test_half_types(body: Backbone) -> None:
    wrapper = RefineWrapper(copy.deepcopy(body), refiner=TINY)
    low = wrapper.bfloat16()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        y = low(x.bfloat16())
        assert y.dtype == torch.bfloat16 and torch.isfinite(y).all()
        assert low(x).dtype == torch.float32, "the image keeps its type"
    if not body.spec.half_ok and list(body.parameters()):
        with pytest.raises(RefineWrapError, match="float16"):
            wrapper.half()(x.half())


@pytest.mark.parametrize("name", ["NAFNet", "SRVGG x4", "stride 4"])
def test_compiled_equals_compiled_backbone(name: str) -> None:
    body = backbone(name)
    wrapper = RefineWrapper(body, refiner=TINY).eval()
    x = torch.rand(1, 3, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(wrapper)(x), torch.compile(body)(x), atol=1e-4, rtol=0)


def test_freeze_off_lets_the_backbone_train() -> None:
    wrapper = RefineWrapper(backbone("stride 4"), refiner=TINY)
    wrapper.freeze(False)
    wrapper.train()
    assert wrapper.backbone.module.norm.training
    assert len(wrapper.trainable_parameters()) == len(list(wrapper.parameters()))
    wrapper.freeze()
    assert not wrapper.backbone.module.norm.training


def test_another_backbone_is_refused_in_one_sentence(tmp_path) -> None:
    RefineWrapper(backbone("NAFNet"), refiner=TINY).save_pretrained(tmp_path / "a")
    with pytest.raises(MismatchError) as refused:
        RefineWrapper.from_pretrained(tmp_path / "a", backbone=backbone("DnCNN"))
    first = str(refused.value).splitlines()[0]
    assert "NAFNet" in first and "DnCNN" in first
    other = backbone("NAFNet")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(MismatchError, match="weights"):
        RefineWrapper.from_pretrained(tmp_path / "a", backbone=other)
    RefineWrapper.from_pretrained(tmp_path / "a", backbone=other, allow_other_weights=True)


def test_an_adapter_with_missing_keys_is_refused(tmp_path) -> None:
    from refine_wrap.hub import load_adapter, save_adapter

    body = backbone("NAFNet")
    RefineWrapper(body, refiner=TINY).save_pretrained(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    del adapter.tensors["refiner.ending.bias"]
    save_adapter(tmp_path / "b", adapter)
    with pytest.raises(CheckpointError, match=r"missing \(refiner\.ending\.bias\)"):
        RefineWrapper.from_pretrained(tmp_path / "b", backbone=body)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.rand(3, 8, 8), "shape"),
        (torch.rand(1, 4, 8, 8), "shape"),
        (torch.rand(1, 3, 0, 8), "at least one pixel"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "255"),
        ([[1.0]], "tensor"),
    ],
)
def test_what_is_no_image_is_refused(image: object, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        RefineWrapper(backbone("DnCNN"), refiner=TINY)(image)


@pytest.mark.parametrize(
    "strength", [-0.1, 1.5, float("nan"), torch.rand(3), torch.rand(1, 1, 4, 4), torch.tensor([2.0])]
)
def test_a_wrong_strength_is_refused(strength: object) -> None:
    with pytest.raises(ImageError, match="strength"):
        RefineWrapper(backbone("DnCNN"), refiner=TINY)(torch.rand(1, 3, 8, 8), strength)


def test_quality_without_a_head_is_refused() -> None:
    with pytest.raises(RefineWrapError, match="quality"):
        RefineWrapper(backbone("DnCNN"), refiner=TINY)(torch.rand(1, 3, 8, 8), quality=0.9)


# The quality head

HEADS: dict[str, dict[str, object]] = {
    "convolution": {"width": 8, "depth": 1},
    "attention": {"width": 8, "depth": 1, "blocks": "attention"},
}


@pytest.fixture(params=[name for name in NAMES if name not in ("no parameters", "upscaler x2", "grey impostor")])
def tappable(request: pytest.FixtureRequest) -> Backbone:
    """A backbone with features to steer."""
    return backbone(request.param)


def steered(body: Backbone, head: str = "convolution", **options: object) -> RefineWrapper:
    """With a head that does something."""
    wrapper = RefineWrapper(body, refiner=None, quality_head=HEADS[head], **options).eval()
    assert wrapper.quality_head is not None
    with torch.no_grad():
        for parameter in wrapper.quality_head.parameters():
            parameter.normal_(std=0.3)
    return wrapper


@pytest.mark.parametrize("head", list(HEADS))
def test_a_new_head_changes_nothing_bit_for_bit(tappable: Backbone, head: str) -> None:
    sizes = [torch.rand(2, 3, height, width) for height, width in SIZES]
    with torch.no_grad():
        expected = [tappable(x) for x in sizes]
    wrapper = RefineWrapper(tappable, refiner=TINY, quality_head=HEADS[head]).eval()
    with torch.no_grad():
        for x, bare in zip(sizes, expected, strict=True):
            for quality in (None, 0.0, 1.0, torch.rand(2)):
                assert torch.equal(wrapper(x, quality=quality), bare)


@pytest.mark.parametrize("head", list(HEADS))
def test_a_head_steers_each_image_by_its_own_quality(tappable: Backbone, head: str) -> None:
    x = torch.rand(1, 3, 17, 23).repeat(3, 1, 1, 1)
    wanted = torch.tensor([0.0, 0.5, 1.0])
    with torch.no_grad():
        bare = tappable(x)
        wrapper = steered(tappable, head)
        together = wrapper(x, quality=wanted)
        alone = torch.cat([wrapper(x[:1], quality=float(q)) for q in wanted])
        assert torch.equal(tappable(x), bare), "the backbone by itself is not steered"
        with wrapper.disabled():
            assert torch.equal(wrapper(x), bare)
        default = steered(tappable, head, quality=0.5)(x)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    for a, b in ((together[0], together[1]), (together[1], together[2]), (together[0], bare[0])):
        assert not torch.equal(a, b), "each quality gives another picture"
    assert torch.isfinite(default).all()


def test_only_the_head_trains_through_the_frozen_backbone(tappable: Backbone) -> None:
    before = {name: value.clone() for name, value in tappable.state_dict().items()}
    wrapper = steered(tappable).train()
    assert {id(p) for p in wrapper.trainable_parameters()} == {id(p) for p in wrapper.quality_head.parameters()}
    wrapper(torch.rand(2, 3, 20, 20), quality=torch.tensor([0.2, 0.8])).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in wrapper.quality_head.parameters())
    assert all(p.grad is None for p in tappable.parameters())
    for name, value in tappable.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed (norm statistics count)"


def test_a_head_survives_copies_autocast_and_half_types(tappable: Backbone) -> None:
    wrapper = steered(tappable)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = wrapper(x, quality=0.2)
        twin = copy.deepcopy(wrapper)
        for parameter in twin.quality_head.parameters():
            parameter.zero_()
        assert torch.equal(wrapper(x, quality=0.2), expected), "the copy has its own head"
        assert torch.equal(twin(x, quality=0.2), twin.backbone(x)) and not torch.equal(twin(x, quality=0.2), expected)
        again = pickle.loads(pickle.dumps(wrapper))
        assert torch.equal(again(x, quality=0.2), expected)
        with torch.autocast("cpu", torch.bfloat16):
            low, bare = wrapper(x, quality=0.2), wrapper.backbone(x)
        assert low.dtype == bare.dtype and torch.isfinite(low).all() and not torch.equal(low, bare)
        half = copy.deepcopy(wrapper).bfloat16()
        assert half(x.bfloat16(), quality=0.2).dtype == torch.bfloat16


def test_a_head_is_saved_and_loaded(tappable: Backbone, tmp_path) -> None:
    from safetensors.torch import load_file

    from refine_wrap.hub import load_adapter

    for refiner in (None, {**TINY, "quality": True}):
        wrapper = RefineWrapper(tappable, refiner=refiner, quality_head=HEADS["convolution"], quality=0.7).eval()
        with torch.no_grad():
            for parameter in wrapper.trainable_parameters():
                parameter.normal_(std=0.3)
        folder = wrapper.save_pretrained(tmp_path / str(refiner is None))
        parts = {name.split(".")[0] for name in load_file(folder / "adapter.safetensors")}
        assert parts == {"quality_head", *(["refiner"] if refiner else [])}
        assert load_adapter(folder).kind == "quality" and "Default quality: 0.7" in (folder / "README.md").read_text()
        again = RefineWrapper.from_pretrained(folder, backbone=copy.deepcopy(tappable))
        x = torch.rand(1, 3, 19, 21)
        with torch.no_grad():
            assert torch.equal(again(x), wrapper(x)), "the default quality is part of the adapter"
            assert torch.equal(again(x, quality=0.1), wrapper(x, quality=0.1))


@pytest.mark.parametrize("name", ["NAFNet", "SRVGG x4", "DnCNN grey"])
def test_a_head_is_compiled_with_its_backbone(name: str) -> None:
    wrapper = steered(backbone(name))
    x = torch.rand(2, 3, 24, 20)
    compiled = torch.compile(wrapper)
    with torch.no_grad():
        for wanted in (torch.tensor([0.0, 1.0]), torch.tensor([0.4, 0.6])):
            torch.testing.assert_close(compiled(x, quality=wanted), wrapper(x, quality=wanted), atol=1e-4, rtol=0)


class Repeated(nn.Module):
    """Runs its network several times in one forward, as restorers by diffusion do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        for _ in range(3):
            x = x + 0.1 * self.last(torch.relu(self.first(x)))
        return x


def test_a_backbone_that_runs_several_times_is_steered_each_time() -> None:
    wrapper = steered(Backbone(Repeated(), {"tap": "first"}))
    calls: list[int] = []
    wrapper.quality_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        wrapper(torch.rand(1, 3, 8, 8), quality=0.5)
        assert len(calls) == 3
        wrapper.backbone(torch.rand(1, 3, 8, 8))
        assert len(calls) == 3


def test_a_head_comes_off_and_leaves_nothing() -> None:
    body = backbone("NAFNet")
    keys, x = set(body.state_dict()), torch.rand(1, 3, 16, 16)
    from refine_wrap.quality import QualityHead
    from refine_wrap.quality.head import tap_channels

    head = QualityHead(tap_channels(body), width=8)
    handle = head.attach(body)
    assert set(body.state_dict()) == keys
    head.wanted = torch.tensor([0.5])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        steered_output = body(x)
        handle.remove()
        assert not torch.equal(body(x), steered_output)
    assert not any(module._forward_hooks for module in body.modules())


def test_a_head_that_is_put_on_again_steers_once() -> None:
    first = steered(backbone("NAFNet"))
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = first(x, quality=0.5)
        again = RefineWrapper(first.backbone, refiner=TINY, quality_head=first.quality_head).eval()
        assert torch.equal(again(x, quality=0.5), expected)
        again.remove_head()
        assert again.quality_head is None and not any(m._forward_hooks for m in again.modules())
        assert torch.equal(again(x), again.backbone(x))
        with pytest.raises(RefineWrapError, match="nothing here knows"):
            again(x, quality=0.5)


def test_a_head_comes_back_where_it_was(tmp_path) -> None:
    """Of a network that nobody declared, the tap that was chosen is part of the adapter."""
    body = Backbone(Repeated(), {"tap": "first"})
    wrapper = steered(body)
    wrapper.save_pretrained(tmp_path / "a", scorers=["x"])
    plain = Backbone(copy.deepcopy(body.module), {"tap": "last"})
    again = RefineWrapper.from_pretrained(tmp_path / "a", backbone=plain)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert again.backbone.spec.tap == "first" and torch.equal(again(x, quality=0.3), wrapper(x, quality=0.3))
    again.save_pretrained(tmp_path / "b")
    assert RefineWrapper.from_pretrained(tmp_path / "b", backbone=body).scorers == ["x"], "what trained it stays known"


def test_a_compiled_backbone_is_refused() -> None:
    body = backbone("NAFNet")
    body.module.compile()
    with pytest.raises(RefineWrapError, match="compiled already"):
        RefineWrapper(body, quality_head={"channels": 4})


class Guided(nn.Module):
    """Runs an image twice in one batch, as classifier-free guidance does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        a, b = self.last(self.first(torch.cat([x, x]))).chunk(2)
        return a + b


def test_maps_in_an_unknown_order_are_refused() -> None:
    wrapper = steered(Backbone(Guided(), {"tap": "first"}))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(wrapper(x[:1], quality=0.1), wrapper(x[:1], quality=0.9))
        with pytest.raises(RefineWrapError, match="order"):
            wrapper(x, quality=torch.tensor([0.1, 0.9]))


def test_an_error_on_the_way_does_not_leave_the_backbone_steered() -> None:
    wrapper = steered(backbone("NAFNet"))
    with pytest.raises(ImageError):
        wrapper(torch.rand(3, 8, 8), quality=0.5)
    with pytest.raises(ImageError):
        wrapper(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), quality=0.5)
    assert wrapper.quality_head.wanted is None


@pytest.mark.parametrize("quality", [-0.1, 1.5, float("nan"), torch.rand(3), torch.tensor([2.0])])
def test_a_wrong_quality_is_refused(quality: object) -> None:
    for wrapper in (steered(backbone("DnCNN")), RefineWrapper(backbone("DnCNN"), refiner={**TINY, "quality": True})):
        with pytest.raises(ImageError, match="quality"):
            wrapper(torch.rand(2, 3, 8, 8), quality=quality)


def test_a_refiner_that_knows_quality_gives_the_dial_without_features() -> None:
    body = backbone("no parameters")
    with pytest.raises(RefineWrapError, match="no features"):
        RefineWrapper(body, quality_head=True)
    wrapper = RefineWrapper(body, refiner={**TINY, "quality": True}, quality=0.4).eval()
    x = torch.rand(2, 3, 13, 11)
    with torch.no_grad():
        assert torch.equal(wrapper(x, quality=0.9), x), "identity when new"
        wrapper.refiner.ending.weight.normal_()
        assert torch.equal(wrapper(x), wrapper(x, quality=0.4))
        assert not torch.equal(wrapper(x, quality=torch.tensor([0.1, 0.4]))[0], wrapper(x)[0])
        assert torch.equal(wrapper(x, quality=torch.tensor([0.1, 0.4]))[1], wrapper(x)[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"width": 6}, "multiple of 4"), ({"blocks": "dense"}, "attention"), ({"depht": 1}, "cannot be built")],
)
def test_a_head_that_cannot_be(options: dict[str, object], says: str) -> None:
    with pytest.raises(RefineWrapError, match=says):
        RefineWrapper(backbone("NAFNet"), quality_head=options)
    with pytest.raises(RefineWrapError, match="QualityHead"):
        RefineWrapper(backbone("NAFNet"), quality_head=nn.Identity())


def test_a_head_for_other_features_is_refused() -> None:
    from refine_wrap.quality import QualityHead

    with pytest.raises(RefineWrapError, match=r"features \(B, 5, h, w\)"):
        RefineWrapper(backbone("NAFNet"), quality_head=QualityHead(5))(torch.rand(1, 3, 8, 8), quality=0.5)


def test_the_cost_of_a_head_is_told() -> None:
    summary = RefineWrapper(backbone("NAFNet"), refiner=None, quality_head=True).summary(32, 32)
    assert summary["macs"]["refiner"] == 0 < summary["macs"]["quality_head"]
    assert summary["parameters"]["quality_head"] == summary["parameters"]["trainable"] > 0
    with pytest.raises(RefineWrapError, match="Nothing was added"):
        RefineWrapper(backbone("NAFNet"), refiner=None).save_pretrained("nowhere")
