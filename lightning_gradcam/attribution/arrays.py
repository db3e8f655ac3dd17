"""Tensors and arrays alike: a record is measured and shown without torch, which takes seconds to load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "np.ndarray", "Tensor")


def namespace(values: np.ndarray | Tensor) -> Any:
    """The package that has the functions for an array: numpy, or torch for a tensor.

    What stands behind ``xp`` in a function is of both packages, by the names and meanings that they share.
    """
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch


def as_float(values: Array) -> Array:
    """The same values as float32."""
    xp = namespace(values)
    return xp.asarray(values, dtype=xp.float32)
