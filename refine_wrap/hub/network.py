"""A network that an adapter folder holds by itself, without a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from ..errors import CheckpointError, RefineWrapError
from .adapter import UPGRADE, Adapter
from .disk import load_adapter
from .remote import resolve

Network = TypeVar("Network", bound=nn.Module)


def load_network(source: str | Path, kind: str, build: Callable[..., Network], name: str) -> tuple[Network, Adapter]:
    """The network of an adapter of this kind, in evaluation mode, and the adapter.

    Args:
        source: a folder, `"shipped:NAME"`, or `org/name` on the Hub.
        kind: what it must be.
        build: takes the adapter's config.
        name: what the network is called where it is refused.

    Raises:
        CheckpointError: there is none, or it is damaged or something else.
        HubError: it cannot be had from the Hub.
    """
    from ..backbone.checkpoint import check_keys

    adapter = load_adapter(resolve(source))
    if adapter.kind != kind:
        raise CheckpointError(f"{source} is of kind {adapter.kind}", f"an adapter of kind {kind}")
    try:
        network = build(**adapter.config)
    except (TypeError, RefineWrapError) as error:
        raise CheckpointError(
            f"{source}: no {name} can be built with {adapter.config}: {getattr(error, 'came', error)}",
            getattr(error, "expected", None) or "its own config, unedited",
            getattr(error, "next_step", None) or f"if it is newer: {UPGRADE}",
        ) from None
    check_keys(network.state_dict(), adapter.tensors, str(source), f"its {name}")
    network.load_state_dict(adapter.tensors)
    return network.eval(), adapter
