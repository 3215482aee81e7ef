"""NAD: attention maps and their loss against numpy, the student's loss, the published preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapters.defenses import Nad, nad
from adapters.defenses.attention import attention_loss, attention_map
from adapters.defenses.augmentation import crop_flip_cutout
from adapters.defenses.nad import distillation
from adapters.defenses.tuning import frozen_copy
from adapters.protocols import DefenseContext, DefenseResult, LabelledImages

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


def numpy_attention(features: np.ndarray, power: float) -> np.ndarray:
    energy = (np.abs(features) ** power).sum(axis=1).reshape(len(features), -1)
    return energy / np.sqrt((energy**2).sum(axis=1, keepdims=True))


def away_from_zero(features: torch.Tensor) -> torch.Tensor:
    """The fourth power of what is next to zero falls under the least norm that a map is divided by."""
    return features + 0.1 * features.sign()


@given(SHAPES, st.sampled_from([1.0, 2.0, 4.0]), st.integers(0, 1000))
def test_the_loss_is_its_formula(shape: tuple[int, int, int, int], power: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (away_from_zero(torch.randn(shape, generator=generator)) for _ in range(2))
    mine, theirs = (numpy_attention(one.double().numpy(), power) for one in (student, teacher))
    np.testing.assert_allclose(attention_map(student, power).numpy(), mine, rtol=1e-4, atol=1e-6)
    expected = ((mine - theirs) ** 2).mean()
    assert float(attention_loss(student, teacher, power)) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(st.floats(0.1, 10))
def test_attention_is_where_not_how_much(scale: float) -> None:
    features = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(attention_loss(features * scale, features, 2.0)) < 1e-9
    assert attention_map(torch.zeros(1, 2, 3, 3), 2.0).isfinite().all()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 3)
    )


def test_the_students_loss_adds_up() -> None:
    teacher, student = network(), network()
    with torch.no_grad():
        teacher[0].weight.mul_(-2)
    images, labels = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    loss = distillation(frozen_copy(teacher), ["1", "3"], [10.0, 20.0], 2.0, "float32")(student, images, labels)
    expected = nn.functional.cross_entropy(student(images), labels)
    expected = expected + 10 * attention_loss(student[:2](images), teacher[:2](images), 2.0)
    expected = expected + 20 * attention_loss(student[:4](images), teacher[:4](images), 2.0)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(one.grad is None for one in teacher.parameters())


def test_rounds_show_the_teacher_and_then_the_student() -> None:
    data = LabelledImages(torch.rand(20, 3, 8, 8), torch.arange(20) % 3)
    seen = []
    context = DefenseContext(
        num_classes=3, device=torch.device("cpu"), seed=0,
        on_round=lambda model, info: seen.append((info["phase"], info.get("helper", False))),
    )  # fmt: skip
    result = Nad(teacher_epochs=2, epochs=3, batch_size=10).run(network().eval(), data, context)
    assert seen == [("teacher", True)] * 2 + [("student", False)] * 3
    assert result.details["layers"] == ["1", "2", "3"]
    assert result.details["betas"] == [500.0, 1000.0, 1000.0]


@pytest.mark.parametrize(
    ("changes", "deadline", "status", "reason"),
    [({}, 0.0, "timeout", "stopped in epoch 1 of 20"), ({"lr": 1e30}, None, "diverged", "the loss was not finite")],
)
def test_a_teacher_is_never_returned(
    changes: dict[str, float], deadline: float | None, status: str, reason: str
) -> None:
    data = LabelledImages(torch.rand(20, 3, 8, 8), torch.arange(20) % 3)
    context = DefenseContext(num_classes=3, device=torch.device("cpu"), seed=0, deadline=deadline)
    victim = network().train()
    result = Nad(batch_size=10, precision="float32", **changes).run(victim, data, context)
    assert (result.status, result.reason) == (status, reason)
    assert result.details["layers"] == ["1", "2", "3"]
    assert result.model is not victim
    assert not result.model.training
    for mine, theirs in zip(result.model.parameters(), victim.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(6, 12), st.integers(6, 12))
def test_every_augmented_image_is_a_shifted_mirrored_holed_one(seed: int, count: int, height: int, width: int) -> None:
    images = 0.1 + 0.9 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    out = crop_flip_cutout(images, torch.Generator().manual_seed(seed))
    assert torch.equal(images, before)
    for image, augmented in zip(images, out, strict=True):
        padded = nn.functional.pad(image, (4, 4, 4, 4))
        crops = [padded[:, i : i + height, j : j + width] for i in range(9) for j in range(9)]
        # All but the hole's pixels, four at most, are those of one of the crops or of its mirror image.
        wrong = [int((crop != augmented).any(dim=0).sum()) for one in crops for crop in (one, one.flip(2))]
        assert min(wrong) <= 4


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.linspace(0.1, 1, 32).expand(400, 3, 32, 32)
    out = crop_flip_cutout(images, torch.Generator().manual_seed(0))
    falling = (out[:, 0, 16, 10] > out[:, 0, 16, 20]).float().mean()
    assert 0.4 < float(falling) < 0.6


def test_the_rate_falls_after_the_first_epochs_and_training_is_as_set() -> None:
    tuning = Nad(lr=0.5, low_lr=0.05, high_lr_epochs=2, weight_decay=3e-4, momentum=0.7, batch_size=9)._tuning(5)
    assert [tuning.lr * tuning.schedule(epoch) for epoch in range(4)] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert (tuning.epochs, tuning.nesterov, tuning.weight_decay) == (5, True, 3e-4)
    assert (tuning.momentum, tuning.batch_size) == (0.7, 9)


def run(defense: Nad, model: nn.Module) -> DefenseResult:
    data = LabelledImages(torch.rand(20, 3, 8, 8), torch.arange(20) % 3)
    context = DefenseContext(num_classes=3, device=torch.device("cpu"), seed=0)
    return defense.run(model, data, context)


def test_the_student_learns_from_the_tuned_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(
        nad, "distillation", lambda teacher, *rest: seen.append(teacher) or distillation(teacher, *rest)
    )
    victim = network().eval()
    run(Nad(teacher_epochs=1, epochs=1, batch_size=10, precision="float32"), victim)
    assert not torch.equal(seen[0][0].weight, victim[0].weight)  # type: ignore[index]


def test_the_last_stages_have_the_last_weights() -> None:
    settings = {"teacher_epochs": 1, "epochs": 1, "batch_size": 10}
    assert run(Nad(betas=(1.0, 2.0), **settings), network().eval()).details == {"layers": ["2", "3"], "betas": [1, 2]}
    few = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)).eval()
    assert run(Nad(**settings), few).details == {"layers": ["0", "1"], "betas": [1000.0, 1000.0]}


def test_teacher_and_student_see_preprocessed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(nad, "crop_flip_cutout", lambda images, generator: seen.append(len(images)) or images)
    run(Nad(teacher_epochs=1, epochs=3, batch_size=10, preprocessing="published"), network().eval())
    assert seen == [10, 10] * 4
