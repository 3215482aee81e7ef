"""Small pictures inside a record's JSON: PNG as a data address, which the store writes to a file of its own."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

PREFIX = "data:image/png;base64,"


def png(image: Tensor) -> str:
    """``image``: (H, W), (1, H, W) or (3, H, W) float, cut to [0, 1]; other numbers of channels show the first."""
    array = image.detach().cpu().float().clamp(0, 1).mul(255).round().byte()
    if array.ndim == 3:
        array = array.permute(1, 2, 0) if array.shape[0] == 3 else array[0]
    file = io.BytesIO()
    Image.fromarray(array.numpy()).save(file, format="PNG", optimize=True)
    return PREFIX + base64.b64encode(file.getvalue()).decode("ascii")
