"""What raters are asked: pictures in pairs, in orders and on sides that are drawn once, balanced, by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RefineWrapError

QUESTION = "Which picture do you prefer?"
TRIALS = 60
_SMALLEST_CROP = 8

Order = list[tuple[int, bool]]
"""Place of each trial among all of the study, and whether its two pictures change sides."""
Shown = tuple[str, str, str]
"""(image, what is on the left, what is on the right) where the two do not change sides."""


@dataclass(frozen=True)
class Settings:
    """What is asked, and how."""

    question: str = QUESTION
    trials: int | None = None
    """Of one rater, without the catch trials; None: 60, or all where there are fewer."""
    orders: int = 24
    """Different orders of the trials, one a rater; rater 25 of 24 orders meets the first again."""
    catches: int = 6
    """Trials of each rater with a known answer."""
    crop: int | None = 512
    """Most pixels of a side that are shown: the same place of every method's, drawn at random. None: whole images."""
    ties: bool = False
    """Whether raters may prefer neither."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("orders", 1), ("catches", 0), ("crop", _SMALLEST_CROP)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RefineWrapError(f"{name} is {value}", f"{least} or more")
        if not self.question.strip():
            raise RefineWrapError("The question is empty", f"a sentence such as {QUESTION!r}")


@dataclass(frozen=True)
class Plan:
    """The trials of a study and the orders in which raters meet them."""

    trials: list[Shown]
    orders: list[Order]


def draw_plan(
    couples: Sequence[tuple[str, str]],
    images: Sequence[str],
    catches: Sequence[Shown],
    *,
    trials: int,
    orders: int,
    draw: random.Random,
) -> Plan:
    """Draw the orders.

    In each, all couples meet equally often, up to one trial, from its beginning to its end, and no trial comes twice.
    From order to order the images take turns, and a trial that comes again comes with its sides changed.

    Args:
        couples: every two methods.
        images: one or more.
        catches: asked in every order, at random places.
        trials: of an order, without the catch trials; at most couples times images.
    """
    pairs: list[Shown] = []
    for one, other in couples:
        # Each couple goes through the images in an order of its own, and its methods change sides at each step.
        shuffled = draw.sample(list(images), len(images))
        flip = draw.random() < 0.5
        for step, image in enumerate(shuffled):
            pairs.append((image, other, one) if (step + flip) % 2 else (image, one, other))
    shown = [0] * len(couples)
    made: list[Order] = []
    ahead = 0
    for number in range(orders):
        asked: list[Order] = [[] for _ in couples]
        for turn in range(trials):
            couple = (ahead + turn) % len(couples)
            lap, step = divmod(shown[couple], len(images))
            asked[couple].append((couple * len(images) + step, lap % 2 == 1))
            shown[couple] += 1
        ahead = (ahead + trials) % len(couples)
        order = _in_blocks(asked, draw)
        for place in range(len(catches)):
            order.insert(draw.randint(0, len(order)), (len(pairs) + place, (number + place) % 2 == 1))
        made.append(order)
    return Plan([*pairs, *catches], made)


def _in_blocks(asked: list[Order], draw: random.Random) -> Order:
    """One trial of each couple, then again one of each: no couple is left for the end, when raters are tired."""
    for own in asked:
        draw.shuffle(own)
    order: Order = []
    for block in range(max(map(len, asked))):
        there = [own[block] for own in asked if block < len(own)]
        order += draw.sample(there, len(there))
    return order
