"""How fast the library is on a CPU, beside the official implementation and beside the bare backbones, in one run.

    python benchmarks/speed.py [--official CHECKOUT] [--only PART ...] [--runs N] [--threads N]

CHECKOUT is a copy of paper 1's repository (dhryougit/Beyond-the-Ground-Truth), whose networks are loaded from there and
given our weights. Without it, its columns stay empty. Each figure is the median of interleaved runs in a process of its
own, twice where it matters: with the C library's memory as Python leaves it ("default"), and kept, as the command line
has it (`refine_wrap.allocator`). Peak memory is that of a process of its own above what it held before, of one call.
Written: results/speed.json and results/speed.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, side_by_side, write
from masks import status
from torch import nn

from refine_wrap.allocator import keep_freed_memory

SIZES = {"256x256": (256, 256), "512x512": (512, 512), "1080p": (1080, 1920)}
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of the official repository")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        name, settings = options.child[0], json.loads(options.child[1])
        if settings.pop("kept"):
            assert keep_freed_memory()
        print(json.dumps(CHILDREN[name](options, **settings)))
        return
    place = RESULTS / "speed.json"
    found = json.loads(place.read_text())["parts"] if place.is_file() else {}
    for name in options.only or PARTS:
        found[name] = {"machine": machine(), "runs": options.runs, **PARTS[name](options)}
        write("speed", {"parts": found})
    (RESULTS / "speed.md").write_text(table(found))
    print(table(found))


def child(options: argparse.Namespace, name: str, kept: bool = False, **settings: Any) -> Figures:
    """What `CHILDREN[name]` finds in a process of its own."""
    command = [sys.executable, __file__, "--child", name, json.dumps({"kept": kept, **settings})]
    command += ["--runs", str(options.runs), "--threads", str(options.threads)]
    if options.official:
        command += ["--official", str(options.official)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    print(name, settings, "kept" if kept else "default", found, flush=True)
    return found


def official(options: argparse.Namespace, name: str) -> ModuleType:
    """A module of the official repository's `arch`."""
    if not torch.cuda.is_available():  # a constructor there asks for CUDA
        nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign, assignment, return-value]
    path = options.official / "arch" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"There is no {path}: a checkout of the official repository is needed")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(net: nn.Module) -> nn.Module:
    """The net with random weights in every tensor, so that no branch of it is idle."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.5, generator=generator)
        elif parameter.ndim > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return net.eval()


def peak_above(function: Callable[[], object]) -> float:
    """MiB that a call takes at its peak, above what this process held before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def ratio(found: Figures, one: str, other: str) -> float | None:
    return found[one] / found[other] if found.get(one) and found.get(other) else None


# ---------------------------------------------------------------- ORNet


def networks(options: argparse.Namespace) -> tuple[nn.Module, nn.Module | None]:
    """ORNet of width 64, ours and the official one with its weights."""
    from refine_wrap.refiner import build_refiner

    ours = filled(build_refiner("ornet"))
    if not options.official:
        return ours, None
    theirs = official(options, "ORNet_arch").ORNet(4, 3, 64, 1, [1] * 4, [1] * 4).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.inference_mode()
def ornet_times(options: argparse.Namespace, size: str, which: list[str]) -> Figures:
    ours, theirs = networks(options)
    image = torch.rand(1, 3, *SIZES[size])
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    if theirs is not None:
        calls["official"] = lambda: theirs(image, 0.3)
    calls["ours"] = lambda: ours(image, 0.3)
    if "compiled" in which:
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are constants: they are laid out once
        compiled = torch.compile(copy.deepcopy(ours))
        calls["compiled"] = lambda: compiled(image, 0.3)
    if "bfloat16" in which:
        half = copy.deepcopy(ours).bfloat16()
        calls["bfloat16"] = lambda: half(image.bfloat16(), 0.3).float()
    reference = calls["official" if theirs is not None else "ours"]()
    found: Figures = {}
    for name, call in calls.items():
        error = (call() - reference).square().mean()
        found[f"{name}, largest difference"] = float((call() - reference).abs().max())
        found[f"{name}, PSNR"] = float(-10 * error.log10()) if error else None
    return found | side_by_side(options.runs, **calls)


