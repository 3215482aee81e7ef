"""Networks: the published sizes, the small stems, and derivatives of every order the defenses take."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from adapters import models
from adapters.errors import UserError
from adapters.models.late_registration import when_imported

FAMILIES = ("simplified_vgg", "vgg11_bn", "resnet18", "densenet121", "googlenet")
"""The five networks of the paper's study."""


def build(name: str, num_classes: int = 5, image_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, num_classes, image_shape)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"), [("resnet18", 11_689_512), ("googlenet", 6_624_904), ("densenet121", 7_978_856)]
)
def test_parameter_counts_with_the_standard_stem(name: str, published: int) -> None:
    assert count(build(name, 1000, (3, 224, 224))) == published


def test_simplified_vgg_is_table_9() -> None:
    model = build("simplified_vgg", 43)
    kinds = [type(layer).__name__ for layer in model.features]
    block = ["Conv2d", "BatchNorm2d", "ELU"] * 2 + ["MaxPool2d", "Dropout"]
    assert kinds == block * 3
    assert [layer.p for layer in model.features if isinstance(layer, nn.Dropout)] == [0.3, 0.4, 0.4]
    assert [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)] == [
        32,
        32,
        64,
        64,
        128,
        128,
    ]
    assert model.classifier.weight.shape == (43, 2048)
    assert "features.20.running_var" in model.state_dict()


def test_preactresnet18_is_backdoorbenchs_by_size_and_names() -> None:
    model = build("preactresnet18", 10)
    assert count(model) == 11_171_146
    block = [f"{part}.{name}" for part in ("bn1", "bn2") for name in BATCH_NORM] + ["conv1.weight", "conv2.weight"]
    names = {"conv1.weight", "linear.weight", "linear.bias"}
    names |= {f"layer{stage}.{k}.{name}" for stage in (1, 2, 3, 4) for k in (0, 1) for name in block}
    names |= {f"layer{stage}.0.shortcut.0.weight" for stage in (2, 3, 4)}
    assert set(model.state_dict()) == names
    assert model.layer4(model.layer3(model.layer2(model.layer1(model.conv1(torch.rand(2, 3, 32, 32)))))).shape[2:] == (
        4,
        4,
    )
    assert build("preactresnet18", 4, (1, 64, 48))(torch.rand(2, 1, 64, 48)).shape == (2, 4)
    with pytest.raises(UserError, match="8 x 8"):
        build("preactresnet18", 4, (3, 6, 8))


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_a_block_normalises_before_it_convolves() -> None:
    """What He et al. (2016) call full pre-activation, written out; the identity passes the whole block by."""
    model = build("preactresnet18").eval()
    block, images = model.layer2[0], torch.rand(2, 64, 8, 8)
    for norm in (block.bn1, block.bn2):
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.running_mean)
    active = block.bn1(images).relu()
    expected = block.shortcut(active) + block.conv2(block.bn2(block.conv1(active)).relu())
    assert torch.allclose(block(images), expected)
    plain, maps = model.layer2[1], torch.rand(2, 128, 4, 4)
    nn.init.zeros_(plain.conv2.weight)
    assert torch.equal(plain(maps), maps)


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_a_network_may_stand_behind_a_normalisation(name: str) -> None:
    plain, behind = build(name).eval(), build(f"{name}?mean=0.5,0.25,0&std=0.5,2,1").eval()
    images = torch.rand(2, 3, 32, 32)
    moved = torch.stack([(images[:, 0] - 0.5) / 0.5, (images[:, 1] - 0.25) / 2, images[:, 2]], dim=1)
    assert torch.allclose(behind(images), plain(moved), atol=1e-5)
    assert count(behind) == count(plain)
    assert len(behind.state_dict()) == len(plain.state_dict())


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("mean=0.5,0.5,0.5", "expected NAME[?]mean="),
        ("mean=0.5,0.5,0.5&std=1,1,0", "std above 0"),
        ("mean=0.5,0.5,0.5&std=1,1,nan", "std above 0"),
        ("mean=125,123,114&std=58,57,57", r"expected mean and std of pixels in \[0, 1\], such as"),
        ("mean=-0.1,0.5,0.5&std=1,1,1", r"expected mean and std of pixels in \[0, 1\], such as"),
        ("mean=nan,0.5,0.5&std=1,1,1", "expected NAME[?]mean="),
        ("mean=a,b,c&std=1,1,1", "expected NAME[?]mean="),
        ("size=64", "expected NAME[?]mean="),
        ("", "expected NAME[?]mean="),
        ("mean=0.5&std=1,1,1", "mean has 1 numbers; expected 3, one a channel"),
    ],
)
def test_a_wrong_normalisation_is_one_line(query: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(f"resnet18?{query}")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 48), (4, 32, 32)])
def test_simplified_vgg_takes_any_multiple_of_8(shape: tuple[int, int, int]) -> None:
    assert build("simplified_vgg", 4, shape)(torch.rand(2, *shape)).shape == (2, 4)


