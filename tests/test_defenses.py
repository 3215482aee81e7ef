"""One contract for every registered defense."""

from __future__ import annotations

import ast
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters import defenses
from adapters.defenses import DEFENSES
from adapters.defenses.group_norm import replace_batch_norm
from adapters.errors import UserError
from adapters.protocols import (
    Defense,
    DefenseContext,
    LabelledImages,
    PassCounter,
    TrainingContext,
    TrainingData,
)  # fmt: skip
from ibau_defense import RECIPES

CLASSES = 4
QUICK: dict[str, dict[str, Any]] = {
    "neural_cleanse": {"steps": 8, "batches_per_step": 4, "unlearning_epochs": 2},
    "tabor": {"steps": 8, "batches_per_step": 4, "unlearning_epochs": 2},
    "deep_inspect": {"epochs": 3, "width": 4, "unlearning_epochs": 2},
    "nad": {"teacher_epochs": 2, "epochs": 2},
    "dp_sgd": {"epochs": 2, "batch_size": 40},
    "naive_uap": {"rounds": 2, "images_per_step": 20, "deepfool_steps": 3},
}
"""Settings that keep the suite short."""
FINDING = {
    "threshold": 1e-6,
    "unlearning_epochs": 2,
}
"""A threshold at which half of the classes are outliers: the tests see the unlearning too."""
VARIANTS: list[dict[str, Any]] = [
    *({"name": name, **QUICK.get(name, {})} for name in sorted(DEFENSES)),
    *({"name": name, **QUICK[name], **FINDING} for name in ("neural_cleanse", "tabor", "deep_inspect")),
    {"name": "nad", **QUICK["nad"], "preprocessing": "published"},
    {"name": "dp_sgd", **QUICK["dp_sgd"], "grad_sample": "ew"},
    *({"name": "ibau", "recipe": recipe} for recipe in sorted(RECIPES)),
    {"name": "ibau", "implicit": True, "solver": "minres", "solver_steps": 3, "curvature": "exact", "mixed": "exact"},
    {"name": "ibau", "recipe": "reference", "curvature": "gauss_newton", "positive": True},
    {"name": "ibau", "ball": "linf", "implicit": False},
    {"name": "ibau", "starts": False},
    {"name": "ibau", "windows": False, "harmful": 0, "sharp": False, "warmup": 1},
    {"name": "ibau", "far": True, "rounds": 2},
]


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(16, CLASSES),
    ).eval()  # fmt: skip


def clean(count: int = 200) -> LabelledImages:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    images = torch.rand(count, 3, 8, 8, generator=generator) * 0.5
    images[torch.arange(count), labels % 3] += 0.1 * (labels[:, None, None] + 1)
    return LabelledImages(images.clamp(0, 1), labels)


def context(defense: Defense, seed: int = 0, **changes: Any) -> DefenseContext:
    settings: dict[str, Any] = {"num_classes": CLASSES, "device": torch.device("cpu"), "seed": seed, "radius": 0.5}
    settings.update(changes)
    if not defense.needs_training_data:
        return DefenseContext(**settings)
    data = clean()
    training = TrainingData(data.images.mul(255).round().to(torch.uint8), data.labels, torch.arange(len(data.labels)))

    def untrained() -> nn.Module:
        model = tiny()
        if "passes" in settings:
            settings["passes"].attach(model)
        return model

    return TrainingContext(**settings, training_data=training, untrained=untrained)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(params=VARIANTS, ids=lambda spec: "-".join(str(value) for value in spec.values()))
def defense(request: pytest.FixtureRequest) -> Defense:
    return defenses.build(request.param)


def test_the_callers_model_and_the_global_state_are_untouched(defense: Defense) -> None:
    model, data = tiny().train(), clean()
    state, images = copy.deepcopy(model.state_dict()), data.images.clone()
    random = torch.random.get_rng_state()
    result = defense.run(model, data, context(defense))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(data.images, images)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert result.model is not model
    assert not result.model.training


def test_a_seed_decides_the_result(defense: Defense) -> None:
    first, again = (defense.run(tiny(), clean(), context(defense)).model for _ in range(2))
    assert torch.equal(weights(first), weights(again))


def test_what_comes_back_is_a_finite_classifier_of_the_same_kind(defense: Defense) -> None:
    result = defense.run(tiny(), clean(), context(defense))
    assert result.status in ("ok", "diverged", "no_trigger_detected")
    assert (result.reason is None) == (result.status == "ok")
    logits = result.model(clean(7).images)
    assert logits.shape == (7, CLASSES)
    assert logits.isfinite().all()
    expected = replace_batch_norm(tiny()) if defense.name == "dp_sgd" else tiny()
    assert result.model.state_dict().keys() == expected.state_dict().keys()