@torch.inference_mode()
def ornet_memory(options: argparse.Namespace, size: str, which: str) -> Figures:
    ours, theirs = networks(options)
    net = theirs if which == "official" else ours
    assert net is not None
    image = torch.rand(1, 3, *SIZES[size])
    net(image[..., :64, :64], 0.3)  # the libraries' own memory is there then
    return {"peak_mib": peak_above(lambda: net(image, 0.3))}


def ornet(options: argparse.Namespace) -> Figures:
    found: Figures = {}
    for size in SIZES:
        # bfloat16 and torch.compile take minutes at 1080p where the CPU has no such arithmetic.
        for kept in (False,) if size == "1080p" else (False, True):
            which = [] if size == "1080p" else ["compiled"]
            which += ["bfloat16"] if size == "256x256" and not kept else []
            found[f"{size}, {'kept' if kept else 'default'}"] = child(
                options, "ornet_times", kept, size=size, which=which
            )
        found[f"{size}, memory"] = {
            name: child(options, "ornet_memory", size=size, which=name)["peak_mib"]
            for name in (["official"] if options.official else []) + ["ours"]
        }
    return {"sizes": found}


# ---------------------------------------------------------------- behind a backbone


@torch.inference_mode()
def wrapped_times(options: argparse.Namespace, network: str) -> Figures:
    from head_cost import NETWORKS, RECIPES

    from refine_wrap import Recipe, RefineWrapper, load_backbone

    arch, given = NETWORKS[network]
    choice = Recipe.load(RECIPES[network]).backbone if network in RECIPES else None
    body = load_backbone(arch, options=given if choice is None else choice.options).eval()
    wrapper = RefineWrapper(body).eval()
    filled(wrapper.refiner)  # type: ignore[arg-type]
    side = 256 if body.spec.scale == 1 else 64
    image = torch.rand(1, 3, side, side)
    return side_by_side(options.runs, bare=lambda: body(image), wrapped=lambda: wrapper(image)) | {"side": side}


def lite(options: argparse.Namespace) -> Figures:
    names = ("SwinIR-M x4", "HAT x4", "RRDB x4", "NAFNet-GoPro-32")
    return {"networks": {name: child(options, "wrapped_times", True, network=name) for name in names}}


def cuts(folder: Path, count: int, side: int) -> list[Path]:
    """Squares of the shipped photo, as files."""
    from refine_wrap import Picture, read_image, write_image
    from refine_wrap.resources import weights_dir

    photo = read_image(weights_dir() / "demo_photo.png")
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        top, left = 7 * number % (photo.height - side), 11 * number % (photo.width - side)
        write_image(path, Picture(np.ascontiguousarray(photo.pixels[top : top + side, left : left + side])))
    return paths


@torch.inference_mode()
def absorbed_times(options: argparse.Namespace) -> Figures:
    from refine_wrap import RefineWrapper, load_backbone
    from refine_wrap.training import absorb

    body = load_backbone("DnCNN", options={}).eval()
    wrapper = RefineWrapper(body)
    filled(wrapper.refiner)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode(False), torch.enable_grad():
        photos = [str(crop) for crop in cuts(Path(temporary), 4, 128)]
        plain = absorb(wrapper, photos, steps=1).eval()
    image = torch.rand(1, 3, 256, 256)
    moved = float((plain(image) - body(image)).abs().max())
    return side_by_side(options.runs, bare=lambda: body(image), absorbed=lambda: plain(image)) | {"moved": moved}


def absorbed(options: argparse.Namespace) -> Figures:
    return child(options, "absorbed_times", True)


# ---------------------------------------------------------------- enhanced ground truth


