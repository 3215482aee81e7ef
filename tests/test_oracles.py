"""Second opinions: foolbox's accuracy and projections against ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.protocols import ImageTensors, LabelledImages
from bench.scoring import Scorer
from bench.splits import split_test
from ibau_defense import L1Ball, L2Ball, LinfBall

foolbox = pytest.importorskip("foolbox", reason="foolbox is a test extra")


def test_acc_is_the_accuracy_foolbox_measures() -> None:
    from adapters.attacks import build, label_map

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    data = ImageTensors("noise", LabelledImages(images, labels), LabelledImages(images, labels), ("a", "b", "c"), 20)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)).eval()
    split = split_test(data, 0)
    scorer = Scorer(data, split, [(build("badnets", (3, 32, 32), 0), label_map(1, 3))], torch.device("cpu"))
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = foolbox.accuracy(wrapped, images[split.scoring_indices].float() / 255, labels[split.scoring_indices])
    assert scorer.score(model).acc == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("ball", "theirs"),
    [(L2Ball(0.7), "L2ProjectedGradientDescentAttack"), (LinfBall(0.05), "LinfProjectedGradientDescentAttack"),
     (L1Ball(2.0), "L1ProjectedGradientDescentAttack")],
)  # fmt: skip
def test_projection_is_foolboxs_or_nearer(ball: L2Ball, theirs: str) -> None:
    import eagerpy

    attack = getattr(foolbox.attacks, theirs)()
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(1, 3, 8, 8, generator=generator)
    zero = torch.zeros_like(delta)
    expected = attack.project(eagerpy.astensor(delta), eagerpy.astensor(zero), ball.radius).raw
    ours = ball.project(delta[0])
    assert float((delta[0] - ours).norm()) <= float((delta - expected).norm()) + 1e-5
    if not isinstance(ball, L1Ball):  # foolbox 3.3.4's ℓ1 projection is feasible but not the nearest point
        assert torch.allclose(ours, expected[0], atol=1e-5)