def test_passes_are_counted_by_the_harness(defense: Defense, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images through the network as the ledger has them, against those that its activation saw go by."""
    seen = 0
    forward = nn.ReLU.forward

    def relu(self: nn.ReLU, features: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(features)
        return forward(self, features)

    monkeypatch.setattr(nn.ReLU, "forward", relu)
    counter, model = PassCounter(), tiny()
    detach = counter.attach(model)
    defense.run(model, clean(), context(defense, passes=counter))
    detach()
    assert counter.forward == seen
    if defense.name == "none":
        assert counter.as_dict() == {"forward": 0, "backward": 0}
    else:
        assert counter.forward >= 200
        assert 0 < counter.backward <= counter.forward * 8


def test_a_deadline_in_the_past_stops_the_work(defense: Defense) -> None:
    if defense.name == "none":
        pytest.skip("nothing to stop")
    result = defense.run(tiny(), clean(), context(defense, deadline=0.0))
    assert result.status == "timeout"
    assert result.reason is not None


def test_time_that_runs_out_midway_ends_the_work_at_once(defense: Defense, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back is what there was: a finite classifier, and the rounds up to there."""
    enough, asked, rounds = 2, 0, []

    def out_of_time(self: DefenseContext) -> bool:
        nonlocal asked
        asked += 1
        return asked > enough

    monkeypatch.setattr(DefenseContext, "out_of_time", out_of_time)
    given = context(defense, on_round=lambda model, info: rounds.append(info["index"]))
    model = tiny()
    before = weights(model)
    result = defense.run(model, clean(), given)
    if asked <= enough:
        pytest.skip(f"done before it had asked for the time {enough + 1} times")
    assert result.status == "timeout"
    assert result.reason is not None
    assert asked <= enough + 3
    assert rounds == list(range(len(rounds)))
    assert torch.equal(weights(model), before)
    assert result.model(clean(7).images).isfinite().all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_defense_works_where_the_context_says(defense: Defense) -> None:
    device = torch.device("cuda")
    data = LabelledImages(*(tensor.to(device) for tensor in clean()))
    result = defense.run(tiny().to(device), data, context(defense, device=device))
    assert result.status in ("ok", "diverged", "no_trigger_detected")
    assert all(one.device.type == "cuda" for one in result.model.parameters())
    assert result.model(data.images[:7]).isfinite().all()


@pytest.mark.parametrize("path", sorted(Path(defenses.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_no_defense_moves_anything_to_a_device_of_its_own_choice(path: Path) -> None:
    """Tensors are drawn on the CPU, so that a seed means the same everywhere, and go where context or data are."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and (
            call.func.attr in ("cuda", "set_default_device")
            or (call.func.attr in ("to", "device") and any(_names_an_accelerator(given) for given in call.args))
            or any(word.arg == "device" and _names_an_accelerator(word.value) for word in call.keywords)
        )
    ]
    assert named == []


def _names_an_accelerator(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and str(node.value).split(":")[0] in ("cuda", "mps")


def test_rounds_are_reported_with_a_model_in_evaluation_mode(defense: Defense) -> None:
    seen: list[dict[str, Any]] = []

    def on_round(model: nn.Module, info: Any) -> None:
        assert not model.training
        seen.append(dict(info))

    defense.run(tiny(), clean(), context(defense, on_round=on_round))
    assert [row["index"] for row in seen] == list(range(len(seen)))
    assert bool(seen) == (defense.name != "none")


def test_the_settings_survive_a_round_trip(defense: Defense) -> None:
    again = defenses.build({"name": defense.name, **defense.model_dump(mode="json")})
    assert again == defense


def test_the_context_holds_nothing_of_the_attack() -> None:
    names = {field.name for field in dataclasses.fields(DefenseContext)}
    assert names == {"num_classes", "device", "seed", "radius", "deadline", "on_round", "passes", "micro_batch"}


def test_the_training_data_go_to_the_one_defense_that_trains_anew() -> None:
    assert [name for name, kind in DEFENSES.items() if kind.needs_training_data] == ["dp_sgd"]
    added = {field.name for field in dataclasses.fields(TrainingContext)} - {
        field.name for field in dataclasses.fields(DefenseContext)
    }
    assert added == {"training_data", "untrained"}
    with pytest.raises(TypeError, match="needs a TrainingContext"):
        defenses.build("dp_sgd").run(tiny(), clean(), context(defenses.build("none")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "unlearn",
            r"^cell\.defense: unknown name 'unlearn'; expected one of: deep_inspect, .*"
            r"fine_tuning, ibau, .*neural_cleanse, none, .*tabor$",
        ),
        (
            {"name": "ibau", "round": 2},
            r"^cell\.defense\.round: unknown setting of ibau; expected one of: recipe, rounds",
        ),
        ({"name": "none", "epochs": 2}, r"unknown setting of none; expected one of: none at all"),
        ({"name": "fine_tuning", "lr": True}, r"^cell\.defense\.lr: found True; input should be a valid number$"),
        (
            {"name": "fine_tuning", "epochs": "2"},
            r"^cell\.defense\.epochs: found '2'; input should be a valid integer$",
        ),
        ({"name": "ibau", "rounds": True}, r"^cell\.defense\.rounds: found True; input should be a valid integer$"),
        ({"name": "nad", "betas": "12"}, r"^cell\.defense\.betas: found '12'; input should be a valid tuple$"),
        (
            {"name": "ibau", "rounds": 0},
            r"^cell\.defense\.rounds: found 0; input should be greater than or equal to 1$",
        ),
        ({"name": "ibau", "recipe": "magic"}, r"recipe: found 'magic'; input should be 'paper'"),
        ({"rounds": 2}, r"cell\.defense\.name: found None"),
        ({"name": "ibau", "solver": "minres", "solver_step": 0.1}, r"minres has no step"),
        ({"name": "ibau", "recipe": "reference", "positive": True}, r"positive: found true with curvature exact"),
        ({"name": "ibau", "recipe": "danskin", "solver": "minres"}, r"solver: found minres.*danskin has no implicit"),
        ({"name": "ibau", "implicit": False, "damping": 0.1}, r"damping: found 0.1; expected none"),
        ({"name": "ibau", "recipe": "reference", "starts": True}, r"starts: found true; .* reference has one ascent"),
        (
            {"name": "ibau", "recipe": "danskin", "harmful": 2.0},
            r"harmful: found 2.0; expected none, the ascent has one",
        ),
        ({"name": "ibau", "starts": False, "windows": True}, r"windows: found True; expected none"),
        ({"name": "ibau", "recipe": "paper", "far": True}, r"far: found True; expected none, the ascent has one"),
        ({"name": "ibau", "starts": False, "far": True}, r"far: found True; expected none, the ascent has one"),
        ({"name": "ibau", "ascent_steps": 5}, r"ascent_steps: found 5; expected none, the ascent from many starts"),
        ({"name": "ibau", "ascent_lr": 0.1}, r"ascent_lr: found 0\.1; expected none, the ascent from many starts"),
        ({"name": "ibau", "ascent_optimizer": "sgd"}, r"ascent_optimizer: found sgd; expected none, the ascent from"),
        ({"name": "ibau", "penalty": 0.1}, r"penalty: found 0\.1; expected none, neither the ascent from many starts"),
        ({"name": "ibau", "implicit": True, "penalty": 0.1}, r"penalty: found 0\.1; expected none"),
        (
            {"name": "ibau", "implicit": True, "solver": "minres", "curvature": "gauss_newton", "penalty": 0.1},
            r"penalty: found 0\.1; expected none",
        ),
        ({"name": "ibau", "far": True, "harmful": 2}, r"harmful: found 2\.0; expected none, with far: true there"),
        *(
            ({"name": "ibau", "implicit": True, name: value}, rf"{name}: found {value}; expected none, the solver")
            for name, value in (("solver_steps", 3), ("damping", 0.5), ("curvature", "exact"), ("positive", True))
        ),
        (
            {"name": "ibau", "recipe": "paper", "solver": "first_term", "curvature": "gauss_newton", "positive": True},
            r"curvature: found gauss_newton; expected none, the solver first_term forms no product",
        ),
        (
            {"name": "ibau", "implicit": True, "boundary": True},
            r"boundary: found true; expected false or none, a bank of starts",
        ),
        ({"name": "ibau", "harmful": -1}, r"harmful: found -1; input should be greater than or equal to 0"),
        (
            {"name": "neural_cleanse", "epochs": 3},
            r"epochs: unknown setting of neural_cleanse; expected one of: thr",
        ),
        ({"name": "tabor", "blocking": -1}, r"^cell\.defense\.blocking: found -1; input should be greater"),
        ({"name": "deep_inspect", "noise": 0}, r"^cell\.defense\.noise: found 0; "),
        (
            {"name": "fine_pruning", "max_accuracy_drop": 20},
            r"max_accuracy_drop: found 20; input should be less than",
        ),
        ({"name": "nad", "preprocessing": "flip"}, r"preprocessing: found 'flip'; input should be 'none' or 'publish"),
        ({"name": "nad", "layers": ["layer4"]}, r"^cell\.defense\.layers: found 1; expected 3, one for each of betas$"),
        ({"name": "nad", "betas": []}, r"^cell\.defense\.betas: found none; expected a weight for each stage$"),
        ({"name": "dp_sgd", "noise_multiplier": 0}, r"noise_multiplier: found 0; input should be greater than 0$"),
        ({"name": "dp_sgd", "grad_sample": "vmap"}, r"grad_sample: found 'vmap'; input should be 'auto', 'hooks'"),
        ({"name": "naive_uap", "candidates": 1}, r"candidates: found 1; input should be greater than or equal to 2$"),
    ],
)
def test_wrong_settings_are_one_line(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        defenses.build(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"starts": False, "ascent_steps": 5, "ascent_lr": 0.1, "ascent_optimizer": "sgd", "penalty": 0.1},
        {"implicit": True, "solver": "minres", "solver_steps": 3, "damping": 0.5, "penalty": 0.1},
        {"starts": False, "implicit": True, "boundary": True, "solver_step": 0.5},
        {"recipe": "reference", "solver": "first_term", "solver_step": 0.5, "mixed": "directional", "penalty": 0.1},
        {"harmful": 2.0, "windows": False},
    ],
)
def test_settings_that_change_something_are_taken(spec: dict[str, Any]) -> None:
    defenses.build({"name": "ibau", **spec})
