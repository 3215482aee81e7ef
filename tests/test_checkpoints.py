"""Models from elsewhere: every layout that is known is read, and nothing in a file is ever run."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters import models
from adapters.checkpoints import load_into, load_state
from adapters.errors import UserError
from adapters.models.normalised import Normalised
from adapters.models.stems import Enlarged


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def backdoorbench(state: dict[str, Tensor]) -> dict[str, Any]:
    """The layout of attack_result.pt: names, paths and numpy arrays beside the weights."""
    return {
        "model_name": "preactresnet18",
        "num_classes": 2,
        "model": state,
        "data_path": Path("/data/cifar10"),
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": {
            "poison_indicator": np.array([0, 1, 1]),
            "attack": np.array(["badnet"], dtype=object),
            "ratio": np.float64(0.1),
        },
        "bd_test": None,
    }


LAYOUTS = {
    "authors": lambda state: {"net": state, "acc": 84.46, "epoch": 48},
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "backdoorbench": backdoorbench,
    "data_parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
    "compiled and parallel": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "parallel and compiled": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_read(layout: str, tmp_path: Path) -> None:
    source, target = tiny(), tiny()
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "model.pt")
    load_into(target, tmp_path / "model.pt")
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


@pytest.mark.parametrize("name", ["preactresnet18", "preactresnet18?mean=0.5,0.5,0.5&std=0.2,0.2,0.2"])
def test_backdoorbenchs_own_network_is_filled_behind_a_normalisation_or_not(name: str, tmp_path: Path) -> None:
    source = models.build("preactresnet18", 10, (3, 32, 32)).eval()
    torch.save(backdoorbench(source.state_dict()), tmp_path / "attack_result.pt")
    model = models.build(name, 10, (3, 32, 32)).eval()
    load_into(model, tmp_path / "attack_result.pt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(images), source((images - 0.5) / 0.2 if "?" in name else images), atol=1e-4)
    torch.save(model.state_dict(), tmp_path / "ours.pt")  # under the names of the whole
    again = models.build(name, 10, (3, 32, 32)).eval()
    load_into(again, tmp_path / "ours.pt")
    assert torch.equal(again(images), model(images))


def test_a_network_that_enlarges_its_images_is_filled_under_its_own_names(tmp_path: Path) -> None:
    source, model = tiny(), Enlarged(tiny(), (3, 3))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_into(model, tmp_path / "model.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_a_network_with_a_part_called_network_is_filled_behind_a_normalisation(tmp_path: Path) -> None:
    """As timm's volo has one."""

    def parts() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
        return nn.Sequential(OrderedDict(network=network, head=nn.Linear(3, 2)))

    source, model = parts(), Normalised(parts(), (0.5,) * 3, (0.2,) * 3)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_into(model, tmp_path / "model.pt")
    images = torch.rand(2, 3, 1, 1)
    torch.testing.assert_close(model(images), source((images - 0.5) / 0.2))


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = tiny().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_state(tmp_path / "model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_nothing_stays_allowed_after_reading(tmp_path: Path) -> None:
    torch.save({"net": tiny().state_dict()}, tmp_path / "model.pt")
    load_state(tmp_path / "model.pt")  # torch registers classes of its own on first use
    before = set(torch.serialization.get_safe_globals())  # torch gives a set as a list, in any order
    load_state(tmp_path / "model.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert not any(getattr(item, "__module__", "").startswith(("numpy", "pathlib")) for item in before)


class Payload:
    """Unpickling it writes a file: the proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.proof, "code ran"))


@pytest.mark.parametrize("saver", ["torch", "torch_legacy", "pickle"])
@pytest.mark.parametrize("inside", [False, True])
def test_malicious_pickle_is_refused_and_never_run(saver: str, inside: bool, tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "model.pth"
    payload = {"net": tiny().state_dict(), "extra": Payload(proof)} if inside else Payload(proof)
    if saver == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=saver == "torch")
    # A bare pickle is given up at its first modern instruction, before any name in it is looked at.
    expected = "cannot be read as a checkpoint" if saver == "pickle" else r"would call \S+, .* never run"
    with pytest.raises(UserError, match=expected) as caught:
        load_state(path)
    assert not proof.exists()
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    # The payload is live: free unpickling, on this file of our own, does run it.
    if saver == "pickle":
        pickle.loads(path.read_bytes())
        assert proof.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x02cbuiltins\n" + name.encode() + b"\nX\x03\x00\x00\x001/0\x85R.")
    with pytest.raises(UserError, match=r"^victim\.checkpoint: "):
        load_state(path)


def test_a_text_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("epochs: 3\n")
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint \(it is not in a format of torch\.save\)"):
        load_state(path)


def test_numpy_is_not_built_from_the_file(tmp_path: Path) -> None:
    """Its constructors would take bytes of the file's choosing for pointers; they are replaced, not allowed."""
    torch.save(np.zeros(3), tmp_path / "array.pt")
    with pytest.raises(UserError, match="found ") as caught:
        load_state(tmp_path / "array.pt")
    assert "ndarray" not in str(caught.value)


def test_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"state_dict\(\)"):
        load_state(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors", "empty.pth", "empty.safetensors"])
def test_garbage_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else bytes(range(256)) * 9)
    with pytest.raises(UserError, match=r"^victim\.checkpoint: ") as caught:
        load_state(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to unpickle freely is not passed on


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(junk=b"G", cut=0, suffix=".pth")  # a number cut short: struct.error
@given(junk=st.binary(max_size=200), cut=st.integers(0, 400), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_no_file_gets_past_as_another_error(junk: bytes, cut: int, suffix: str, tmp_path: Path) -> None:
    """Arbitrary bytes, alone and written into a sound checkpoint, raise ``UserError`` or load."""
    path = tmp_path / f"model{suffix}"
    torch.save({"weight": torch.zeros(2)}, path) if suffix == ".pth" else save_file({"weight": torch.zeros(2)}, path)
    sound = path.read_bytes()
    for content in (junk, sound[:cut] + junk + sound[cut + len(junk) :], sound[:cut]):
        path.write_bytes(content)
        try:
            load_state(path)
        except UserError as error:
            assert "victim.checkpoint" in str(error)  # noqa: PT017


@pytest.mark.parametrize("path", ["nothing.pth", "."])
def test_missing_file(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        load_state(tmp_path / path)


@pytest.mark.parametrize(
    "tree", [{}, [torch.zeros(2)], {"epoch": 3}, {"net": {"a": 1}}, torch.zeros(2), {1: torch.zeros(1)}]
)
def test_no_state_dict_inside(tree: object, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        load_state(tmp_path / "model.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["3.bias"][1] = value
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"NaN or infinite values in '3\.bias'"):
        load_state(tmp_path / "model.pt")


def test_other_shape_names_the_key_and_changes_nothing(tmp_path: Path) -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({**model.state_dict(), "0.weight": torch.ones(4, 3, 3, 3), "3.bias": torch.zeros(43)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"'3\.bias' has shape \(43,\); expected \(2,\)"):
        load_into(model, tmp_path / "m.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """A quantised file without its scales, say: cast, it would load in silence and be scored."""
    state = tiny().state_dict()
    torch.save({**state, "0.weight": state["0.weight"].to(dtype)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=rf"'0\.weight' is {str(dtype)[6:]}; expected a floating dtype"):
        load_into(tiny(), tmp_path / "m.pt")


def test_other_keys_are_counted_and_named(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"8 missing keys .*'0\.weight'.*1 unknown keys .*'fc\.weight'"):
        load_into(tiny(), tmp_path / "m.pt")


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in tiny().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "m.pt")
    load_into(tiny(), tmp_path / "m.pt")


@pytest.mark.realdata
def test_authors_checkpoints_load_unchanged(realdata: Path) -> None:
    files = sorted((realdata / "ibau_authors/checkpoints").glob("*.pth"))
    assert len(files) == 7
    for file in files:
        model = models.build("simplified_vgg", 43 if file.name.startswith("gtsrb") else 10, (3, 32, 32))
        load_into(model, file)
    with pytest.raises(UserError, match=r"classifier\.weight"):
        load_into(
            models.build("simplified_vgg", 10, (3, 32, 32)), realdata / "ibau_authors/checkpoints/gtsrb_badnets_8.pth"
        )


def test_message_survives_json(tmp_path: Path) -> None:
    """It becomes the ``reason`` of a record."""
    with pytest.raises(UserError) as caught:
        load_state(tmp_path / "nothing.pth")
    assert json.loads(json.dumps(str(caught.value))) == str(caught.value)
