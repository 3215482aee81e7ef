"""The inner maximisation from many starts: a bank of local maximisers of equation (1) instead of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ibau_defense.ascent import AscentResult, AscentStatus
from ibau_defense.balls import Ball, LinfBall
from ibau_defense.objective import Network, Theta
from ibau_defense.parallel import Ranks

Draw = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MultiStart:
    """Which local maximisers are looked for, and how hard.

    H(·, θ) is not concave, and one ascent from zero ends in one of its many local maxima, mostly not the backdoor's.
    Here every start climbs in a square window of the image, all of them in one batch, and ``whole`` more on the entire
    image. A *survey* of windows that overlap by half covers the image: wherever a trigger lies, some window holds it,
    and the harm reached there stands out. *Focused* starts then climb in windows near those, drawn in proportion to
    the harm the survey found in them.

    Attributes:
        windows: False has as many starts climb on the entire image instead, each from a draw of its own images.
        side: of a window, as a share of the image's.
        cells: sides in pixels of the cells that change together in a focused start, one drawn for each.
        whole: starts of a survey that climb on the entire image.
        focused: focused starts a round.
        images: clean images a focused start sees in each step.
        survey_images: clean images a start of the survey sees in each step.
        surveys: as many at most.
        standing_out: the harm of some window, in nats, at which no other survey is made.
        steps: T. Many small steps on few images find the backdoor where few large ones on many do not.
        reach: in a window, how far a pixel can go in all steps together, in pixels of [0, 1].
        whole_share: on the entire image, ‖δ‖ stays under this share of the ball's radius.
        enough: a focused start whose mean loss is above this many nats stands still: harm far beyond it says nothing
            more about backdoors and costs the outer steps their accuracy.
        far: starts of the survey that climb far on the entire image, instead of the ``whole`` ones; there are as many
            focused starts then, and no later bank. A network without a backdoor is harmed as much by such a δ, so
            carrying it costs accuracy.
        far_share: ‖δ‖ of a far start stays under this share of the ball's radius.
        every: new focused starts are looked for every so many rounds; between them the last bank stays, so that the
            outer steps do not lose sight of the strongest starts while the network looks harmless around them.
        harmful: a later bank whose mean harm is under this many nats is no backdoor's: it is dropped, the one before
            stays and the search ends. What is found in a network without a backdoor is its natural weakness, and
            carrying that only costs accuracy.
    """

    windows: bool = True
    side: float = 0.25
    cells: tuple[int, ...] = (1, 1, 2, 4)
    whole: int = 2
    focused: int = 32
    images: int = 2
    survey_images: int = 3
    surveys: int = 3
    standing_out: float = 40.0
    steps: int = 10
    reach: float = 1.2
    whole_share: float = 0.3
    enough: float = 20.0
    far: int = 0
    far_share: float = 0.9
    every: int = 2
    harmful: float = 6.0

    def __post_init__(self) -> None:
        counts = (self.focused, self.images, self.survey_images, self.surveys, self.steps, self.every, *self.cells)
        if min(counts) < 1 or min(self.whole, self.far) < 0 or not self.cells or not 0 < self.side <= 1:
            raise ValueError(
                f"starts: found {self}; expected a side in (0, 1], cells, focused, images, survey_images, surveys, "
                "steps and every of at least 1, and whole and far of at least 0"
            )


@dataclass(frozen=True)
class Window:
    """Where a start climbs: rows top … top + height − 1, columns left … left + width − 1, in cells of some pixels.

    On the ``whole`` image, ‖δ‖ stays under ``share`` of the ball's radius.
    """

    top: int
    left: int
    height: int
    width: int
    cell: int = 1
    offset: tuple[int, int] = (0, 0)
    whole: bool = False
    share: float = 1.0


def survey_windows(settings: MultiStart, shape: torch.Size) -> list[Window]:
    """Windows that overlap by half and cover an image (C, H, W); then those of the entire image."""
    sides = [max(1, round(settings.side * size)) for size in shape[1:]]
    tops, lefts = (_places(size, side) for size, side in zip(shape[1:], sides, strict=True))
    share = settings.far_share if settings.far else settings.whole_share
    entire = Window(0, 0, shape[1], shape[2], whole=True, share=share)
    covering = [Window(top, left, sides[0], sides[1]) if settings.windows else entire for top in tops for left in lefts]
    return covering + [entire] * (settings.far or settings.whole)


def _places(size: int, side: int) -> list[int]:
    """First pixels of windows that overlap by half, the last one ending with the line."""
    return sorted({*range(0, size - side + 1, max(1, side // 2)), size - side})


def near(window: Window, settings: MultiStart, shape: torch.Size, generator: torch.Generator) -> Window:
    """The same window moved by up to a quarter of its side, within the image, on cells drawn anew."""
    if window.whole:
        return window

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    quarter = max(window.height, window.width) // 4
    cell = settings.cells[number(0, len(settings.cells) - 1)]
    return replace(
        window,
        top=min(max(window.top + number(-quarter, quarter), 0), shape[1] - window.height),
        left=min(max(window.left + number(-quarter, quarter), 0), shape[2] - window.width),
        cell=cell,
        offset=(number(0, cell - 1), number(0, cell - 1)),
    )


Climb = Callable[[list[Window], int, float], AscentResult]


@dataclass
class Search:
    """The banks of one run: a survey in the first round, focused starts in this and the next ones.

    Attributes:
        shape: (C, H, W) of an image.
        generator: of the focused starts; on the CPU, so that every device gets the same.
        windows: K of them, those of the survey.
        harm: (K,) nats, on the CPU, what the survey found in each of its windows; None before it.
        over: a later look found nothing harmful, or none is to be made; there is no other.
    """

    settings: MultiStart
    shape: torch.Size
    generator: torch.Generator
    windows: list[Window] = field(init=False)
    harm: Tensor | None = field(default=None, init=False)
    over: bool = field(default=False, init=False)
    _rounds: int = field(default=0, init=False)
    _last: AscentResult | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.windows = survey_windows(self.settings, self.shape)

    @property
    def largest(self) -> int:
        """Images of the largest step of an ascent."""
        settings = self.settings
        return max(len(self.windows) * settings.survey_images, settings.focused * settings.images)

    def bank(self, climb: Climb) -> AscentResult:
        """This round's maximisers; ``climb`` takes windows, images a step and the harm at which to stand still."""
        if self._last is None:
            self._last = self._find(climb)
        elif not self.over and self._rounds % self.settings.every == 0:
            found = self._find(climb)
            self.over = found.status != "not_finite" and float(harm_weights(found).mean()) < self.settings.harmful
            # what this look found is reported, what the steps carry stays
            self._last = replace(self._last, trace=found.trace, status="no_harm") if self.over else found
        self._rounds += 1
        return self._last

    def _find(self, climb: Climb) -> AscentResult:
        settings, survey = self.settings, None
        if self.harm is None:
            survey = self._survey(climb)
            self.harm, self.over = harm_weights(survey), settings.far > 0
        chosen = torch.multinomial(
            self.harm, settings.far or settings.focused, replacement=True, generator=self.generator
        )
        around = [near(self.windows[k], settings, self.shape, self.generator) for k in chosen.tolist()]
        focused = climb(around, settings.images, settings.enough)
        return focused if survey is None else _joined(survey, focused)

    def _survey(self, climb: Climb) -> AscentResult:
        """Repeated until some window stands out; of each window the more harmful δ."""
        settings = self.settings
        local = torch.tensor([not window.whole for window in self.windows])
        kept = climb(self.windows, settings.survey_images, math.inf)
        for _ in range(settings.surveys - 1):
            found = harm_weights(kept)[local]
            if found.numel() == 0 or float(found.max()) >= settings.standing_out:
                break
            kept = _better(kept, climb(self.windows, settings.survey_images, math.inf))
        return kept


