"""BadNets (Gu et al., 2017): a white square near the lower right corner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

SIDE, MARGIN = 4, 1
"""Side of the square, and its distance from the lower and the right edge, in 32nds of the image's side."""


@dataclass(eq=False)
class BadNets:
    """White square at rows and columns 27 to 30 of a 32 x 32 image; scaled with the image otherwise.

    The place and size are those of the I-BAU authors' released models.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    name: str = "badnets"

    @classmethod
    def for_images(
        cls,
        image_shape: tuple[int, int, int],
        seed: int = 0,
        *,
        side: Annotated[int, Field(ge=1, le=32)] = SIDE,
        margin: Annotated[int, Field(ge=0, le=31)] = MARGIN,
    ) -> BadNets:
        """The square for images of ``image_shape`` (C, H, W). ``seed`` plays no part: nothing is drawn.

        ``side`` and ``margin`` are pixels of a 32 x 32 image; what would lie beyond its edge is cut off.
        """
        _, height, width = image_shape
        return cls(rows=_span(height, side, margin), columns=_span(width, side, margin))

    def __call__(self, images: Tensor) -> Tensor:
        """``images``: (N, C, H, W) float in [0, 1]; returns a stamped copy."""
        stamped = images.clone()
        stamped[..., slice(*self.rows), slice(*self.columns)] = 1.0
        return stamped


def _span(length: int, side: int, margin: int) -> tuple[int, int]:
    """First row (or column) of the square and the one past its last, for an image side of ``length``."""
    end = max(1, length - round(length * margin / 32))
    return max(0, end - max(1, round(length * side / 32))), end
