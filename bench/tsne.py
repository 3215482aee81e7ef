"""Figure 5 as data: features of clean and triggered images, before and after unlearning, laid out in the plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.records import Tsne
from bench.scoring import Scorer, evaluating

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PERPLEXITY = 30.0
"""Of t-SNE, at most a third of the images."""
NEIGHBOURS = 10
"""Clean images that say where a triggered one has come to lie."""
BATCH = 256


def lay_out(models: Sequence[nn.Module], scorer: Scorer, count: int, seed: int) -> Tsne:
    """t-SNE of each of two models' features: the victim's, and the defended model's.

    The images are ``count`` of the scorer's, drawn by ``seed``, and under each trigger those
    of them whose label the attack changes. The features are what the paper took, the input of the network's last
    layer, flattened (2,048 of them in the simplified VGG). Each model has a layout of its own, for t-SNE cannot place
    new points in an old one; initial positions are the principal components, everything is seeded, one thread works.

    Args:
        models: two of them, on the scorer's device.
    """
    order = torch.randperm(len(scorer.labels), generator=torch.Generator().manual_seed(seed))[:count]
    images, rows = _images(scorer, order.to(scorer.device))
    true, number, source = rows.cpu().numpy().T
    points, shares = [], []
    for model in models:
        found = features(model, images)
        points.append(tuple(tuple(row) for row in plane(found, seed).round(3).tolist()))
        shares.append(restored_share(found, true, source, number > 0))
    return Tsne(
        labels=tuple(true.tolist()),
        triggered=tuple(number.tolist()),
        before=points[0],
        after=points[1],
        restored_before=shares[0],
        restored_after=shares[1],
    )


def _images(scorer: Scorer, index: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) float in [0, 1], clean ones first; (N, 3) int64: label, trigger's number or 0, its clean image."""
    clean, labels = scorer.images.index_select(0, index).float().div_(255), scorer.labels.index_select(0, index)
    place = torch.arange(len(labels), device=labels.device)
    images, rows = [clean], [torch.stack([labels, torch.zeros_like(labels), place], dim=1)]
    for number, (trigger, mapping) in enumerate(scorer.attacks, start=1):
        changed = mapping.is_poisonable(labels)
        images.append(trigger(clean[changed]))
        numbers = torch.full_like(labels[changed], number)
        rows.append(torch.stack([labels[changed], numbers, place[changed]], dim=1))
    return torch.cat(images), torch.cat(rows)


def features(model: nn.Module, images: Tensor) -> Floats:
    """(N, F) float64: the input of ``model``'s last layer with weights, a linear one or a convolution, flattened.

    Args:
        images: (N, C, H, W) float in [0, 1], on the model's device.
    """
    parts = []
    with evaluating(model), _last_input(model) as seen:
        for batch in images.split(BATCH):
            model(batch)
            parts.append(seen[-1].flatten(1).double().cpu())
    return torch.cat(parts).numpy()


@contextmanager
def _last_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the input of the linear layer or convolution that ran last."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [inputs[0].detach()]

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def plane(found: Floats, seed: int) -> Floats:
    """(N, 2): t-SNE (van der Maaten and Hinton, 2008, with Barnes-Hut) of ``found``, (N, F).

    All points at the origin where no two images differ: a network that maps everything to one point has no layout.
    """
    from sklearn.manifold import TSNE  # seconds to import
    from threadpoolctl import threadpool_limits

    spread = tidy(found)
    if not spread.any():  # scikit-learn would divide by it, and crash on the points that come of that
        return np.zeros((len(found), 2))
    perplexity = min(PERPLEXITY, len(found) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed % 2**32, n_jobs=1)
    with threadpool_limits(1):  # sums in an order of their own, whatever the number of cores
        points: Floats = layout.fit_transform(spread).astype(np.float64)
    return points


def tidy(found: Floats) -> Floats:
    """(N, max(F, 2)): centred and scaled to [-1, 1], which changes neither neighbours nor t-SNE.

    A feature that is no finite number (a diverged model's) counts as zero. All zeros where no two rows differ.
    """
    finite = np.where(np.isfinite(found), found, 0.0)
    unit = finite / max(np.abs(finite).max(initial=0.0), np.finfo(np.float64).tiny)  # first, lest sums overflow
    scaled = np.zeros_like(unit)
    if (unit != unit[:1]).any():
        centred = unit - unit.mean(axis=0)
        scaled = centred / np.abs(centred).max()
    return np.pad(scaled, ((0, 0), (0, max(0, 2 - scaled.shape[1]))))


def restored_share(found: Floats, labels: Ints, source: Ints, triggered: npt.NDArray[np.bool_]) -> float | None:
    """Share in [0, 1] of triggered images among whose ``NEIGHBOURS`` nearest clean ones their own class leads.

    Distances are Euclidean, in the features themselves and not in the picture. An image's own clean version, number
    ``source``, is left out: it would be near for that alone. None where nothing is triggered. Of classes that tie,
    the lowest leads.

    Args:
        found: (N, F), the clean images first; ``labels``, ``source``, ``triggered``: (N,).
    """
    spread = tidy(found)
    clean, stamped = spread[~triggered], spread[triggered]
    if not len(stamped) or len(clean) < 2:
        return None
    squares = (stamped**2).sum(1)[:, None] + (clean**2).sum(1)[None] - 2 * stamped @ clean.T
    squares[np.arange(len(stamped)), source[triggered]] = np.inf
    nearest = squares.argsort(axis=1, kind="stable")[:, : min(NEIGHBOURS, len(clean) - 1)]
    classes = labels[~triggered][nearest]
    leading = np.array([np.bincount(row).argmax() for row in classes])
    return float((leading == labels[triggered]).mean())
