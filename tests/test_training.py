"""The training loop: it learns, it is a function of its seed, and it leaves the world as it found it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.cells import Training
from bench.training import (
    DEFAULT_TRAINING,
    TrainingDiverged,
    _Resident,
    autocast_dtype,
    default_training,
    seeded,
    train,
)

CPU = torch.device("cpu")


def tiny_model(seed: int = 0, classes: int = 2) -> nn.Sequential:
    with seeded(seed, CPU):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * 3 * 3, classes),
        )


def dark_and_bright(count: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, 8, 8), generator=generator)
    return (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_learns_a_separable_set(augment: str) -> None:
    images, labels = dark_and_bright()
    seen: list[tuple[int, int]] = []
    model = tiny_model()
    settings_ = Training(epochs=12, batch_size=16, peak_lr=0.02, augment=augment)  # type: ignore[arg-type]
    report = train(model, images, labels, settings_, CPU, 1, lambda done, of: seen.append((done, of)))
    assert not model.training
    with torch.no_grad():
        assert (model(images / 255).argmax(1) == labels).float().mean() > 0.95
    assert seen == [(k, 12) for k in range(1, 13)]
    assert report.final_loss < 0.3
    assert report.seconds > 0
    assert report.images_per_second == pytest.approx(90 * 12 / report.seconds)
    assert report.precision == str(autocast_dtype(CPU)).removeprefix("torch.")
    assert all(value.dtype == torch.float32 for name, value in model.state_dict().items() if "num_batches" not in name)


def test_is_a_function_of_its_seed_and_leaves_global_state() -> None:
    images, labels = dark_and_bright()
    state = torch.get_rng_state()
    results = []
    for seed in (4, 4, 5):
        model = tiny_model()
        train(model, images, labels, Training(epochs=2, batch_size=32, augment="crop_flip"), CPU, seed)
        results.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)  # the global state must not matter
        state = torch.get_rng_state()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_final_loss_is_the_mean_over_the_last_epoch() -> None:
    images, labels = dark_and_bright(48)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(model(images / 255), labels))
    report = train(model, images, labels, Training(epochs=2, batch_size=16, peak_lr=1e-9), CPU, 0)
    assert report.final_loss == pytest.approx(expected, rel=0.02)  # bfloat16 where the CPU has it


def test_speed_counts_examples_and_not_stored_images() -> None:
    images, _ = dark_and_bright(3)
    rows = torch.arange(30) % 3
    report = train(tiny_model(), images, rows % 2, Training(epochs=2, batch_size=10), CPU, 0, rows=rows)
    assert report.images_per_second == pytest.approx(30 * 2 / report.seconds)


def test_weight_decay_shrinks_what_no_gradient_moves() -> None:
    images, labels = dark_and_bright(32)
    norms = []
    for decay in (0.0, 1.0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        model.extra = nn.Parameter(torch.ones(4))
        model.register_forward_hook(lambda module, _, out: out + 0 * module.extra.sum())
        train(model, images, labels, Training(epochs=3, batch_size=16, weight_decay=decay), CPU, 0)
        norms.append(float(model.extra.detach().norm()))
    assert norms[1] < norms[0] == 2


@pytest.mark.parametrize(("count", "steps"), [(32, 2), (33, 2), (34, 3), (7, 1)])
def test_last_partial_batch(count: int, steps: int) -> None:
    """Used, but for a single image, of which BatchNorm has no statistics."""
    images, labels = dark_and_bright(count)
    model, passes = tiny_model(), []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    train(model, images, labels, Training(epochs=1, batch_size=16), CPU, 0)
    assert len(passes) == steps
    assert sum(passes) == (32 if count == 33 else count)


def test_single_image_is_used_without_batchnorm() -> None:
    images, labels = dark_and_bright(33)
    sizes: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    train(model, images, labels, Training(epochs=1, batch_size=16), CPU, 0)
    assert sizes == [16, 16, 1]
    with pytest.raises(ValueError, match="expected at least 2 training images, found 1"):
        train(tiny_model(), images[:1], labels[:1], Training(epochs=1), CPU, 0)


def test_divergence_has_a_name() -> None:
    images, labels = dark_and_bright()
    model = tiny_model()
    with torch.no_grad():
        model[-1].weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"loss is nan in epoch 1 of 3; a training.peak_lr below 0.003"):
        train(model, images, labels, Training(epochs=3), CPU, 0)


@settings(max_examples=20)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.integers(2, 9),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_augmented_image_is_a_window_of_its_padded_self(
    height: int, width: int, count: int, flip: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count)
    kind = "crop_flip" if flip else "crop"
    training = Training(epochs=1, batch_size=4, augment=kind)  # type: ignore[arg-type]
    data = _Resident(images, labels, labels, training, CPU, drop_single=False)
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    seen = []
    for batch, targets in data.epoch(generator):
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert batch.shape[1:] == (3, height, width)
        for image, label in zip((batch * 255).round().to(torch.uint8), targets.tolist(), strict=True):
            windows = [padded[label, :, y : y + height, x : x + width] for y in range(9) for x in range(9)]
            windows += [one.flip(2) for one in windows] if flip else []
            assert any(torch.equal(image, one) for one in windows)
            seen.append(label)
    assert sorted(seen) == list(range(count))


def test_every_window_is_drawn() -> None:
    count = 2000
    images, labels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    training = Training(epochs=1, batch_size=count, augment="crop")
    data = _Resident(images, labels, torch.arange(count), training, CPU, drop_single=False)
    windows = data._windows(torch.Generator().manual_seed(0))
    assert windows is not None
    drawn = {(int(down), int(across)) for down, across in zip(*windows, strict=True)}
    assert drawn == {(down, across) for down in range(9) for across in range(9)}


def test_plain_batches_are_the_images() -> None:
    images, _ = dark_and_bright(20)
    rows = torch.arange(20)
    data = _Resident(images, rows, rows, Training(epochs=1, batch_size=8), CPU, drop_single=True)
    for batch, targets in data.epoch(torch.Generator().manual_seed(0)):
        assert torch.equal(batch, images[targets].float() / 255)
        assert 0 <= batch.min() <= batch.max() <= 1


def test_an_image_that_several_examples_show_is_held_once() -> None:
    images, _ = dark_and_bright(3)
    rows, labels = torch.tensor([0, 1, 2, 0, 1]), torch.arange(5)
    data = _Resident(images, labels, rows, Training(epochs=1, batch_size=2), CPU, drop_single=False)
    assert len(data.pixels) == 3
    seen = list(data.epoch(torch.Generator().manual_seed(0)))
    for batch, targets in seen:
        assert torch.equal(batch, images[rows[targets]].float() / 255)
    assert sorted(torch.cat([targets for _, targets in seen]).tolist()) == [0, 1, 2, 3, 4]


def test_defaults_are_valid_settings() -> None:
    for dataset in (*DEFAULT_TRAINING, "image_folder:somewhere"):
        assert Training(**default_training(dataset)).epochs >= 1
    default_training("digits")["epochs"] = 0
    assert default_training("digits")["epochs"] > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_on_cuda_and_restores_its_generator() -> None:
    device = torch.device("cuda")
    images, labels = dark_and_bright()
    state = torch.cuda.get_rng_state(device)
    model = tiny_model()
    report = train(model, images, labels, Training(epochs=12, batch_size=16, peak_lr=0.02, augment="crop"), device, 1)
    assert report.final_loss < 0.3
    assert torch.equal(torch.cuda.get_rng_state(device), state)
