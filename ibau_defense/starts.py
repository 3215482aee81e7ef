"""The inner maximisation from many starts: a bank of local maximisers of equation (1) instead of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ibau_defense.ascent import AscentResult, AscentStatus
from ibau_defense.balls import Ball
from ibau_defense.objective import Network, Theta
from ibau_defense.parallel import Ranks

Draw = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MultiStart:
    """Which local maximisers are looked for, and how hard.

    H(·, θ) is not concave, and one ascent from zero ends in one of its many local maxima, mostly not the backdoor's.
    Here each start climbs on its own part of the image, all of them in one batch: tiles × tiles regions twice, once
    pixel by pixel and once on cells of several pixels that change together, and ``whole`` times the entire image. The
    tiling moves by a random offset from one call to the next. A trigger that fills a patch is then the steepest way
    up in the region that holds it, whatever else the network is sensitive to elsewhere.

    Attributes:
        tiles: regions along each side.
        cells: sides in pixels of the cells of the second tiling, one drawn for each start.
        whole: starts that climb on the entire image.
        images: clean images a start sees in each step.
        steps: T; the steps grow by powers of two, so that a fragile network is not overshot in the first.
        reach: in a region, how far a pixel can go in all steps together, in pixels of [0, 1].
        whole_share: on the entire image, ‖δ‖ stays under this share of the ball's radius.
        enough: a start whose mean loss is above this many nats stands still: harm far beyond it says nothing about
            backdoors and costs the outer steps their accuracy.
    """

    tiles: int = 4
    cells: tuple[int, ...] = (1, 2, 4)
    whole: int = 2
    images: int = 4
    steps: int = 4
    reach: float = 1.2
    whole_share: float = 0.3
    enough: float = 3.0

    def __post_init__(self) -> None:
        if min(self.tiles, self.images, self.steps, *self.cells) < 1 or self.whole < 0 or not self.cells:
            raise ValueError(f"starts: found {self}; expected tiles, cells, images and steps of at least 1")

    @property
    def count(self) -> int:
        """K, the starts."""
        return 2 * self.tiles**2 + self.whole


def ascend_from_many(
    network: Network,
    draw: Draw,
    shape: torch.Size,
    theta: Theta,
    ball: Ball,
    settings: MultiStart,
    generator: torch.Generator,
    *,
    clip: bool = True,
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
) -> AscentResult:
    """Raise the cross-entropy of true labels from K starts at once; every δ lies in the ball.

    Args:
        draw: n ↦ n clean images (n, C, H, W) and labels (n,).
        shape: (C, H, W).
        generator: of the tilings; on the CPU, so that every device gets the same.
        micro_batch: most images in one pass.
        ranks: processes that share the starts: each differentiates its own and has the others' from theirs. Starts do
            not meet before the outer step, so sharing them, and not their images, leaves every δ what it is alone.

    Returns:
        A bank: ``delta`` (K, C, H, W) and the loss of each, ``harm`` (K,), as last seen by its ascent.
    """
    device = theta[0].device
    regions, rows, columns = (x.to(device, theta[0].dtype) for x in _regions(settings, shape, generator))
    whole = (torch.arange(settings.count) >= settings.count - settings.whole).to(device).view(-1, 1, 1, 1)
    delta = torch.zeros(settings.count, *shape, device=device, dtype=theta[0].dtype)
    reach, inside = settings.whole_share * ball.radius, type(ball)(settings.whole_share * ball.radius)
    sound = torch.ones((), dtype=torch.bool, device=device)
    losses, harm = [], torch.zeros(settings.count, device=device, dtype=theta[0].dtype)
    for step in range(settings.steps):
        images, labels = draw(settings.count * settings.images)
        harm, gradient = _climb(network, images, labels, delta, theta, clip, micro_batch, ranks)
        losses.append(harm.mean())
        gradient = torch.einsum("kab,kcbd,ked->kcae", rows, gradient, columns) * regions
        share = 2.0**step / (2.0**settings.steps - 1)
        norms = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny).view(-1, 1, 1, 1)
        move = torch.where(whole, 2.5 * reach * share * gradient / norms, settings.reach * share * gradient.sign())
        sound = sound & gradient.isfinite().all()
        climbing = (harm < settings.enough).view(-1, 1, 1, 1)
        moved = (delta + move * climbing).clamp(-1.0, 1.0)
        moved = torch.stack(
            [(inside if k >= settings.count - settings.whole else ball).project(one) for k, one in enumerate(moved)]
        )
        delta = torch.where(sound, moved, delta)
    trace = torch.stack(losses)
    climbed = (trace[-1] > trace[0]) | (trace[-1] >= settings.enough)
    finite, higher = torch.stack([sound, climbed]).tolist()  # the one read of an ascent
    status: AscentStatus = "not_finite" if not finite else "ascended" if higher else "no_gain"
    return AscentResult(delta, trace, status, harm)


def _climb(
    network: Network,
    images: Tensor,
    labels: Tensor,
    delta: Tensor,
    theta: Theta,
    clip: bool,
    micro_batch: int | None,
    ranks: Ranks | None,
) -> tuple[Tensor, Tensor]:
    """(K,) mean loss and (K, C, H, W) gradient of each δ on its own images."""
    each = len(images) // len(delta)
    group = max(1, micro_batch // each) if micro_batch else len(delta)
    own = slice(0, len(delta)) if ranks is None else ranks.share(len(delta))
    harm, gradient = torch.zeros_like(delta[:, 0, 0, 0]), torch.zeros_like(delta)
    for start in range(own.start, own.stop, group):
        stop = min(start + group, own.stop)
        part = slice(start * each, stop * each)

        def work(point: Tensor, images: Tensor, labels: Tensor) -> list[Tensor]:
            return _harm(network, images, labels, point, theta, clip)

        inputs = (delta[start:stop], images[part], labels[part])
        count, graphs = (stop - start) * each, network.graphs
        found = graphs.run(("starts", clip), work, inputs, theta, (count, count)) if graphs else work(*inputs)
        harm[start:stop], gradient[start:stop] = found
    return (harm, gradient) if ranks is None else tuple(ranks.sum([harm, gradient]))  # type: ignore[return-value]


def _harm(network: Network, images: Tensor, labels: Tensor, delta: Tensor, theta: Theta, clip: bool) -> list[Tensor]:
    each, point = len(images) // len(delta), delta.detach().requires_grad_(True)
    with torch.enable_grad():
        added = images + point.repeat_interleave(each, dim=0)
        logits = network(added.clamp(0.0, 1.0) if clip else added, theta)
        losses = F.cross_entropy(logits, labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), point)
    return [losses.detach().view(-1, each).mean(dim=1), gradient]


def _regions(settings: MultiStart, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (K, 1, H, W) of the regions, and averaging over cells along each side, (K, H, H) and (K, W, W)."""
    _, height, width = shape

    def number(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    down = torch.arange(height).roll(number(math.ceil(height / settings.tiles))) * settings.tiles // height
    across = torch.arange(width).roll(number(math.ceil(width / settings.tiles))) * settings.tiles // width
    tile = down[:, None] * settings.tiles + across
    tiles = torch.stack([tile == index for index in range(settings.tiles**2)])
    masks = torch.cat([tiles, tiles, torch.ones(settings.whole, height, width, dtype=torch.bool)])
    count = settings.tiles**2
    cells = [1] * count + [settings.cells[number(len(settings.cells))] for _ in range(count)] + [1] * settings.whole
    offsets = [(number(cell), number(cell)) for cell in cells]
    rows = torch.stack([_average(height, cell, offset[0]) for cell, offset in zip(cells, offsets, strict=True)])
    columns = torch.stack([_average(width, cell, offset[1]) for cell, offset in zip(cells, offsets, strict=True)])
    return masks[:, None], rows, columns


def _average(size: int, cell: int, offset: int) -> Tensor:
    """(size, size): replaces each entry of a line by the mean of its cell."""
    belongs = (torch.arange(size) + offset) // cell
    same = (belongs[:, None] == belongs).float()
    return same / same.sum(dim=1, keepdim=True)
