"""Where images come from: ``load`` by name, decoded once and cached."""

from adapters.datasets.base import Source
from adapters.datasets.catalog import DATASETS, check_name, load, resolve

__all__ = ["DATASETS", "Source", "check_name", "load", "resolve"]
