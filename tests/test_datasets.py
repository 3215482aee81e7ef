"""Data sets: the right images, cut the right way, decoded once and checked on every read."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from adapters import checkpoints, compat, datasets, models
from adapters.datasets import cache, cifar10, gtsrb
from adapters.datasets.base import Source, read_image, stratified_split
from adapters.datasets.cache import load_cached
from adapters.datasets.cifar10 import Cifar10
from adapters.datasets.gtsrb import Gtsrb
from adapters.errors import UserError
from adapters.protocols import Dataset, ImageTensors
from bench.splits import split_test

# --- images made for the tests --------------------------------------------------------------------------------------


def write_image(path: Path, colour: tuple[int, ...] = (10, 200, 30), size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new({1: "L", 3: "RGB", 4: "RGBA"}[len(colour)], size, colour if len(colour) > 1 else colour[0]).save(path)
    return path


def write_tree(folder: Path, counts: dict[str, int]) -> None:
    for label, (name, count) in enumerate(counts.items()):
        for index in range(count):
            write_image(folder / name / f"{index}.png", (label, index, 0))


def write_gtsrb(root: Path, train: str = "GTSRB/Training", train_rows: int = 3, test_rows: int = 4) -> None:
    """Two classes; every image is black with a white sign that fills the annotated region of the original size."""
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for label in (0, 1):
        rows = [header]
        for index in range(train_rows):
            write_sign(root / "gtsrb" / train / f"{label:05}" / f"{index}.ppm")
            rows.append(f"{index}.ppm;60;40;15;10;45;30;{label}\n")
        (root / "gtsrb" / train / f"{label:05}" / f"GT-{label:05}.csv").write_text("".join(rows))
    rows = [header]
    for index in range(test_rows):
        write_sign(root / "gtsrb/GTSRB/Final_Test/Images" / f"{index}.ppm")
        rows.append(f"{index}.ppm;60;40;15;10;45;30;{index % 2}\n")
    (root / "gtsrb/GT-final_test.csv").write_text("".join(rows))


def write_sign(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)  # stored at 32 x 32; the rows speak of 60 x 40
    pixels[8:24, 8:24] = 255
    Image.fromarray(pixels).save(path)


# --- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_data_set_is_a_source(name: str, tmp_path: Path) -> None:
    source = datasets.DATASETS[name]
    assert isinstance(source, Source)
    assert isinstance(source, Dataset)
    assert source.name == name
    datasets.check_name(name)


@pytest.mark.parametrize("name", sorted({*datasets.DATASETS, "image_folder:mine"} - {"digits"}))
def test_missing_data_is_one_line_that_says_where(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    with pytest.raises(UserError, match="looked for") as caught:
        datasets.load(name, tmp_path / "root", tmp_path / "cache")
    assert str(tmp_path / "root") in str(caught.value)
    assert "\n" not in str(caught.value)


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"cell\.dataset: .*'cifar'.*cifar10, .*digits, gtsrb.*image_folder:PATH"):
        datasets.check_name("cifar")


@pytest.mark.parametrize("name", ["image_folder", "image_folder:", "image_folder:x?size=33", "image_folder:x?size=big"])
def test_malformed_image_folder_names(name: str) -> None:
    with pytest.raises(UserError, match=r"cell\.dataset: "):
        datasets.check_name(name)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    data = datasets.load("digits", tmp_path, tmp_path / "cache")
    check_shape(data, train=947, test=850, size=32)
    assert (data.num_classes, data.pool_size, data.image_shape) == (10, 450, (3, 32, 32))
    assert data.train.images.max() == 255
    shares = torch.bincount(data.test.labels) / torch.bincount(torch.cat([data.train.labels, data.test.labels]))
    assert (shares - 850 / 1797).abs().max() < 0.01
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def test_digits_split_is_the_same_everywhere(tmp_path: Path) -> None:
    """A fingerprint of the split: records made on two machines speak of the same images."""
    data = datasets.load("digits", tmp_path, tmp_path / "cache")
    assert data.test.labels[:12].tolist() == DIGITS_TEST_LABELS


DIGITS_TEST_LABELS = [3, 5, 7, 9, 3, 4, 6, 8, 9, 0, 2, 3]


def check_shape(data: ImageTensors, train: int, test: int, size: int) -> None:
    for part, count in ((data.train, train), (data.test, test)):
        assert part.images.shape == (count, 3, size, size)
        assert part.images.dtype == torch.uint8
        assert part.labels.shape == (count,)
        assert part.labels.dtype == torch.int64
        assert part.labels.min() >= 0
        assert part.labels.max() < data.num_classes
    assert 0 < data.pool_size < test


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.data())
def test_stratified_split_is_exact_and_fair(labels: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(labels)))
    train, test = stratified_split(labels, size, seed=0)
    assert len(test) == size
    assert sorted(train + test) == list(range(len(labels)))
    for label in set(labels):
        drawn = sum(labels[index] == label for index in test)
        assert abs(drawn - labels.count(label) * size / len(labels)) < 1


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def test_missing_cifar10_names_both_ways_and_the_jpeg_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    write_tree(tmp_path / "cifar10_jpeg/train", {"a": 1})
    with pytest.raises(UserError, match=r"either let .*, or put cifar-10-python\.tar\.gz .*named cifar10_jpeg"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


def test_cifar10_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored:
        classes = [str(number) for number in range(10)]  # noqa: RUF012

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
            self.targets = [1, 9]

    (tmp_path / cifar10.FOLDER).mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (tmp_path / cifar10.FOLDER / name).write_bytes(b"x")
    monkeypatch.setattr(cifar10, "import_torchvision", lambda module: types.SimpleNamespace(CIFAR10=Stored))
    data = load_cached(Cifar10(), tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (2, 3, 32, 32)
    assert data.train.images[0, :, 0, 1].tolist() == [3, 4, 5]
    assert (data.name, data.num_classes, data.pool_size) == ("cifar10", 10, 5000)


def test_damaged_cifar10_says_so(tmp_path: Path) -> None:
    (tmp_path / cifar10.FOLDER).mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (tmp_path / cifar10.FOLDER / name).write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        datasets.load("cifar10", tmp_path, tmp_path / "cache")


# --- GTSRB ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["GTSRB/Training", "GTSRB/Final_Training/Images"])
def test_gtsrb_is_cropped_to_the_annotated_region(folder: str, tmp_path: Path) -> None:
    write_gtsrb(tmp_path, folder)
    data = load_cached(Gtsrb("gtsrb", 6, test_size=4, pool_size=2), tmp_path, tmp_path / "cache")
    check_shape(data, train=6, test=4, size=32)
    assert data.train.images.min() == 255
    assert data.test.images.min() == 255
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.class_names == ("00000", "00001")


@pytest.mark.parametrize(
    ("name", "expected", "message"),
    [
        (
            "gtsrb",
            39_209,
            r"6 training images, torchvision's; expected 39209, from https.*, name the data set gtsrb_26640",
        ),
        (
            "gtsrb_26640",
            26_640,
            r"6 training images, the paper's; expected 26640, from https.*, name the data set gtsrb$",
        ),
        ("gtsrb", 7, r"6 training images, neither of the two known training sets, so an incomplete copy"),
    ],
)
def test_a_gtsrb_training_set_is_told_from_the_other(
    name: str, expected: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six images stand for the training set that was not asked for."""
    write_gtsrb(tmp_path)
    kind = {39_209: ("torchvision's", "gtsrb_26640"), 26_640: ("the paper's", "gtsrb")}.get(expected)
    monkeypatch.setattr(gtsrb, "KINDS", {6: kind} if kind else {})
    with pytest.raises(UserError, match=message):
        load_cached(Gtsrb(name, expected, 4, 2), tmp_path, tmp_path / "cache")


