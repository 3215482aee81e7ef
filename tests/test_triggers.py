"""Triggers and label maps: properties every one of them has, and the files a user may bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from adapters.attacks import TRIGGERS, CleanLabel, build, check, digest, label_map
from adapters.attacks.blend import draw_picture
from adapters.attacks.wanet import WaNet
from adapters.errors import UserError
from adapters.protocols import Trigger

light = settings(max_examples=25)
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(4, 40), st.integers(4, 40))


def random_images(
    shape: tuple[int, int, int], count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def image_spec(folder: Path, mode: str, shape: tuple[int, int, int], seed: int = 0) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    np.save(folder / "image.npy", rng.integers(0, 256, shape).astype(np.uint8))
    spec: dict[str, object] = {
        "image": str(folder / "image.npy"),
        "mode": mode,
        "mask": None,
        "alpha": None,
        "digest": "",
    }
    if mode == "blend":
        spec["alpha"] = 0.3
    return spec


@pytest.mark.parametrize("name", [*TRIGGERS, "add", "replace", "blend-image"])
@light
@given(shape=shapes, count=st.integers(0, 3), seed=st.integers(0, 9), double=st.booleans())
def test_images_keep_shape_dtype_range(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    double: bool,
) -> None:
    if name in TRIGGERS:
        trigger = build(name, shape, seed)
    else:
        trigger = build(image_spec(tmp_path_factory.mktemp("t"), name.split("-")[0], shape), shape, seed)
    images = random_images(shape, count, seed, torch.float64 if double else torch.float32)
    before = images.clone()
    out = trigger(images)
    assert isinstance(trigger, Trigger)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert torch.equal(images, before), "the input must not be written to"
    assert ((out >= 0) & (out <= 1)).all()
    if count > 1:
        assert torch.equal(trigger(images[:1]), out[:1]), "an image's trigger depends on no other image"


@light
@given(shape=shapes)
def test_badnets_is_idempotent_and_touches_only_its_square(shape: tuple[int, int, int]) -> None:
    trigger, images = build("badnets", shape, 0), random_images(shape)
    once = trigger(images)
    assert torch.equal(trigger(once), once)
    changed = (once != images).any(dim=0).any(dim=0)
    side = [max(1, round(4 * length / 32)) for length in shape[1:]]
    assert changed.sum() == side[0] * side[1]
    assert (once[:, :, changed] == 1).all()


def test_badnets_square_of_the_authors() -> None:
    stamped = build("badnets", (3, 32, 32), 0)(torch.zeros(1, 3, 32, 32))
    expected = torch.zeros(1, 3, 32, 32)
    expected[:, :, 27:31, 27:31] = 1
    assert torch.equal(stamped, expected)


@light
@given(shape=shapes, seed=st.integers(0, 99))
def test_blend_is_the_formula_with_one_picture(shape: tuple[int, int, int], seed: int) -> None:
    images = random_images(shape)
    picture = build("blend", shape, 0)(torch.zeros(1, *shape)) / 0.2
    torch.testing.assert_close(build("blend", shape, seed)(images), 0.8 * images + 0.2 * picture)
    assert picture.std() > 0.3, "a flat picture could not be learned"


@light
@given(side=st.integers(2, 12), times=st.sampled_from([3, 5]))
def test_blend_shows_one_motif_at_every_size(side: int, times: int) -> None:
    """An odd multiple of a side has a pixel at each of its centres."""
    small = draw_picture((3, side, side))
    assert torch.equal(draw_picture((3, side, side * times))[..., times // 2 :: times], small)
    assert torch.equal(draw_picture((3, side * times, side))[:, times // 2 :: times], small)


@light
@given(shape=shapes, seed=st.integers(0, 99))
def test_sig_is_the_formula(shape: tuple[int, int, int], seed: int) -> None:
    images = random_images(shape, dtype=torch.float64)
    width = shape[2]
    wave = 20 / 255 * np.sin(2 * np.pi * np.arange(width) * min(6, max(1, width // 4)) / width)
    expected = np.clip(images.numpy() + wave, 0, 1)
    np.testing.assert_allclose(build("sig", shape, seed)(images).numpy(), expected, atol=1e-7)
    assert np.abs(wave).max() > 0.03


@light
@given(shape=shapes, seed=st.integers(0, 99))
def test_wanet_is_scipys_resampling(shape: tuple[int, int, int], seed: int) -> None:
    trigger, images = build("wanet", shape, seed), random_images(shape, dtype=torch.float64)
    assert isinstance(trigger, WaNet)
    height, width = shape[1:]
    across, down = trigger.grid.double().numpy().transpose(2, 0, 1)
    places = [(down + 1) / 2 * (height - 1), (across + 1) / 2 * (width - 1)]
    expected = [
        [ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in image] for image in images.numpy()
    ]
    out = trigger(images)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    still = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    moved = np.abs(np.stack(places) - still)
    assert moved.max() < 1.5, "a faint warp"
    assert moved.mean() > 0.05, "a warp all the same"
    torch.testing.assert_close(trigger(torch.full((1, *shape), 0.3)), torch.full((1, *shape), 0.3))


def test_image_modes_are_their_formulas(tmp_path: Path) -> None:
    shape = (3, 5, 7)
    images = random_images(shape)
    spec = image_spec(tmp_path, "add", shape)
    image = torch.from_numpy(np.load(str(spec["image"]))).float() / 255
    mask = (random_images(shape, 1, seed=5)[0, 0] > 0.5).float()
    np.save(tmp_path / "mask.npy", mask.numpy())
    torch.testing.assert_close(build(spec, shape, 0)(images), (images + image).clamp(0, 1))
    spec["mode"] = "replace"
    torch.testing.assert_close(build(spec, shape, 0)(images), image.expand_as(images))
    spec["mask"] = str(tmp_path / "mask.npy")
    torch.testing.assert_close(build(spec, shape, 0)(images), images * (1 - mask) + image * mask)
    spec.update(mode="blend", mask=None, alpha=0.25)
    torch.testing.assert_close(build(spec, shape, 0)(images), 0.75 * images + 0.25 * image)


def test_replace_without_mask_leaves_black_pixels(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[1, 2] = (0, 9, 0)
    Image.fromarray(image).save(tmp_path / "t.png")
    images = random_images((3, 4, 4))
    spec = {"image": str(tmp_path / "t.png"), "mode": "replace"}
    trigger = build(spec, (3, 4, 4), 0)
    out = trigger(images)
    torch.testing.assert_close(out[:, :, 1, 2], torch.tensor([0, 9 / 255, 0]).expand(3, 3))
    out[:, :, 1, 2] = images[:, :, 1, 2]
    assert torch.equal(out, images)
    assert torch.equal(trigger(trigger(images)), trigger(images))


@pytest.mark.parametrize("level", [1, 2])
def test_an_image_of_the_lowest_levels_is_as_faint_as_it_says(tmp_path: Path, level: int) -> None:
    Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)).save(tmp_path / "t.png")
    added = build({"image": str(tmp_path / "t.png"), "mode": "add"}, (3, 4, 4), 0)(torch.zeros(1, 3, 4, 4))
    torch.testing.assert_close(added, torch.full((1, 3, 4, 4), level / 255))


@pytest.mark.parametrize("layout", ["hw", "chw", "hwc", "1hwc", "1chw"])
@pytest.mark.parametrize("levels", [np.uint8, np.float32, np.bool_])
def test_mask_layouts(tmp_path: Path, layout: str, levels: type) -> None:
    shape = (3, 4, 6)
    flat = np.arange(24).reshape(4, 6) % 2
    mask = {
        "hw": flat,
        "chw": np.stack([flat] * 3),
        "hwc": np.stack([flat] * 3, axis=-1),
        "1hwc": np.stack([flat] * 3, axis=-1)[None],
        "1chw": np.stack([flat] * 3)[None],
    }[layout]
    np.save(tmp_path / "mask.npy", mask.astype(levels))
    np.save(tmp_path / "image.npy", np.ones(shape, dtype=np.float32))
    spec = {"image": str(tmp_path / "image.npy"), "mode": "replace", "mask": str(tmp_path / "mask.npy")}
    out = build(spec, shape, 0)(torch.zeros(1, *shape))
    assert torch.equal(out, torch.from_numpy(flat).float().expand(1, 3, 4, 6))


def test_png_and_npy_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "t.png")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "opaque.png")
    np.save(tmp_path / "t.npy", pixels)
    images = random_images((3, 6, 5))
    outs = [
        build({"image": str(tmp_path / name), "mode": "add"}, (3, 6, 5), 0)(images)
        for name in ("t.png", "opaque.png", "t.npy")
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def write_bad_files(folder: Path) -> None:
    (folder / "text.png").write_text("no image")
    (folder / "text.npy").write_text("no array")
    (folder / "empty.png").write_bytes(b"")
    np.save(folder / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "small.npy", np.zeros((3, 2, 2), dtype=np.uint8))
    np.save(folder / "nan.npy", np.full((3, 4, 4), np.nan, dtype=np.float32))
    np.save(folder / "bright.npy", np.full((3, 4, 4), 200.0, dtype=np.float32))
    np.save(folder / "good.npy", np.ones((3, 4, 4), dtype=np.float32))
    np.save(folder / "negative.npy", np.full((3, 4, 4), -0.5, dtype=np.float32))
    Image.fromarray(np.full((4, 4, 4), 9, dtype=np.uint8)).save(folder / "clear.png")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(folder / "deep.png")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"image": "missing.png", "mode": "add"}, r"cell.attack.image: cannot read '.*missing.png': No such file"),
        ({"image": "text.png", "mode": "add"}, r"cell.attack.image: cannot read '.*text.png' as a PNG"),
        ({"image": "text.npy", "mode": "add"}, r"cell.attack.image: cannot read '.*text.npy' as a PNG"),
        ({"image": "empty.png", "mode": "add"}, r"cannot read '.*empty.png'"),
        ({"image": "pickle.npy", "mode": "add"}, r"cannot read '.*pickle.npy'"),
        ({"image": "clear.png", "mode": "add"}, r"partly transparent"),
        ({"image": "deep.png", "mode": "add"}, r"its mode is I;16; expected 8-bit"),
        ({"image": "small.npy", "mode": "add"}, r"has shape \(3, 2, 2\); expected \(3, 4, 4\)"),
        ({"image": "nan.npy", "mode": "add"}, r"values from nan"),
        ({"image": "bright.npy", "mode": "add"}, r"values from 200 to 200; expected all of them in \[-1, 1\]"),
        ({"image": "negative.npy", "mode": "replace"}, r"values from -0.5 to -0.5; expected all of them in \[0, 1\]"),
        ({"image": "good.npy", "mode": "replace", "mask": "small.npy"}, r"cell.attack.mask: '.*small.npy' has shape"),
        ({"image": "good.npy", "mode": "replace", "mask": "gone.npy"}, r"cell.attack.mask: cannot read '.*gone.npy'"),
        (
            {"image": "good.npy", "mode": "stamp"},
            r"cell.attack.mode: found 'stamp'; expected one of: add, replace, blend",
        ),
        ({"image": "good.npy", "mode": "add", "mask": "good.npy"}, r"cell.attack.mask: not used by mode 'add'"),
        ({"image": "good.npy", "mode": "add", "alpha": 0.5}, r"cell.attack.alpha: not used by mode 'add'"),
        ({"image": "good.npy", "mode": "blend"}, r"cell.attack.alpha: found nothing"),
        ({"image": "", "mode": "add"}, r"cell.attack.image: found nothing"),
    ],
)
def test_bad_image_triggers(tmp_path: Path, spec: dict[str, object], message: str) -> None:
    write_bad_files(tmp_path)
    full = {key: str(tmp_path / value) if key in ("image", "mask") and value else value for key, value in spec.items()}
    with pytest.raises(UserError, match=message) as caught:
        build(full, (3, 4, 4), 0)
    assert "\n" not in str(caught.value)


def test_check_needs_no_data_set(tmp_path: Path) -> None:
    for name in TRIGGERS:
        check(name)
    with pytest.raises(UserError, match=r"cell.attack: unknown name 'badnet'; expected one of: .*badnets, blend"):
        check("badnet")
    with pytest.raises(UserError, match=r"cell.victim.trigger.image: cannot read"):
        check({"image": str(tmp_path / "no.png"), "mode": "add"}, "cell.victim.trigger")


def test_digest_is_of_content_and_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "c").write_bytes(b"1")
    a, b, c = (tmp_path / name for name in "abc")
    assert digest([a, b]) == digest([c, b]) != digest([b, a])
    assert digest([a]) != digest([a, None])
    with pytest.raises(UserError, match=r"cell.attack: cannot read"):
        digest([tmp_path / "d"])


@light
@given(num_classes=st.integers(1, 50), seed=st.integers(0, 99))
def test_label_maps_are_total(num_classes: int, seed: int) -> None:
    labels = torch.arange(num_classes)
    everyone = label_map("all_to_all", num_classes)
    assert torch.equal(everyone(labels).sort().values, labels)
    assert torch.equal(everyone(labels), torch.from_numpy(np.roll(labels.numpy(), -1)))
    target = seed % num_classes
    one = label_map(target, num_classes)
    assert (one(labels) == target).all()
    for mapping in (everyone, one):
        assert mapping(labels).dtype == torch.int64
        assert torch.equal(mapping.is_poisonable(labels), mapping(labels) != labels)
        assert mapping(labels[:0]).shape == (0,)


def test_a_clean_label_map_poisons_the_target_class_and_counts_the_others() -> None:
    labels, one = torch.arange(4), label_map(2, 4, clean_label=True)
    assert isinstance(one, CleanLabel)
    assert one.carriers(labels).tolist() == [False, False, True, False]
    assert torch.equal(one.is_poisonable(labels), ~one.carriers(labels))
    assert (one(labels) == 2).all()
    with pytest.raises(UserError, match=r"cell.target: found 'all_to_all'; expected a label, for clean_label"):
        label_map("all_to_all", 4, clean_label=True)


@pytest.mark.parametrize("target", [10, -1, 2.0, True, "all_to_one", None])
def test_target_out_of_range(target: object) -> None:
    with pytest.raises(UserError, match=r"cell.target: found .*; expected a label from 0 to 9"):
        label_map(target, 10)  # type: ignore[arg-type]
