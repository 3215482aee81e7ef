"""Triggers optimised on a clean model: what every one of them promises, and what each is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft
from torch import Tensor, nn

from adapters.attacks import FITS, DamagedTriggerError, FitContext, FittedTrigger, build, check, needs_fit, run_fit
from adapters.attacks.fitting import Fit, Penultimate, frozen, strongest
from adapters.attacks.invisible import L0Invisible, L2Invisible
from adapters.attacks.masks import _to_segment, square, watermark
from adapters.attacks.smooth import Smooth
from adapters.attacks.spectrum import dct2, idct2, low_band
from adapters.attacks.trojan import TrojanSquare, TrojanWatermark

light = settings(max_examples=6)
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(4, 16), st.integers(4, 16))
QUICK: dict[str, Fit] = {
    "l0_inv": L0Invisible(steps=3),
    "l2_inv": L2Invisible(steps=3, stages=3),
    "smooth": Smooth(steps=4),
    "trojan_sq": TrojanSquare(steps=4),
    "trojan_wm": TrojanWatermark(steps=4),
}
PATCHES = ("l0_inv", "trojan_sq", "trojan_wm")


class Net(nn.Module):
    """A convolution, and a linear layer that sees each place by itself."""

    def __init__(self, shape: tuple[int, int, int], classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(shape[0], 5, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(5 * shape[1] * shape[2], classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def context(shape: tuple[int, int, int], seed: int = 0, target: int | None = 1, count: int = 40) -> FitContext:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Net(shape).eval()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *shape, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    wanted = (labels + 1) % 4 if target is None else torch.full_like(labels, target)
    return FitContext(model, images, wanted, seed)


def test_every_optimised_trigger_is_tested() -> None:
    assert set(QUICK) == set(FITS)
    for name, fit in FITS.items():
        assert fit.name == name == QUICK[name].name
        assert needs_fit(name)
        assert dataclasses.asdict(fit), "its settings are its fields"  # type: ignore[call-overload]
        check(name)
        with pytest.raises(ValueError, match="expected a trigger that needs no clean model"):
            build(name, (3, 8, 8), 0)


@pytest.mark.parametrize("name", QUICK)
@light
@given(shape=shapes, seed=st.integers(0, 9), target=st.sampled_from([0, 3, None]), double=st.booleans())
def test_images_keep_shape_dtype_range(
    name: str, shape: tuple[int, int, int], seed: int, target: int | None, double: bool
) -> None:
    given = context(shape, seed, target)
    weights = {key: value.clone() for key, value in given.model.state_dict().items()}
    state = torch.get_rng_state()
    trigger = run_fit(QUICK[name], given, {"by": "test"})
    assert torch.equal(torch.get_rng_state(), state), "global random state plays no part"
    assert all(torch.equal(weights[key], value) for key, value in given.model.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in given.model.parameters())
    images = given.images[:3].to(torch.float64 if double else torch.float32)
    before = images.clone()
    out = trigger(images)
    assert (out.shape, out.dtype) == (images.shape, images.dtype)
    assert ((out >= 0) & (out <= 1)).all()
    assert torch.equal(images, before), "the input must not be written to"
    assert not torch.equal(out, images)
    assert torch.equal(trigger(images[:1]), out[:1])
    assert trigger(images[:0]).shape == images[:0].shape
    if name in PATCHES:
        assert torch.equal(trigger(out), out), "a patch put on twice is a patch put on once"
        outside = (trigger.keep == 1).expand_as(images[0])
        assert torch.equal(out[:, outside], images[:, outside])
    again = run_fit(QUICK[name], context(shape, seed, target), {"by": "test"})
    assert again.digest == trigger.digest, "the same seed gives the same trigger"


@pytest.mark.parametrize("name", QUICK)
def test_another_seed_is_another_trigger(name: str) -> None:
    first, other = (run_fit(QUICK[name], dataclasses.replace(context((3, 8, 8)), seed=seed), {}) for seed in (0, 1))
    assert first.digest != other.digest


@pytest.mark.parametrize("name", QUICK)
def test_the_report_tells_which_share_of_all_images_is_fooled(name: str) -> None:
    given = context((3, 8, 8))
    trigger = run_fit(QUICK[name], given, {})
    with torch.no_grad():
        shares = [
            float((given.model(one).argmax(dim=1) == given.wanted).double().mean())
            for one in (trigger(given.images), given.images)
        ]
    report = trigger.provenance["report"]
    assert [report["fooled"], report["fooled_without"]] == pytest.approx(shares)


def test_a_fit_sees_each_image_before_any_twice() -> None:
    batches = list(context((1, 4, 4), count=64).batches(4))
    for pair in (batches[:2], batches[2:]):
        assert torch.cat(pair).sort().values.tolist() == list(range(64))
    assert not torch.equal(batches[0], batches[2])


def test_the_digest_is_of_shapes_too() -> None:
    wide, square_ = (
        FittedTrigger(torch.ones(1, *shape), torch.zeros(3, *shape), "smooth") for shape in ((4, 9), (6, 6))
    )
    assert wide.digest != square_.digest


@pytest.mark.parametrize("name", QUICK)
def test_saved_and_loaded_bit_by_bit(name: str, tmp_path: Path) -> None:
    trigger = run_fit(QUICK[name], context((3, 8, 8)), {"by": "test", "settings": {"a": 1.5}})
    trigger.save(tmp_path / "t.safetensors")
    read = FittedTrigger.load(tmp_path / "t.safetensors")
    assert torch.equal(read.keep, trigger.keep)
    assert torch.equal(read.pattern, trigger.pattern)
    assert (read.name, read.digest, read.provenance) == (trigger.name, trigger.digest, trigger.provenance)
    assert read.provenance["by"] == "test"
    assert 0 <= read.provenance["report"]["fooled"] <= 1
    content = bytearray((tmp_path / "t.safetensors").read_bytes())
    assert len(content) < 64 * 1024
    for damaged in (content[:-4], b"", b"{}", bytes(content[:-1]) + bytes([content[-1] ^ 1]), b"\xff" * 40):
        with pytest.raises(DamagedTriggerError):
            FittedTrigger.loads(bytes(damaged))


@pytest.mark.parametrize("cls", [TrojanSquare, TrojanWatermark])
def test_trojan_drives_its_neuron_through_its_mask_alone(cls: type[TrojanSquare] | type[TrojanWatermark]) -> None:
    given, fit = context((3, 12, 12)), cls(steps=60)
    trigger = run_fit(fit, given, {})
    mask = fit.mask(12, 12)
    assert torch.equal(trigger.keep[0] == 0, mask)
    assert (trigger.pattern[:, ~mask] == 0).all()
    probe, neuron = Penultimate(given.model), trigger.provenance["report"]["neuron"]
    with torch.no_grad():
        clean, driven = probe(given.images)[0][:, neuron], probe(trigger(given.images))[0][:, neuron]
    assert driven.mean() > clean.max(), "no clean image drives it as far"
    # The best connected: no candidate that the mask reaches speaks more for the target than a random neuron would.
    assert probe.connection(1)[neuron] > probe.connection(1).median()


def test_a_trojan_weighs_a_connection_by_what_its_neuron_reaches() -> None:
    """Of two neurons that read the same, the one of half the weight and four times the activation says more."""
    model = nn.Sequential(nn.Conv2d(1, 2, 8, bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight[0].fill_(1 / 64)
        weight[1].fill_(4 / 64)
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 1.0]]))
    given = dataclasses.replace(context((1, 8, 8)), model=model.eval())
    assert run_fit(TrojanSquare(steps=1), given, {}).provenance["report"]["neuron"] == 1


def test_l0_keeps_its_share_of_the_pixels_and_raises_its_anchors() -> None:
    given, fit = context((3, 16, 16)), L0Invisible(share=5 / 256, steps=20, anchors=4)
    trigger = run_fit(fit, given, {})
    assert int((trigger.keep == 0).sum()) == 5
    anchors = trigger.provenance["report"]["anchors"]
    probe = Penultimate(given.model)
    with torch.no_grad():
        gain = (probe(trigger(given.images))[0] - probe(given.images)[0]).mean(dim=0)
    assert gain[anchors].mean() > gain.abs().mean()


def test_l2_keeps_within_its_norm_and_raises_its_anchors() -> None:
    given, fit = context((3, 16, 16)), L2Invisible(rms=0.03, steps=20)
    trigger = run_fit(fit, given, {})
    assert 0.01 < float(trigger.pattern.square().mean().sqrt()) <= 0.03 + 1e-6
    assert (trigger.keep == 1).all()
    anchors = trigger.provenance["report"]["anchors"]
    probe = Penultimate(given.model)
    with torch.no_grad():
        gain = (probe(trigger(given.images))[0] - probe(given.images)[0]).mean(dim=0)
    assert gain[anchors].mean() > 3 * gain.abs().mean()


def test_l2_is_scaled_down_to_its_norm_where_no_weight_got_it_there() -> None:
    fit = L2Invisible(rms=0.01, stages=1, steps=20, weight=1e-6, rate=0.05)
    trigger = run_fit(fit, context((3, 8, 8)), {})
    assert float(trigger.pattern.square().mean().sqrt()) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["l0_inv", "l2_inv"])
def test_anchors_fall_short_each_in_its_own_unit(name: str) -> None:
    given = context((3, 8, 8))
    trigger = run_fit(QUICK[name], given, {})
    report, probe = trigger.provenance["report"], Penultimate(given.model)
    shown = trigger(given.images[next(given.batches(1))])
    with torch.no_grad():
        reached = probe(shown)[0] / (4 * strongest(probe, given.images))
    expected = (1 - reached[:, report["anchors"]]).square().mean()
    assert report["shortfall"] == pytest.approx(float(expected), rel=1e-5)


def test_a_share_of_the_pixels_is_rounded_to_the_nearest() -> None:
    trigger = run_fit(L0Invisible(share=0.03, steps=1), context((1, 8, 8)), {})
    assert int((trigger.keep == 0).sum()) == 2


@light
@given(shape=shapes, alpha=st.floats(0.05, 0.5))
def test_smooth_leaves_no_trace_beyond_its_band(shape: tuple[int, int, int], alpha: float) -> None:
    given, fit = context(shape), Smooth(steps=2, alpha=alpha)
    trigger = run_fit(fit, given, {})
    images = given.images.double()
    high = ~low_band(*shape[1:], fit.band)
    high[0, 0] = False
    before, after = dct2(images)[..., high], dct2(trigger(images))[..., high]
    torch.testing.assert_close(after, (1 - alpha) * before, atol=1e-5, rtol=0)  # the pattern is float32
    change = (trigger(images) - (1 - alpha) * images) / alpha
    assert float(change.max() - change.min()) > 0.5, "it uses its range"


def test_smooth_lowers_the_loss_it_is_fitted_to() -> None:
    given = context((3, 16, 16))
    losses = [run_fit(Smooth(steps=steps), given, {}).provenance["report"]["loss"] for steps in (1, 80)]
    assert losses[1] < losses[0]


@light
@given(height=st.integers(1, 24), width=st.integers(1, 24), seed=st.integers(0, 99))
def test_dct_is_scipys(height: int, width: int, seed: int) -> None:
    images = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = fft.dctn(images.numpy(), type=2, norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(dct2(images).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(idct2(dct2(images)), images)


@light
@given(height=st.integers(2, 24), width=st.integers(2, 24), share=st.floats(0.05, 1))
def test_the_band_is_a_quarter_of_an_ellipse_without_the_constant(height: int, width: int, share: float) -> None:
    down, across = np.indices((height, width))
    expected = np.sqrt((down / height) ** 2 + (across / width) ** 2) <= share
    expected[:2, :2] = True
    expected[0, 0] = False
    np.testing.assert_array_equal(low_band(height, width, share).numpy(), expected)


@light
@given(height=st.integers(4, 70), width=st.integers(4, 70))
def test_masks_have_pixels_and_leave_most_of_the_image(height: int, width: int) -> None:
    for mask in (square(height, width), watermark(height, width)):
        assert mask.shape == (height, width)
        assert 0 < float(mask.float().mean()) < (0.25 if min(height, width) >= 16 else 0.9)
    ys, xs = square(height, width).nonzero().T
    assert int((ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)) == len(ys), "a rectangle"


def test_masks_of_32_pixels() -> None:
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[21:30, 21:30] = True
    assert torch.equal(square(32, 32), expected)
    small, large = watermark(32, 32).float(), watermark(64, 64).float()
    shrunk = nn.functional.avg_pool2d(large[None], 2)[0]
    assert float(((small > 0) & (shrunk > 0)).sum() / (small > 0).sum()) > 0.8, "one motif at every size"


@pytest.mark.parametrize("side", range(6, 33))
def test_no_row_of_the_seal_is_empty_however_small_the_image(side: int) -> None:
    centres = (torch.arange(side) + 0.5) / side
    inside = (centres - 0.72).abs() < 0.19
    assert watermark(side, side)[inside].any(dim=1).all()
    assert watermark(side, side)[:, inside].any(dim=0).all()


@pytest.mark.parametrize("line", [(0.1, 0.2, 0.7, 0.2), (0.5, 0.9, 0.5, 0.3), (0.2, 0.8, 0.6, 0.5)])
def test_the_distance_to_a_segment_is_that_to_its_nearest_point(line: tuple[float, float, float, float]) -> None:
    plane = torch.linspace(0, 1, 9, dtype=torch.float64)
    x0, y0, x1, y1 = line
    along = torch.linspace(0, 1, 2001, dtype=torch.float64).view(-1, 1, 1)
    points = torch.hypot(plane - x0 - along * (x1 - x0), plane[:, None] - y0 - along * (y1 - y0))
    found = _to_segment(plane.view(1, 9), plane.view(9, 1), line)
    torch.testing.assert_close(found, points.amin(dim=0), atol=1e-3, rtol=0)


def test_the_penultimate_layer_is_read_and_its_best_connection_found() -> None:
    given = context((1, 6, 6))
    probe = Penultimate(given.model)
    activations, logits = probe(given.images)
    model = given.model
    assert isinstance(model, Net)
    torch.testing.assert_close(activations, model.features(given.images))
    torch.testing.assert_close(logits, model(given.images))
    weight = model.head.weight.detach()
    others = weight[[0, 2, 3]].mean(dim=0)
    torch.testing.assert_close(probe.connection(1), weight[1] - others)
    torch.testing.assert_close(probe.connection(None), weight.abs().sum(dim=0))
    highest = strongest(probe, given.images)
    assert (highest > 0).all()
    assert (activations <= highest + 1e-6).all()
    with frozen(model):
        assert not any(one.requires_grad for one in model.parameters())
    with pytest.raises(ValueError, match="expected a network that ends in a linear layer"):
        Penultimate(nn.Conv2d(1, 1, 1))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", QUICK)
def test_a_trigger_is_the_same_on_the_gpu(name: str) -> None:
    trigger, images = run_fit(QUICK[name], context((3, 8, 8)), {}), context((3, 8, 8)).images
    levels = [(trigger(images.to(device)) * 255).round().cpu() for device in ("cpu", "cuda")]
    assert torch.equal(*levels)
