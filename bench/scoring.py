"""ACC, ASR, RA, DER and the error gap, each with its 95 % interval.

Scores are functions of per-image outcomes, and outcomes are what a model's predictions leave behind: the two are
kept apart, so that a victim's outcomes can be stored and compared image by image with a defended model's.
"""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapters.attacks.conduct import conduct_digest
from adapters.attacks.visibility import Visibility, visibility
from adapters.errors import UserError
from adapters.protocols import ImageTensors, LabelledImages, LabelMap, Trigger
from bench.intervals import Interval, absolute, newcombe, wilson
from bench.splits import Split

Flags = npt.NDArray[np.bool_]

RESAMPLES = 4000
"""Bootstrap resamples behind the interval of DER."""

VISIBILITY_IMAGES = 256

TRACE_IMAGES = 1000
"""About how many scoring images a model is scored on between rounds; what a defense returns is scored on all."""

SCORING_VERSION = 1
"""Part of the identity under which a victim's scores are kept: raise it when their meaning changes."""


@dataclass(frozen=True)
class Outcomes:
    """What became of each scoring image.

    ``correct``: (N,) its clean version is given the true label. For each of T triggers, (T, N): ``counted``, its
    true label is not the target; ``hit``, its triggered version is given the target; ``restored``, its triggered
    version is given the true label. ``hit`` and ``restored`` are False where ``counted`` is. A clean model has T = 0.
    """

    correct: Flags
    counted: Flags
    hit: Flags
    restored: Flags

    def at(self, index: Tensor) -> Outcomes:
        """Those of the images ``index`` (n,) alone."""
        chosen = index.numpy()
        return Outcomes(self.correct[chosen], *(x[:, chosen] for x in (self.counted, self.hit, self.restored)))

    def pack(self) -> dict[str, Any]:
        """JSON-able: one bit an outcome."""
        rows = np.vstack([self.correct[None], self.counted, self.hit, self.restored])
        return {"shape": list(rows.shape), "bits": packed(rows)}

    @classmethod
    def unpack(cls, tree: Mapping[str, Any]) -> Outcomes:
        """The inverse of ``pack``; raises ``ValueError`` or ``KeyError`` for anything else."""
        rows, count = (int(one) for one in tree["shape"])
        if rows < 1 or rows % 3 != 1 or count < 1:
            raise ValueError(f"{rows, count} is no shape of outcomes")
        flags = unpacked(tree["bits"], rows * count).reshape(rows, count)
        counted, hit, restored = flags[1:].reshape(3, rows // 3, count)
        return cls(flags[0], counted, hit, restored)


def packed(flags: Flags) -> str:
    """One bit a flag, in letters."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode("ascii")


def unpacked(letters: str, count: int) -> Flags:
    """The inverse of ``packed``, (count,); raises ``ValueError`` unless ``letters`` hold so many flags."""
    bits = np.frombuffer(base64.b64decode(letters, validate=True), dtype=np.uint8)
    if len(bits) != (count + 7) // 8:
        raise ValueError(f"{len(bits)} bytes cannot hold {count} flags")
    return np.unpackbits(bits, count=count).astype(np.bool_)


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] with their intervals. With several triggers ``asr`` and ``ra`` are averages over them; without
    any (a clean model) they are NaN.

    ``triggered_count`` is the number of images behind ASR and RA (several triggers: the mean of theirs; they are
    the same photographs, so the intervals do not count them twice). ``per_trigger``: (name, asr, ra, count) of each.
    """

    acc: float
    asr: float
    ra: float
    acc_interval: Interval
    asr_interval: Interval
    ra_interval: Interval
    clean_count: int
    triggered_count: float
    per_trigger: tuple[tuple[str, float, float, int], ...]
    outcomes: Outcomes = field(repr=False, compare=False)

    @classmethod
    def of(cls, outcomes: Outcomes, names: Sequence[str]) -> Scores:
        """Scores of ``outcomes`` under the triggers called ``names``."""
        if not len(outcomes.counted):
            return cls._of_clean(outcomes)
        counts = outcomes.counted.sum(axis=1)
        asrs, ras = outcomes.hit.sum(axis=1) / counts, outcomes.restored.sum(axis=1) / counts
        acc, asr, ra = float(outcomes.correct.mean()), float(asrs.mean()), float(ras.mean())
        number = float(counts.mean())
        each = zip(names, asrs.tolist(), ras.tolist(), counts.tolist(), strict=True)
        return cls(
            acc=acc,
            asr=asr,
            ra=ra,
            acc_interval=wilson(acc, len(outcomes.correct)),
            asr_interval=wilson(asr, number),
            ra_interval=wilson(ra, number),
            clean_count=len(outcomes.correct),
            triggered_count=number,
            per_trigger=tuple(each),
            outcomes=outcomes,
        )

    @classmethod
    def _of_clean(cls, outcomes: Outcomes) -> Scores:
        acc, count, none = float(outcomes.correct.mean()), len(outcomes.correct), float("nan")
        return cls(acc, none, none, wilson(acc, count), (none, none), (none, none), count, 0.0, (), outcomes)


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    interval: Interval


class Scorer:
    """Scores models on one split's scoring set, under the triggers of one attack; of a clean model the ACC alone.

    The images stay on ``device`` as uint8. Triggers act on float images, batch by batch, and are not rounded to
    the 256 levels: that is what the defender's input would be.
    """

    def __init__(
        self,
        data: ImageTensors,
        split: Split,
        attacks: Sequence[tuple[Trigger, LabelMap]],
        device: torch.device,
    ) -> None:
        """Raises ``UserError`` if some attack has no scoring image outside its target class."""
        self.device, self.attacks, self._dtype = device, tuple(attacks), torch.float32
        self.names = _distinct([trigger.name for trigger, _ in attacks])
        self.index, self.test_size = split.scoring_indices, len(data.test.labels)
        """Which of the ``test_size`` test images are scored: (N,) int64."""
        labels, images = data.test.labels[self.index], data.test.images[self.index]
        everywhere = [mapping.is_poisonable(data.test.labels) for _, mapping in attacks]
        counted = torch.stack(everywhere) if everywhere else torch.zeros(0, self.test_size, dtype=torch.bool)
        self._counted = counted[:, self.index]
        for name, one in zip(self.names, self._counted, strict=True):
            if not bool(one.any()):
                raise UserError(
                    f"cell.target: none of the {len(labels)} scoring images of {data.name!r} lies outside the target"
                    f" class of {name!r}; expected at least one, ASR counts no others"
                )
        # Not the name alone: images of one name, and a trigger whose code was changed, are others.
        done = [conduct_digest(trigger, data.test.images) for trigger, _ in attacks]
        versions = [getattr(trigger, "digest", "") for trigger, _ in attacks]  # of optimised triggers
        self.identity = _identity(data.test, [*self.names, *versions, *done], counted)
        """Of what an image's outcome depends on besides the model; the same for every split of a test set."""
        self.images, self.labels = images.to(device), labels.to(device)

    def sample(self, count: int, dtype: torch.dtype = torch.float32) -> tuple[Scorer, Tensor]:
        """A scorer of at most about ``count`` of the images, and which they are: (n,) int64.

        Every k-th image of each class, so that each class is there in proportion, and with at least one image; all
        images where there are no more than ``count``. ``dtype``: bfloat16 for a scorer that is quicker and rounds, by
        which an image near a border may get another label.
        """
        labels = self.labels.cpu()
        order = labels.argsort(stable=True)
        place = torch.empty_like(order)
        sizes = torch.bincount(labels)
        place[order] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
        index = (place % -(-len(labels) // count) == 0).nonzero().squeeze(1)
        part = self.part(index)
        if dtype is not self._dtype:
            part._dtype, part.identity = dtype, f"{self.identity} in {dtype}"
        return part, index

    def part(self, places: Tensor) -> Scorer:
        """A scorer of those images alone that are at ``places``, (n,) int64, among this one's."""
        part = copy.copy(self)
        part.index, part._counted = self.index[places], self._counted[:, places]
        part.images, part.labels = self.images[places.to(self.device)], self.labels[places.to(self.device)]
        return part

    def score(self, model: nn.Module) -> Scores:
        """Score ``model`` in evaluation mode, and in float32 unless this is a ``sample``; its own mode is restored."""
        return Scores.of(self.outcomes(model), self.names)

    def outcomes(self, model: nn.Module) -> Outcomes:
        """What ``model``, on this scorer's device, makes of each scoring image."""
        shape = self._counted.shape
        hit, restored = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
        reduced = self._dtype is torch.bfloat16
        with evaluating(model), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            correct = predict(model, self.images) == self.labels
            for row, (trigger, mapping) in enumerate(self.attacks):
                index = self._counted[row].nonzero().squeeze(1)
                labels = self.labels[index.to(self.device)]
                guesses = predict(model, self.images, trigger, index.to(self.device))
                hit[row, index.numpy()] = (guesses == mapping(labels)).cpu().numpy()
                restored[row, index.numpy()] = (guesses == labels).cpu().numpy()
        return Outcomes(correct.cpu().numpy(), self._counted.numpy(), hit, restored)

    def visibility(self) -> tuple[Visibility, ...]:
        """How visible each trigger is, on at most ``VISIBILITY_IMAGES`` of the images that its ASR counts."""
        figures = []
        with torch.inference_mode():
            for (trigger, _), counted in zip(self.attacks, self._counted, strict=True):
                index = counted.nonzero().squeeze(1)[:VISIBILITY_IMAGES].to(self.device)
                clean = self.images.index_select(0, index).float().div_(255)
                figures.append(visibility(clean, trigger(clean)))
        return tuple(figures)

    def error_gap(self, model: nn.Module, clean: LabelledImages, scores: Scores | None = None) -> Estimate | None:
        """|error on triggered clean-set images - error on triggered test images|, over non-target images.

        Tables 7 and 8 (Appendix A.2.3): "the absolute value of the test error subtracted by the training error after
        conducting the defense", under the original trigger; the training set of an unlearning is the clean set. An
        error is any label but the true one. The two sets are disjoint, so the interval is Newcombe's. None if some
        trigger has no image outside its target class in the clean set, or there is no trigger.

        Args:
            clean: the defender's images, uint8 or float in [0, 1], and labels.
            scores: the model's scores by this scorer, if they are known already.
        """
        if not self.attacks:
            return None
        shares, counts = [], []
        images, labels = clean.images.to(self.device), clean.labels.to(self.device)
        with evaluating(model):
            for trigger, mapping in self.attacks:
                index = mapping.is_poisonable(labels).nonzero().squeeze(1)
                if len(index) == 0:
                    return None
                wrong = predict(model, images, trigger, index) != labels[index]
                shares.append(float(wrong.float().mean()))
                counts.append(len(index))
        scores = self.score(model) if scores is None else scores
        first, second = float(np.mean(shares)), 1 - scores.ra
        interval = newcombe(first, float(np.mean(counts)), second, scores.triggered_count)
        return Estimate(abs(first - second), absolute(interval))


def der(before: Scores, after: Scores, seed: int = 0) -> Estimate:
    """Defense effectiveness rating, (max(0, drop of ASR) - max(0, drop of ACC) + 1) / 2, drops against ``before``.

    The interval is the percentile bootstrap's over scoring images, paired: an image is drawn with its outcomes
    before and after, clean and triggered. Images of equal outcomes are exchangeable, so the resamples are drawn
    from the multinomial distribution of the distinct outcomes: exact, and independent of the number of images.
    """
    old, new = before.outcomes, after.outcomes
    if old.counted.shape != new.counted.shape or not np.array_equal(old.counted, new.counted):
        raise ValueError("expected two scores of one scorer, found scores on different images")
    rows = np.vstack([old.correct[None], new.correct[None], old.counted, old.hit, new.hit])
    kinds, counts = np.unique(rows, axis=1, return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)
    value = float(_der(kinds, counts[None])[0])
    low, high = np.quantile(_der(kinds, draws), [0.025, 0.975])
    return Estimate(value, (min(value, float(low)), max(value, float(high))))


def _der(kinds: Flags, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """DER of each row of ``counts`` (R, K), how often each column of ``kinds`` occurs."""
    sums = counts @ kinds.T.astype(np.float64)
    correct, triggered = sums[:, :2] / counts.sum(axis=1, keepdims=True), sums[:, 2:]
    counted, old_hit, new_hit = np.split(triggered, 3, axis=1)
    asr_drop = ((old_hit - new_hit) / np.maximum(counted, 1)).mean(axis=1)
    acc_drop = correct[:, 0] - correct[:, 1]
    rating: npt.NDArray[np.float64] = (np.maximum(0, asr_drop) - np.maximum(0, acc_drop) + 1) / 2
    return rating


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every submodule's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def predict(model: nn.Module, images: Tensor, trigger: Trigger | None = None, index: Tensor | None = None) -> Tensor:
    """(n,) int64: the labels ``model`` gives, in batches; -1 where a logit is not finite.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1], on the model's device.
        trigger: put on each image first.
        index: (n,) int64, which of the images; all by default.
    """
    if index is None:
        index = torch.arange(len(images), device=images.device)
    guesses = [torch.empty(0, dtype=torch.int64, device=images.device)]
    for part in torch.split(index, _batch_size(images)):
        batch = images.index_select(0, part)
        batch = batch.float().div_(255) if batch.dtype == torch.uint8 else batch.float()
        batch = batch if trigger is None else trigger(batch)
        logits = model(batch.contiguous(memory_format=torch.channels_last))
        # A model that diverged would otherwise be given label 0, and a target of 0 a perfect ASR.
        guesses.append(torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1))
    return torch.cat(guesses)


def _batch_size(images: Tensor) -> int:
    """Bounds memory by pixels: 64 images of 32 x 32 on the CPU, where larger batches leave the cache; 1,024 else."""
    pixels = (64 if images.device.type == "cpu" else 1024) * 32 * 32
    return max(8, pixels // max(1, images.shape[2] * images.shape[3]))


def fingerprint(data: LabelledImages) -> str:
    """16 hexadecimal digits that tell two data sets apart: from the labels and about a thousand images."""
    sample = data.images[:: max(1, len(data.images) // 1000)].contiguous()
    total = hashlib.sha256(repr(tuple(data.images.shape)).encode())
    total.update(data.labels.numpy().tobytes())
    total.update(sample.numpy().tobytes())
    return total.hexdigest()[:16]


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, a later one of several alike with its number: two images may be called alike."""
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return tuple(f"{name} #{count + 1}" if count else name for name, count in zip(names, earlier, strict=True))


def _identity(test: LabelledImages, names: Sequence[str], counted: Tensor) -> str:
    """What an outcome depends on besides the model: the image, and the triggers with the classes they count."""
    parts = [str(SCORING_VERSION), fingerprint(test), *names]
    text = "|".join(parts).encode() + counted.numpy().tobytes()
    return hashlib.sha256(text).hexdigest()[:16]