def harm_weights(bank: AscentResult) -> Tensor:
    """(K,) float on the CPU: the harm of each δ of a bank, positive and finite."""
    assert bank.harm is not None
    return bank.harm.detach().float().cpu().nan_to_num(0.0, posinf=1e6).clamp(1e-3, 1e6)


def _better(first: AscentResult, second: AscentResult) -> AscentResult:
    """Of each window, the more harmful of its two δ."""
    assert first.harm is not None
    assert second.harm is not None
    later = second.harm > first.harm
    delta = torch.where(later.view(-1, 1, 1, 1), second.delta, first.delta)
    return replace(first, delta=delta, harm=torch.where(later, second.harm, first.harm))


def _joined(first: AscentResult, second: AscentResult) -> AscentResult:
    """One bank of two; of a pair of statuses, the worse."""
    assert first.harm is not None
    assert second.harm is not None
    order: tuple[AscentStatus, ...] = ("not_finite", "no_gain", "ascended")
    return AscentResult(
        torch.cat([first.delta, second.delta]),
        second.trace,
        min(first.status, second.status, key=order.index),
        torch.cat([first.harm, second.harm]),
    )


def ascend_from_many(
    network: Network,
    draw: Draw,
    shape: torch.Size,
    theta: Theta,
    ball: Ball,
    settings: MultiStart,
    windows: list[Window],
    *,
    look: Draw | None = None,
    each: int = 2,
    enough: float = math.inf,
    clip: bool = True,
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
) -> AscentResult:
    """Raise the cross-entropy of true labels from K starts at once; every δ lies in the ball.

    On the entire image all steps together go 2.5 times as far as the start may: along the gradient in ℓ2, or where the
    ball is of ℓ∞, along its sign in each pixel.

    Args:
        draw: n ↦ n clean images (n, C, H, W) and labels (n,).
        shape: (C, H, W).
        windows: K of them, one a start.
        look: likewise, images on which the harm of what was found is measured; None: ``draw``.
        each: clean images a start sees in each step.
        enough: a start whose mean loss is above this many nats stands still.
        micro_batch: most images in one pass.
        ranks: processes that share the starts: each differentiates its own and has the others' from theirs. Starts do
            not meet before the outer step, so sharing them, and not their images, leaves every δ what it is alone.

    Returns:
        A bank: ``delta`` (K, C, H, W) and the loss of each, ``harm`` (K,), on images drawn by ``look``.
    """
    device = theta[0].device
    regions, rows, columns = (x.to(device, theta[0].dtype) for x in _regions(windows, shape))
    whole = torch.tensor([window.whole for window in windows], device=device).view(-1, 1, 1, 1)
    delta = torch.zeros(len(windows), *shape, device=device, dtype=theta[0].dtype)
    balls = [type(ball)(window.share * ball.radius) if window.whole else ball for window in windows]
    radii, reach = (
        torch.tensor(values, device=device, dtype=delta.dtype)
        for values in ([one.radius for one in balls], [_reach(one, shape) for one in balls])
    )
    reach = reach.view(-1, 1, 1, 1)
    sound = torch.ones((), dtype=torch.bool, device=device)
    losses = []
    for _ in range(settings.steps):
        images, labels = draw(len(windows) * each)
        harm, gradient = _climb(network, images, labels, delta, theta, clip, micro_batch, ranks)
        losses.append(harm.mean())
        gradient = torch.einsum("kab,kcbd,ked->kcae", rows, gradient, columns) * regions
        move = torch.where(whole, _far(gradient, reach, ball), settings.reach * gradient.sign()) / settings.steps
        climbing = (harm < enough).view(-1, 1, 1, 1)
        moved = (delta + move * climbing).clamp(-1.0, 1.0)
        moved = ball.project_each(moved, radii)
        sound = sound & gradient.isfinite().all() & moved.isfinite().all()
        delta = torch.where(sound, moved, delta)
    harm, _ = _climb(network, *(look or draw)(len(windows) * each), delta, theta, clip, micro_batch, ranks, look=True)
    trace = torch.stack([*losses, harm.mean()])
    climbed = (trace[-1] > trace[0]) | (trace[-1] >= enough)
    finite, higher = torch.stack([sound, climbed]).tolist()  # the one read of an ascent
    status: AscentStatus = "not_finite" if not finite else "ascended" if higher else "no_gain"
    return AscentResult(delta, trace, status, harm)