def generators(options: argparse.Namespace) -> tuple[nn.Module, nn.Module | None]:
    """The mask generator, ours and the official one with its weights."""
    from refine_wrap.supervision import FrequencyMaskGenerator

    ours = filled(FrequencyMaskGenerator(profile=False))
    if not options.official:
        return ours, None
    theirs = official(options, "CFMG_arch").CFMG(7, 4, 32, 1, [1] * 4, [1] * 4).eval()
    theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    return ours, theirs


@torch.inference_mode()
def enhance_times(options: argparse.Namespace) -> Figures:
    from masks import official as official_mixup

    from refine_wrap.supervision import frequency_mixup

    ours, theirs = generators(options)
    images = torch.rand(1, 4, 3, 720, 1280)

    def whole() -> torch.Tensor:
        return frequency_mixup(images, ours(images[:, 0], 0.3))

    def official_whole() -> torch.Tensor:
        masks = theirs(images[:, 0], 0.3)[0]  # type: ignore[misc]
        spectra = [torch.fft.fftshift(torch.fft.fftn(images[:, number], norm="ortho")) for number in range(4)]
        mixed = sum(spectrum * masks[:, number : number + 1] for number, spectrum in enumerate(spectra))
        return torch.fft.ifftn(torch.fft.ifftshift(mixed), norm="ortho").real

    weights = torch.rand(1, 4, 25).softmax(1)
    found = side_by_side(
        options.runs,
        **{"official masks": lambda: official_mixup(images, weights)},
        **{"our masks": lambda: frequency_mixup(images, ours.masks(weights, 720, 1280))},
    )
    found |= side_by_side(options.runs, whole=whole, **({"official whole": official_whole} if theirs else {}))
    if theirs:
        found["difference"] = float((whole() - official_whole()).abs().max())
    return found


def enhance(options: argparse.Namespace) -> Figures:
    from masks import peak

    memory = {name: peak(name, options.threads) for name in ("official", "ours")}
    return {
        "memory": memory,
        "default": child(options, "enhance_times"),
        "kept": child(options, "enhance_times", True),
    }


# ---------------------------------------------------------------- training


