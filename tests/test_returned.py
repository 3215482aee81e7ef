"""What a defense may return, and what is made of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapters.protocols import DefenseResult
from bench.returned import checked

IMAGES = torch.rand(2, 3, 4, 4)


def _model(classes: int = 3, weight: float = 0.5) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    nn.init.constant_(model[1].weight, weight)
    return model


def test_a_sound_result_is_passed_on_as_it_is() -> None:
    result = DefenseResult(_model().train(), "timeout", "stopped", {"a": 1})
    assert checked(result, "mine", IMAGES, 3) is result
    assert result.model.training


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned NoneType; expected a DefenseResult"),
        (_model(), "returned Sequential; expected a DefenseResult"),
        (DefenseResult("model"), "a model of type str; expected a module"),  # type: ignore[arg-type]
        (DefenseResult(_model(), "fine"), "the status 'fine'; expected one of"),
        (DefenseResult(_model(), "failed"), "the status 'failed'; expected one of"),
        (DefenseResult(_model(), None), "the status None; expected one of"),  # type: ignore[arg-type]
        (DefenseResult(_model(2)), r"gives \(2, 2\); expected \(2, 3\)"),
        (DefenseResult(nn.Flatten(0)), r"gives \(96,\); expected \(2, 3\)"),
    ],
)
def test_garbage_is_named(result: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"'mine'.*{words}"):
        checked(result, "mine", IMAGES, 3)


@pytest.mark.parametrize("status", ["ok", "no_trigger_detected", "timeout"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_divergence(status: str, value: float) -> None:
    """Scored as if nothing were, such a model has an ASR of 0: a perfect defense."""
    found = checked(DefenseResult(_model(weight=value), status), "mine", IMAGES, 3)
    assert found.status == "diverged"
    assert found.reason == "NaN or infinite values in '1.weight' of what it returned"


def test_logits_that_are_not_finite_are_a_divergence_too() -> None:
    """Of weights that are: behind a variance below zero, for one."""
    model = nn.Sequential(nn.BatchNorm2d(3), _model())
    model[0].running_var.fill_(-1.0)
    found = checked(DefenseResult(model), "mine", IMAGES, 3)
    assert (found.status, found.reason) == ("diverged", "NaN or infinite logits of what it returned")