def _reach(ball: Ball, shape: torch.Size) -> float:
    """How far a start on the entire image may go, in ℓ∞ or else in ℓ2: the radius, or all that an image can move."""
    return min(ball.radius, 1.0 if isinstance(ball, LinfBall) else math.sqrt(shape.numel()))


def _far(gradient: Tensor, reach: Tensor, ball: Ball) -> Tensor:
    """(K, C, H, W): all steps of starts on the entire image together, along this gradient."""
    if isinstance(ball, LinfBall):
        return 2.5 * reach * gradient.sign()
    norms: Tensor = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny).view(-1, 1, 1, 1)
    return 2.5 * reach * gradient / norms


def _climb(
    network: Network,
    images: Tensor,
    labels: Tensor,
    delta: Tensor,
    theta: Theta,
    clip: bool,
    micro_batch: int | None,
    ranks: Ranks | None,
    *,
    look: bool = False,
) -> tuple[Tensor, Tensor]:
    """(K,) mean loss and (K, C, H, W) gradient of each δ on its own images; the gradient is zero for a ``look``.

    One pass is of several δ with all of their images, or of a part of one's where these are more than ``micro_batch``.
    """
    each, most = len(images) // len(delta), micro_batch or len(images)
    group = max(1, most // each)
    own = slice(0, len(delta)) if ranks is None else ranks.share(len(delta))
    harm, gradient = torch.zeros_like(delta[:, 0, 0, 0]), torch.zeros_like(delta)
    for start in range(own.start, own.stop, group):
        stop = min(start + group, own.stop)
        whole = slice(start * each, stop * each)
        for first in range(whole.start, whole.stop, most):
            part = slice(first, min(first + most, whole.stop))
            inputs = (delta[start:stop], images[part], labels[part])
            losses, slope = _pass(network, inputs, theta, clip, look=look)
            share = (part.stop - part.start) / (whole.stop - whole.start)
            harm[start:stop] += share * losses
            if slope is not None:
                gradient[start:stop] += share * slope
    return (harm, gradient) if ranks is None else tuple(ranks.sum([harm, gradient]))  # type: ignore[return-value]


def _pass(
    network: Network, inputs: tuple[Tensor, Tensor, Tensor], theta: Theta, clip: bool, *, look: bool
) -> tuple[Tensor, Tensor | None]:
    """(K,) mean losses of δ, images and labels, and their gradient, replayed where passes are recorded."""

    def work(point: Tensor, images: Tensor, labels: Tensor) -> list[Tensor]:
        return _harm(network, images, labels, point, theta, clip)

    delta, images, labels = inputs
    if look:
        with torch.no_grad():
            return _losses(network, images, labels, delta, theta, clip), None
    count, graphs = len(images), network.graphs
    found = graphs.run(("starts", clip), work, inputs, theta, (count, count)) if graphs else work(*inputs)
    return found[0], found[1]


def _harm(network: Network, images: Tensor, labels: Tensor, delta: Tensor, theta: Theta, clip: bool) -> list[Tensor]:
    point = delta.detach().requires_grad_(True)
    with torch.enable_grad():
        losses = _losses(network, images, labels, point, theta, clip)
        (gradient,) = torch.autograd.grad(losses.sum(), point)
    return [losses.detach(), gradient]


def _losses(network: Network, images: Tensor, labels: Tensor, delta: Tensor, theta: Theta, clip: bool) -> Tensor:
    """(K,) the mean loss of each δ on its own images."""
    each = len(images) // len(delta)
    added = images + delta.repeat_interleave(each, dim=0)
    logits = network(added.clamp(0.0, 1.0) if clip else added, theta)
    return F.cross_entropy(logits, labels, reduction="none").view(-1, each).mean(dim=1)


def _regions(windows: list[Window], shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (K, 1, H, W) of the windows, and averaging over cells along each side, (K, H, H) and (K, W, W)."""
    _, height, width = shape
    down, across = torch.arange(height), torch.arange(width)
    masks = torch.stack(
        [
            ((down >= w.top) & (down < w.top + w.height))[:, None] & ((across >= w.left) & (across < w.left + w.width))
            for w in windows
        ]
    )
    rows = torch.stack([_average(height, w.cell, w.offset[0]) for w in windows])
    columns = torch.stack([_average(width, w.cell, w.offset[1]) for w in windows])
    return masks[:, None], rows, columns


def _average(size: int, cell: int, offset: int) -> Tensor:
    """(size, size): replaces each entry of a line by the mean of its cell."""
    belongs = (torch.arange(size) + offset) // cell
    same = (belongs[:, None] == belongs).float()
    return same / same.sum(dim=1, keepdim=True)