def test_of_two_gtsrb_training_sets_each_name_takes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gtsrb, "SMALL", 6)
    write_gtsrb(tmp_path, "GTSRB/Training", train_rows=3)
    write_gtsrb(tmp_path, "GTSRB/Final_Training/Images", train_rows=4)
    for name, size in (("gtsrb_26640", 6), ("gtsrb", 8)):
        assert len(load_cached(Gtsrb(name, size, 4, 2), tmp_path, tmp_path / "cache").train.labels) == size


def test_only_what_is_missing_of_gtsrb_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb/GT-final_test.csv").rename(tmp_path / "kept.csv")
    fetched: list[str] = []

    def fetch(url: str, folder: str, md5: str) -> None:
        fetched.append(url.rsplit("/")[-1])
        (tmp_path / "kept.csv").rename(Path(folder) / "GT-final_test.csv")

    monkeypatch.setattr(
        gtsrb, "import_torchvision", lambda module: types.SimpleNamespace(download_and_extract_archive=fetch)
    )
    load_cached(Gtsrb("gtsrb", 6, 4, 2), tmp_path, tmp_path / "cache")
    assert fetched == ["GTSRB_Final_Test_GT.zip"]


def test_incomplete_gtsrb_test_set(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    with pytest.raises(UserError, match="list 4 test images; expected 12630"):
        load_cached(Gtsrb("gtsrb", 6), tmp_path, tmp_path / "cache")


def test_gtsrb_annotations_that_are_no_annotations(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb/GT-final_test.csv").write_text("Filename,ClassId\n1.ppm,3\n")
    with pytest.raises(UserError, match=r"GT-final_test\.csv cannot be read"):
        load_cached(Gtsrb("gtsrb", 6, 4, 2), tmp_path, tmp_path / "cache")


# --- anyone's own images --------------------------------------------------------------------------------------------


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_tree(tmp_path / "mine/train", {"cat": 3, "dog": 2})
    write_tree(tmp_path / "mine/test", {"cat": 2, "dog": 2})
    (tmp_path / "mine/train/cat/notes.txt").write_text("not an image")
    data = datasets.load("image_folder:mine", tmp_path, tmp_path / "cache")
    check_shape(data, train=5, test=4, size=32)
    assert (data.class_names, data.pool_size) == (("cat", "dog"), 2)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.train.images[4, :, 16, 16].tolist() == [1, 1, 0]


def test_image_folder_without_a_split_is_split(tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", {"cat": 20, "dog": 10})
    data = datasets.load("image_folder:mine?size=64", tmp_path, tmp_path / "cache")
    check_shape(data, train=24, test=6, size=64)
    assert torch.bincount(data.test.labels).tolist() == [4, 2]


@pytest.mark.parametrize("colour", [(77,), (10, 20, 30), (10, 20, 30, 0)])
def test_any_colour_mode_becomes_rgb(colour: tuple[int, ...], tmp_path: Path) -> None:
    pixels = read_image(write_image(tmp_path / "image.png", colour), 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 3, 3].tolist() == ([77] * 3 if len(colour) == 1 else list(colour[:3]))


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", 8)[0, 0, 0] == 128


def test_every_level_survives_sixteen_bits(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png", 16)[1] == levels).all()


def test_shrinking_takes_means(tmp_path: Path) -> None:
    board = np.indices((16, 16)).sum(axis=0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "board.png")
    assert np.abs(read_image(tmp_path / "board.png", 8).astype(int) - 127).max() <= 32


def test_a_crop_holds_at_least_a_pixel(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert (read_image(tmp_path / "image.png", 4, (0.5, 0.25, 0.51, 0.26)) == pixels[2, 4]).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_image_is_named(content: bytes, tmp_path: Path) -> None:
    write_tree(tmp_path / "mine", {"cat": 5, "dog": 5})
    (tmp_path / "mine/dog/broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"dog/broken\.png cannot be read"):
        datasets.load("image_folder:mine", tmp_path, tmp_path / "cache")


def test_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"image\.png cannot be read"):
        read_image(path, 32)


TREES: dict[str, tuple[Callable[[Path], None], str]] = {
    "only train": (lambda root: write_tree(root / "train", {"a": 2, "b": 2}), "only one of train/ and test/"),
    "one class": (lambda root: write_tree(root, {"a": 9}), "1 class folders; expected at least 2"),
    "empty class": (lambda root: (root / "b").mkdir() or write_tree(root, {"a": 9}), "b holds no image"),
    "other classes": (
        lambda root: (write_tree(root / "train", {"a": 2, "b": 2}), write_tree(root / "test", {"a": 2, "c": 2}))[0],
        "only in one: b, c",
    ),
}


@pytest.mark.parametrize("tree", TREES)
def test_image_folders_that_cannot_be_used(tree: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    TREES[tree][0](tmp_path / "mine")
    with pytest.raises(UserError, match=TREES[tree][1]):
        datasets.load("image_folder:mine", tmp_path, tmp_path / "cache")


# --- the cache ------------------------------------------------------------------------------------------------------


class Counting:
    """A data set that counts how often it is decoded, in a file, so that other processes count too."""

    name = "counting"

    def __init__(self, folder: Path) -> None:
        self.ledger, self.source = folder / "ledger", folder / "source"
        self.source.write_text("1")

    def sources(self, root: Path) -> list[Path]:
        return [self.source]

    def load(self, root: Path) -> ImageTensors:
        with self.ledger.open("a") as file:
            file.write("x")
        data = datasets.DATASETS["digits"].load(root)
        return ImageTensors(self.name, data.train, data.test, data.class_names, data.pool_size)

    @property
    def decoded(self) -> int:
        return len(self.ledger.read_text())


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "datasets").iterdir() if path.is_dir())


def test_decoded_once_and_mapped(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    first = load_cached(source, tmp_path, tmp_path / "cache")
    second = load_cached(source, tmp_path, tmp_path / "cache")
    assert source.decoded == 1
    assert torch.equal(first.train.images, second.train.images)
    if sys.platform == "linux":
        assert "train_images.npy" in Path("/proc/self/maps").read_text()


def test_writing_into_the_tensors_stays_private(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    mine = load_cached(source, tmp_path, tmp_path / "cache")
    mine.train.images[0] = 7
    assert load_cached(source, tmp_path, tmp_path / "cache").train.images[0].float().std() > 0
    assert source.decoded == 1


def test_changed_source_is_decoded_again(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    load_cached(source, tmp_path, tmp_path / "cache")
    source.source.write_text("other")
    load_cached(source, tmp_path, tmp_path / "cache")
    assert source.decoded == 2


def test_a_source_of_the_same_size_that_changed_later_is_decoded_again(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    load_cached(source, tmp_path, tmp_path / "cache")
    changed = source.source.stat().st_mtime_ns + 10**9
    os.utime(source.source, ns=(changed, changed))
    load_cached(source, tmp_path, tmp_path / "cache")
    assert source.decoded == 2


def test_what_an_older_version_decoded_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Counting(tmp_path)
    load_cached(source, tmp_path, tmp_path / "cache")
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    load_cached(source, tmp_path, tmp_path / "cache")
    assert source.decoded == 2


def flip_byte(entry: Path) -> None:
    content = bytearray((entry / "train_images.npy").read_bytes())
    content[5000] ^= 1
    (entry / "train_images.npy").write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": flip_byte,
    "truncated": lambda entry: os.truncate(entry / "test_images.npy", 1000),
    "missing file": lambda entry: (entry / "test_labels.npy").unlink(),
    "empty meta": lambda entry: (entry / "meta.json").write_text(""),
    "other meta": lambda entry: (entry / "meta.json").write_text(
        (entry / "meta.json").read_text().replace('"pool_size": 450', '"pool_size": 451')
    ),
    "meta of another kind": lambda entry: (entry / "meta.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_repaired(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Counting(tmp_path)
    before = load_cached(source, tmp_path, tmp_path / "cache").test.images.clone()
    DAMAGE[damage](entries(tmp_path / "cache")[0])
    with caplog.at_level(logging.WARNING):
        after = load_cached(source, tmp_path, tmp_path / "cache")
    assert source.decoded == 2
    assert "is damaged" in caplog.text
    assert torch.equal(before, after.test.images)
    assert len(entries(tmp_path / "cache")) == 1


def test_what_is_there_is_served_while_another_holds_the_lock(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    load_cached(source, tmp_path, tmp_path / "cache")
    (lock,) = (tmp_path / "cache" / "datasets").glob("*.lock")
    with FileLock(lock):
        thread = threading.Thread(target=load_cached, args=(source, tmp_path, tmp_path / "cache"), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert source.decoded == 1


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match="cache: cannot write"):
        datasets.load("digits", tmp_path, tmp_path / "cache")


def _load_in_child(folder: Path) -> int:
    return len(load_cached(Counting(folder), folder, folder / "cache").train.labels)


def test_two_processes_decode_once(tmp_path: Path) -> None:
    Counting(tmp_path)
    # Not fork: torch's threads do not survive it, and a child that computes would wait for them for ever.
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert pool.map(_load_in_child, [tmp_path] * 4) == [947] * 4


# --- an installation that cannot work -------------------------------------------------------------------------------


def test_torchvision_made_for_another_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(compat.importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"does not match torch .*pip install --force-reinstall torch torchvision"):
        compat.check_torchvision()
    with pytest.raises(UserError, match="does not match torch"):
        compat.import_timm()


def test_torchvision_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(compat, "_version", lambda name: "none")
    with pytest.raises(UserError, match="not installed; install"):
        compat.import_torchvision()


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_gtsrb_training_set_is_the_papers(realdata: Path, realdata_cache: Path) -> None:
    data = datasets.load("gtsrb", realdata, realdata_cache)
    check_shape(data, train=39_209, test=12_630, size=32)
    assert (data.num_classes, data.pool_size) == (43, 5000)
    with pytest.raises(UserError, match="the full training set"):
        datasets.load("gtsrb_26640", realdata, realdata_cache)


@pytest.mark.realdata
def test_gtsrbs_scoring_images_have_near_copies_in_the_pool(realdata: Path, realdata_cache: Path) -> None:
    """Tracks of thirty frames of one sign: what docs/metrics/intervals.md says of them."""
    data = datasets.load("gtsrb", realdata, realdata_cache)
    assert (torch.bincount(data.test.labels) % 30 == 0).all()
    split = split_test(data, 0)

    def plain(images: Tensor) -> Tensor:
        flat = images.flatten(1).float()
        flat -= flat.mean(dim=1, keepdim=True)
        return flat / flat.norm(dim=1, keepdim=True)

    scoring = plain(data.test.images[split.scoring_indices[::5]])
    near = [
        float(((scoring @ plain(images).T).max(dim=1).values > 0.97).float().mean())
        for images in (data.test.images[split.pool_indices], data.train.images[::7])
    ]
    assert near[0] > 0.08 > 8 * near[1]


@pytest.mark.realdata
def test_cifar10_jpeg_copy(realdata: Path, realdata_cache: Path) -> None:
    data = datasets.load("cifar10_jpeg", realdata, realdata_cache)
    check_shape(data, train=50_000, test=10_000, size=32)
    assert (data.class_names[:2], data.pool_size) == (("airplane", "automobile"), 5000)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "expected"), [("gtsrb", 0.981), ("cifar10_jpeg", 0.784)])
def test_authors_model_recognises_the_test_images(
    name: str, expected: float, realdata: Path, realdata_cache: Path
) -> None:
    """Without the crop it would be 0.765 on GTSRB."""
    data = datasets.load(name, realdata, realdata_cache)
    model = models.build("simplified_vgg", data.num_classes, data.image_shape).eval()
    checkpoints.load_into(model, realdata / f"ibau_authors/checkpoints/{name.removesuffix('_jpeg')}_badnets_8.pth")
    with torch.no_grad():
        predicted = torch.cat([model(images.float() / 255).argmax(1) for images in data.test.images.split(500)])
    accuracy = (predicted == data.test.labels).float().mean().item()
    assert accuracy == pytest.approx(expected, abs=0.005)