def test_simplified_vgg_refuses_other_sizes() -> None:
    with pytest.raises(UserError, match="multiples of 8; found 30 x 32"):
        build("simplified_vgg", 4, (3, 30, 32))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet26d", "resnetv2_18", "densenet121", "convnext_atto", "regnety_002"]
)
def test_small_stem_keeps_small_images(name: str) -> None:
    """Without it 32 pixels would end as one; with it, as four (RegNet: two)."""
    features = build(name).eval().forward_features(torch.rand(2, 3, 32, 32))
    assert features.shape[-2:] == ((2, 2) if name.startswith("regnet") else (4, 4))


def test_googlenet_keeps_small_images() -> None:
    model, seen = build("googlenet").eval(), []
    model.inception5b.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-2:]))
    model(torch.rand(2, 3, 32, 32))
    assert seen == [(4, 4)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit_tiny_patch16_224", (3, 32, 32)),
        ("swin_tiny_patch4_window7_224", (3, 32, 32)),
        ("mobilenetv3_small_050", (3, 32, 32)),
        ("vgg11", (1, 28, 28)),
        ("resnet18", (1, 28, 28)),
        ("googlenet", (4, 40, 32)),
        ("resnet18.a1_in1k", (3, 64, 64)),
        ("crossvit_tiny_240", (3, 32, 32)),  # made for one size: the images are enlarged inside
    ],
)
def test_any_timm_name_takes_the_images(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, 7, shape)
    assert model.training
    assert model.eval()(torch.rand(2, *shape)).shape == (2, 7)


def test_images_that_no_network_takes() -> None:
    with pytest.raises(UserError, match=r"cell\.model: resnet10t does not take 3 x 0 x 32 images .*nor enlarged"):
        build("resnet10t", 3, (3, 0, 32))


def test_unknown_name_is_one_line_with_close_matches() -> None:
    told = r"'resnt18'; expected one of: preactresnet18, .*googlenet, .*resnet18"
    with pytest.raises(UserError, match=told) as caught:
        models.check_name("resnt18")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "timm/resnet18", ""])
def test_addresses_are_not_names(name: str) -> None:
    """timm would download from them."""
    with pytest.raises(UserError, match="unknown name"):
        models.check_name(name)


@pytest.mark.parametrize("name", [*FAMILIES, "preactresnet18?mean=0.5,0.5,0.5&std=1,1,1"])
def test_building_is_reproducible(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [*FAMILIES, "preactresnet18?mean=0.5,0.5,0.5&std=1,1,1"])
def test_nothing_works_in_place(name: str) -> None:
    """No activation changes the tensor that it is given."""
    model, seen = build(name).eval(), []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0], inputs[0].detach().clone()))

    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ELU):
            module.register_forward_pre_hook(keep)
    model(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(given, copy) for given, copy in seen)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_second_derivatives_agree(name: str) -> None:
    """What the hypergradient needs, two independent ways: double backward, and forward over reverse."""
    model = build(name).double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 3])
    delta = 0.01 * torch.randn(1, 3, 32, 32, dtype=torch.float64)
    direction = torch.randn_like(delta)
    parameters = dict(model.named_parameters())

    def loss(delta: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (images + delta,)), labels)

    def gradient(delta: Tensor) -> Tensor:
        value, pull = vjp(loss, delta)
        return pull(torch.ones_like(value))[0]

    _, forward_over_reverse = jvp(gradient, (delta,), (direction,))
    leaf = delta.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (double_backward,) = torch.autograd.grad((first * direction).sum(), leaf)
    scale = double_backward.abs().max()
    assert scale > 0
    assert (forward_over_reverse - double_backward).abs().max() <= 1e-8 * scale  # float64, and sums of 1e5 terms


def test_googlenet_becomes_timms_when_timm_is_imported_later() -> None:
    program = (
        "import sys, adapters.models\nassert 'timm' not in sys.modules\nimport timm\n"
        "assert timm.create_model('googlenet', num_classes=7).fc.out_features == 7"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("library_first", [False, True])
def test_registration_follows_the_import_of_a_library(
    library_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"made_up_library_{library_first}"
    (tmp_path / f"{name}.py").write_text("names = ['own']")
    (tmp_path / f"{name}_extra.py").write_text(f"import {name}\n{name}.names.append('registered')")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    if library_first:
        importlib.import_module(name)
    when_imported(name, f"{name}_extra")
    library = importlib.import_module(name)
    assert library.names == ["own", "registered"]
    assert library.__spec__.loader is library.__loader__
    assert sys.meta_path == finders


def test_importing_the_package_is_light() -> None:
    program = (
        "import sys, adapters.models, adapters.datasets, adapters.checkpoints\n"
        "models = adapters.models.build('simplified_vgg', 10, (3, 32, 32))\n"
        "assert not {'timm', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_googlenet_carries_torchvisions_names() -> None:
    from torchvision.models import googlenet

    theirs = googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=5)
    ours = build("googlenet", 5, (3, 224, 224))
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
