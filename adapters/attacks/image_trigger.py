"""Triggers read from image files: the user's own, and those that come with a poisoned model from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from adapters.errors import UserError

MODES = ("add", "replace", "blend")
Shape = tuple[int, int, int]


@dataclass(eq=False)
class ImageTrigger:
    """An image of the user's own.

    ``add``: clip(x + image); ``replace``: x (1 - mask) + image * mask; ``blend``: (1 - alpha) x + alpha * image.
    All three are ``clip(x * keep + pattern)``, which is what this holds: ``keep`` (1 or C, H, W) in [0, 1] and
    ``pattern`` (C, H, W), both float32.
    """

    keep: Tensor = field(repr=False)
    pattern: Tensor = field(repr=False)
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """``images``: (N, C, H, W) float in [0, 1]; returns the triggered images."""
        return (images * self.keep.to(images) + self.pattern.to(images)).clamp_(0.0, 1.0)


def load_image_trigger(spec: Mapping[str, Any], image_shape: Shape, key: str = "cell.attack") -> ImageTrigger:
    """The trigger of a sweep file's ``{image, mode, mask, alpha}``, for images of ``image_shape`` (C, H, W).

    Raises ``UserError`` (it names ``key`` and the path) for a file that cannot be read or has another shape.
    """
    check_image_trigger(spec, key)
    path, mask_path, alpha = Path(spec["image"]), spec.get("mask"), spec.get("alpha")
    image = _to_shape(_read(path, f"{key}.image"), image_shape, f"{key}.image", path)
    _check_range(image, -1.0 if spec["mode"] == "add" else 0.0, f"{key}.image", path)
    keep = torch.ones(1, *image_shape[1:])
    if spec["mode"] == "replace":
        if mask_path is None:
            mask = (image > 0).any(dim=0, keepdim=True).to(torch.float32)
        else:
            read = _read(Path(mask_path), f"{key}.mask", is_mask=True)
            mask = _to_shape(read, image_shape, f"{key}.mask", Path(mask_path))
            _check_range(mask, 0.0, f"{key}.mask", Path(mask_path))
        keep, image = 1 - mask, image * mask
    elif spec["mode"] == "blend":
        keep, image = keep * (1 - float(alpha or 0)), image * float(alpha or 0)
    return ImageTrigger(keep=keep, pattern=image, name=f"{spec['mode']}:{path.name}")


def check_image_trigger(spec: Mapping[str, Any], key: str = "cell.attack") -> None:
    """Raise ``UserError`` unless the keys fit the mode and every file named can be read as an image."""
    mode = spec.get("mode")
    if not spec.get("image"):
        raise UserError(f"{key}.image: found nothing; expected the path of a PNG or .npy file")
    if mode not in MODES:
        raise UserError(f"{key}.mode: found {mode!r}; expected one of: {', '.join(MODES)}")
    if spec.get("mask") is not None and mode != "replace":
        raise UserError(f"{key}.mask: not used by mode {mode!r}; expected it with mode 'replace' only")
    if spec.get("alpha") is not None and mode != "blend":
        raise UserError(f"{key}.alpha: not used by mode {mode!r}; expected it with mode 'blend' only")
    if spec.get("alpha") is None and mode == "blend":
        raise UserError(f"{key}.alpha: found nothing; expected the image's weight, e.g. 0.2")
    for part in ("image", "mask"):
        if spec.get(part) is not None:
            _read(Path(spec[part]), f"{key}.{part}")


def digest(paths: Iterable[Path | str | None], key: str = "cell.attack") -> str:
    """SHA-256 over the content of the files, in order; None (no mask) counts as such. Paths play no part."""
    total = hashlib.sha256()
    for path in paths:
        total.update(b"-" if path is None else hashlib.sha256(_bytes(Path(path), key)).digest())
    return total.hexdigest()


def _bytes(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: cannot read {str(path)!r}: {error.strerror or error}") from error


def _read(path: Path, key: str, *, is_mask: bool = False) -> npt.NDArray[np.float32]:
    """The file as float32: PNG (H, W) or (H, W, C) and uint8 arrays are divided by 255; other arrays as they are.

    A uint8 mask of zeros and ones is meant as such, not as almost black, and stays as it is.
    """
    _bytes(path, key)  # a missing or forbidden file has its own, plainer message
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_png(path)
    except (OSError, ValueError, EOFError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{key}: cannot read {str(path)!r} as a PNG or .npy image: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fuib":
        raise UserError(f"{key}: {str(path)!r} holds no array of real numbers")
    ones = is_mask and array.max(initial=0) <= 1
    scale = 255.0 if array.dtype == np.uint8 and not ones else 1.0
    return array.astype(np.float32) / np.float32(scale)


def _read_png(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path, formats=("PNG",)) as file:
        image: Image.Image = file
        if image.mode in ("RGBA", "LA"):
            if image.getchannel("A").getextrema()[0] != 255:
                raise ValueError("it is partly transparent; expected RGB or greyscale (use a mask for transparency)")
            image = image.convert("L" if image.mode == "LA" else "RGB")
        elif image.mode in ("P", "1"):
            image = image.convert("RGB" if image.mode == "P" else "L")
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"its mode is {image.mode}; expected 8-bit RGB or greyscale")
        return np.asarray(image, dtype=np.uint8)


def _to_shape(array: npt.NDArray[np.float32], image_shape: Shape, key: str, path: Path) -> Tensor:
    """``array`` as (C, H, W) or (1, H, W). Taken: these, (H, W), and channels last (H, W, C), each after leading ones.

    Images are not resized: another height or width is a mistake more often than a wish.
    """
    channels, height, width = image_shape
    found = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if array.shape == (height, width):
        return tensor.unsqueeze(0)
    if array.shape == (channels, height, width):
        return tensor
    if array.shape in ((height, width, channels), (height, width, 1)):
        return tensor.permute(2, 0, 1).contiguous()
    raise UserError(
        f"{key}: {str(path)!r} has shape {found}; expected {image_shape} (channels, height, width),"
        f" {(height, width, channels)} or {(height, width)}, the shape of the data set's images"
    )


def _check_range(values: Tensor, low: float, key: str, path: Path) -> None:
    if not bool(((values >= low) & (values <= 1.0)).all()):  # also false for NaN
        raise UserError(
            f"{key}: {str(path)!r} holds values from {values.min():g} to {values.max():g};"
            f" expected all of them in [{low:g}, 1] (or uint8 in [0, 255])"
        )
