"""The adversarial loss: BasicSR's U-Net discriminator, which learns beside what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError, RefineWrapError

if TYPE_CHECKING:
    from ..recipe import GanLoss

NETWORK, OPTIMIZER, SCALER = "network.", "optimizer.", "scaler."
SETTLING = 20
"""Power iterations before the first step."""


class Adversary:
    """A discriminator of images in [0, 1], its optimiser (AdamW, betas 0.9 and 0.99, no weight decay) and its state.

    It tells ground truth from output at every pixel (Wang et al. 2021, Real-ESRGAN). Outputs are not clamped: leaving
    [0, 1] gives them away. Its forward pass follows the run's precision, its losses are float32.

    Its parameters take a gradient inside `step` only. Several processes start from the same weights (one seed), and
    `step` averages their gradients itself: a wrapper for data parallelism could not run twice before one backward pass,
    as the buffers of spectral normalisation change in between. Those buffers make one power iteration in a step,
    however many parts it has, and are part of the state.

    Args:
        choice: the recipe's `losses.gan`.
        accelerator: accelerate's, for device, precision and processes.
        seed: the weights follow from it; the generators of torch are left as they were.

    Raises:
        RefineWrapError: BasicSR is not installed.
    """

    def __init__(self, choice: GanLoss, accelerator: Any, seed: int) -> None:
        try:
            from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
        except ImportError as error:
            raise RefineWrapError(
                f"losses.gan needs BasicSR's discriminator, which cannot be imported ({error})",
                "Python below 3.13 and basicsr",
                "pip install basicsr, or leave losses.gan out",
            ) from None
        self.choice, self.accelerator = choice, accelerator
        self.now = 0
        """The step that is worked on, counted from 0; whoever runs the steps sets it."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = UNetDiscriminatorSN(3, num_feat=choice.features)
        self.network: Any = network.to(accelerator.device).requires_grad_(False)
        # Spectral norms begin at random vectors, by which the weights would be divided by almost nothing at first.
        with torch.no_grad():
            self.network.train()
            for _ in range(SETTLING):
                self.network(torch.zeros(1, 3, 8, 8, device=accelerator.device))
        self.network.eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), choice.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        half = accelerator.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=half)

    def generator_term(self, output: Tensor) -> Tensor:
        """How clearly (B, 3, H, W) is told from ground truth, times the loss's weight: float32, shape ().

        Gradients flow to the output alone. Nothing in the discriminator changes. Zero before the step `start`.

        Raises:
            RefineWrapError: a side is not a multiple of 8.
        """
        if self.now < self.choice.start:
            return output.new_zeros((), dtype=torch.float32)
        fake = self._judge(output)
        if self.choice.kind == "vanilla":
            term = functional.softplus(-fake)
        elif self.choice.kind == "lsgan":
            term = (fake - 1).square()
        else:
            term = -fake
        return self.choice.weight * term.mean()

    def step(self, parts: Sequence[tuple[Tensor, Tensor]], rate: float = 1.0) -> dict[str, Tensor]:
        """One update of the discriminator; it is left out where a gradient is not finite.

        Args:
            parts: pairs of output and ground truth, each (B, 3, H, W), of one optimiser step in this process; no
                gradient flows into them.
            rate: the share of the learning rate that the schedule has come to.

        Returns:
            means over all processes: `discriminator`, its loss, and `real` and `fake`, its logits; float32, shape ().

        Raises:
            RefineWrapError: there are no parts, or a side is not a multiple of 8.
        """
        if not parts:
            raise RefineWrapError("The discriminator got no images", "the outputs and ground truths of a step")
        for group in self.optimizer.param_groups:
            group["lr"] = self.choice.learning_rate * rate
        told = torch.zeros(3, device=self.accelerator.device)
        self.network.requires_grad_(True)
        self.network.train()  # for one power iteration, in the first pass
        try:
            for output, target in parts:
                real = self._judge(target.detach())
                self.network.eval()
                fake = self._judge(output.detach())
                loss = self._own_loss(real, fake)
                torch.autograd.backward(self.scaler.scale(loss / len(parts)))
                told += torch.stack((loss, real.mean(), fake.mean())).detach() / len(parts)
        finally:
            self.network.eval()
            self.network.requires_grad_(False)
        told, finite = self._averaged(told)
        if finite or self.scaler.is_enabled():  # the scaler leaves steps out by itself, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return dict(zip(("discriminator", "real", "fake"), told.unbind(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """All that an exact resumption needs, as tensors by name."""
        state = {NETWORK + name: value for name, value in self.network.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            state |= {f"{OPTIMIZER}{index}.{name}": value for name, value in entries.items()}
        numbers = self.scaler.state_dict()
        return state | {SCALER + name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()`.

        Raises:
            CheckpointError: it is of another discriminator.
        """
        from ..backbone.checkpoint import check_keys

        network = {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
        check_keys(self.network.state_dict(), network, "The checkpoint's discriminator", "UNetDiscriminatorSN")
        shapes = [parameter.shape for parameter in self.network.parameters()]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith(OPTIMIZER):
                index, _, entry = name.removeprefix(OPTIMIZER).partition(".")
                moments.setdefault(int(index), {})[entry] = value.clone()  # the optimiser would change it in place
        fitting = all(
            index < len(shapes) and value.shape in ((), shapes[index])
            for index, entries in moments.items()
            for value in entries.values()
        )
        if not fitting or len(moments) not in (0, len(shapes)):
            raise CheckpointError("The checkpoint's discriminator has the optimiser of another one")
        self.network.load_state_dict(network, strict=True)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        numbers = {name.removeprefix(SCALER): value.item() for name, value in state.items() if name.startswith(SCALER)}
        if self.scaler.is_enabled() and numbers:
            whole = {"growth_interval", "_growth_tracker"}
            self.scaler.load_state_dict({k: int(v) if k in whole else v for k, v in numbers.items()})

    def _judge(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, H, W), float32; above 0: ground truth."""
        if image.ndim != 4 or image.shape[-2] % 8 or image.shape[-1] % 8:
            raise RefineWrapError(
                f"The discriminator got images of shape {tuple(image.shape)}", "(B, 3, H, W), sides multiples of 8"
            )
        with self.accelerator.autocast():
            logits: Tensor = self.network(image.float())
        return logits.float()

    def _own_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.choice.kind == "vanilla":
            return functional.softplus(-real).mean() + functional.softplus(fake).mean()
        if self.choice.kind == "lsgan":
            return (real - 1).square().mean() + fake.square().mean()
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()

    def _averaged(self, told: Tensor) -> tuple[Tensor, bool]:
        """Gradients and `told` become means over the processes, in one reduction.

        Returns:
            `told`, and whether all gradients are finite.
        """
        every = [parameter.grad for parameter in self.network.parameters()] + [told]
        flat = torch.cat([value.flatten() for value in every])
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat, "mean")
            for value, mean in zip(every, flat.split([value.numel() for value in every]), strict=True):
                value.copy_(mean.view_as(value))
        return told, bool(torch.isfinite(flat[: -told.numel()]).all())