def stage2_times(options: argparse.Namespace, batch: int, side: int) -> Figures:
    """A step of stage 2 of paper 1 without the feature losses, which both would pay alike: masks, mixed, L1, AdamW."""
    from refine_wrap.supervision import frequency_mixup

    ours, theirs = networks(options)
    our_masks, their_masks = generators(options)
    images = torch.rand(batch, 4, 3, side, side)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, target: Callable[[], torch.Tensor]) -> None:
        with torch.no_grad():
            wanted = target()
        loss = (net(images[:, 0], 0.3).clamp(0, 1) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    def official_target() -> torch.Tensor:
        masks = their_masks(images[:, 0], 0.3)[0]  # type: ignore[misc]
        spectra = []
        for number in range(4):
            spectrum = torch.fft.fftshift(torch.fft.fftn(images[:, number], dim=(-2, -1), norm="ortho"), dim=(-2, -1))
            spectra.append(spectrum * masks[:, number : number + 1])
        mixed = torch.fft.ifftshift(sum(spectra), dim=(-2, -1))
        return torch.fft.ifftn(mixed, dim=(-2, -1), norm="ortho").real.clamp(0, 1)

    calls = {}
    if theirs is not None:
        optimizer = torch.optim.AdamW(theirs.parameters(), 5e-5)
        calls["official"] = lambda: step(theirs.train(), optimizer, official_target)
    own = torch.optim.AdamW(ours.parameters(), 5e-5)
    calls["ours"] = lambda: step(
        ours.train(), own, lambda: frequency_mixup(images, our_masks(images[:, 0], 0.3)).clamp(0, 1)
    )
    # What `finetune` does: the enhanced ground truth was made once, before.
    made = frequency_mixup(images, our_masks(images[:, 0], 0.3)).clamp(0, 1).detach()
    calls["ours, enhanced before"] = lambda: step(ours.train(), own, lambda: made)
    return side_by_side(options.runs, **calls)


def training(options: argparse.Namespace) -> Figures:
    cost = RESULTS / "training_cost_cpu_float32_SwinIR.json"
    script = Path(__file__).with_name("training_cost.py")
    flags = ["--only", "SwinIR", "--rounds", str(options.runs), "--threads", str(options.threads)]
    subprocess.run([sys.executable, str(script), *flags], check=True)
    return {
        "cost": json.loads(cost.read_text())["backbones"]["SwinIR"],
        "stage2, default": child(options, "stage2_times", batch=2, side=256),
        "stage2, kept": child(options, "stage2_times", True, batch=2, side=256),
    }


# ---------------------------------------------------------------- whole runs


def large(options: argparse.Namespace) -> Figures:
    script = Path(__file__).with_name("large_image.py")
    subprocess.run([sys.executable, str(script), "--threads", str(options.threads)], check=True)
    images: Figures = json.loads((RESULTS / "large_image.json").read_text())["images"]
    return {"images": images}


@torch.inference_mode()
def folder_times(options: argparse.Namespace, count: int, side: int) -> Figures:
    """The command's own loop over a folder, against the network alone on the same pictures in memory."""
    from refine_wrap import RefineWrapper, read_image, write_image
    from refine_wrap.folder import plan_outputs
    from refine_wrap.pipeline import process
    from refine_wrap.restore import restore_pictures

    model = RefineWrapper.from_pretrained("shipped:demo_refiner")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        inputs = cuts(place / "in", count, side)
        tensors = [read_image(path).tensor() for path in inputs]
        batches = {"": 1, ", batches of 4": 4}

        def folder(batch: int) -> None:
            tally = process(
                plan_outputs(inputs, place / "in", place / "out"),
                read_image,
                lambda pictures: restore_pictures(model, pictures),
                lambda picture, path: write_image(path, picture, overwrite=True),
                batch=batch,
                alike=lambda picture: (picture.height, picture.width),
                overwrite=True,
            )
            assert tally.done == count

        def bare(batch: int) -> None:
            for first in range(0, count, batch):
                model(torch.cat(tensors[first : first + batch]))

        calls = {f"folder{name}": lambda batch=batch: folder(batch) for name, batch in batches.items()}
        calls |= {f"bare{name}": lambda batch=batch: bare(batch) for name, batch in batches.items()}
        return side_by_side(options.runs, **calls) | {"count": count, "side": side}


def folders(options: argparse.Namespace) -> Figures:
    return {f"{side}x{side}": child(options, "folder_times", True, count=16, side=side) for side in (64, 256)}


def start(options: argparse.Namespace) -> Figures:
    from refine_wrap import Picture, write_image

    with tempfile.TemporaryDirectory() as temporary:
        photo = Path(temporary) / "photo.png"
        write_image(photo, Picture(torch.randint(0, 256, (64, 64, 3)).byte().numpy()))
        verb = "import sys; sys.argv[0] = 'refine-wrap'; from refine_wrap.cli.main import run; run()"
        out = str(Path(temporary) / "out.png")
        commands = {
            "python -c pass": ["pass"],
            "import torch": ["import torch"],
            "from refine_wrap import RefineWrapper": ["from refine_wrap import RefineWrapper"],
            "refine-wrap --help": [verb, "--help"],
            "refine-wrap restore, 64x64": [verb, "restore", str(photo), "-o", out, "--overwrite", "--device", "cpu"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.runs + 1):
            for name, words in commands.items():
                begin = time.perf_counter()
                subprocess.run([sys.executable, "-c", *words], check=True, capture_output=True)
                times[name].append(time.perf_counter() - begin)
    return {"seconds": {name: median(each[1:]) for name, each in times.items()}}  # the first reads from the disk


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "ornet": ornet,
    "lite": lite,
    "absorbed": absorbed,
    "enhance": enhance,
    "training": training,
    "large": large,
    "folders": folders,
    "start": start,
}
CHILDREN: dict[str, Callable[..., Figures]] = {
    each.__name__: each
    for each in (ornet_times, ornet_memory, wrapped_times, absorbed_times, enhance_times, stage2_times, folder_times)
}


# ---------------------------------------------------------------- the table


def table(found: Figures) -> str:
    """A row for each figure, beside what is aimed at."""
    rows: list[tuple[str, float | None, str, str]] = []

    def row(label: str, value: float | None, unit: str, aim: float | None = None, least: bool = True) -> None:
        if value is None:
            return
        aimed = "" if aim is None else f"{'at least' if least else 'at most'} {aim:g}"
        met = "" if aim is None or (value >= aim) == least or value == aim else ", missed"
        rows.append((label, value, unit, aimed + met))

    for place, each in found.get("ornet", {}).get("sizes", {}).items():
        size, _, kind = place.partition(", ")
        if kind == "memory":
            row(f"ORNet {size}: peak memory over official", ratio(each, "ours", "official"), "", 0.6, least=False)
            continue
        with_ = "" if kind == "default" else " (memory kept in both)"
        for name, aim in (("ours", 2.0), ("compiled", 2.4), ("bfloat16", 3.5)):
            row(f"ORNet {size}: official over {name}{with_}", ratio(each, "official", name), "times", aim)
    aims = {"NAFNet-GoPro-32": 1.1}
    for name, each in found.get("lite", {}).get("networks", {}).items():
        row(f"{name}: wrapped over bare", ratio(each, "wrapped", "bare"), "times", aims.get(name, 1.05), least=False)
    row("absorbed over bare", ratio(found.get("absorbed", {}), "absorbed", "bare"), "times", 1.0, least=False)
    if enhanced := found.get("enhance"):
        memory = ratio(enhanced["memory"], "ours", "official")
        row("masks and mixup, 720p: memory over official", memory, "", 0.2, least=False)
        for kind in ("default", "kept"):
            each, with_ = enhanced[kind], "" if kind == "default" else " (memory kept in both)"
            times = ratio(each, "official masks", "our masks")
            row(f"masks and mixup, 720p: official over ours{with_}", times, "times", 10)
            times = ratio(each, "official whole", "whole")
            row(f"whole enhancement, 720p: official over ours{with_}", times, "times", 2)
    if trained := found.get("training"):
        for name, each in trained["cost"].items():
            aim = 0.15 if name == "ornet-lite, cached" else None
            row(f"step of SwinIR-M x4, {name}: over full", each["time_over_full"], "", aim, least=False)
        for kind in ("default", "kept"):
            each, with_ = trained[f"stage2, {kind}"], "" if kind == "default" else " (memory kept in both)"
            row(f"step of stage 2: official over ours{with_}", ratio(each, "official", "ours"), "times")
            before = ratio(each, "official", "ours, enhanced before")
            row(f"step of stage 2: official over ours, enhanced before{with_}", before, "times", 2)
    if images := found.get("large", {}).get("images"):
        for name, each in images.items():
            row(f"{name}: seconds a megapixel", each["seconds_per_megapixel"], "s")
            row(f"{name}: peak memory above the start", each["peak_over_start_mib"], "MiB")
        given_back = images["2K, memory given back"]["seconds"] / images["2K"]["seconds"]
        row("2K, memory given back over kept: time", given_back, "times")
        times = images["8K"]["seconds_per_megapixel"] / images["2K"]["seconds_per_megapixel"]
        row("8K over 2K, time a megapixel", times, "", 1.15, least=False)
    for side, each in found.get("folders", {}).items():
        if isinstance(each, dict) and "folder" in each:
            for name in ("", ", batches of 4"):
                row(f"folder of {side}{name}: images a second", each["count"] / each[f"folder{name}"], "")
                times = ratio(each, f"folder{name}", f"bare{name}")
                row(f"folder of {side}{name}: over the bare network", times, "times", 1.1, least=False)
    for name, seconds in found.get("start", {}).get("seconds", {}).items():
        row(f"start: {name}", seconds, "s")
    lines = [f"| {label} | {value:.3g} {unit} | {aim} |" for label, value, unit, aim in rows]
    return "\n".join(["| what | measured | aim |", "|---|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    main()
