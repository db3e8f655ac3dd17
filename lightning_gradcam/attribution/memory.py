"""The tensors and arrays of doubles: copied where there is room, else shared with the originals."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_ROOM = 1 << 24  # bytes of tensors and arrays to copy; of what finds no more room only the small are
_SMALL = 1 << 16


class NoShapeError(ValueError):
    """A parameter or buffer gets its shape in the first forward only."""


class Memory:
    """Makes doubles of tensors and arrays, and brings them up to date.

    Attributes:
        parameters: The parameters, each with its double, which shares its memory and asks for no gradient.
        undoubled: Parameters that are shared themselves, since they are of a class of their own.
        shared_state: The tensors, other than parameters, that share their memory with a double.
        read_only: The arrays that are shared as read-only ones.
        is_complete: Whether all that was copied can be brought up to date.
    """

    def __init__(self, copied: Collection[Any], protects_arrays: bool) -> None:
        """Have nothing yet.

        Args:
            copied: Tensors and arrays whose memory must not be shared, however large they are.
            protects_arrays: Whether a shared array is read-only, so that a forward that writes to it fails.
        """
        self.parameters: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.undoubled: list[nn.Parameter] = []
        self.shared_state: list[Tensor] = []
        self.read_only: list[np.ndarray] = []
        self.is_complete: bool = True
        self._copied = set(map(id, copied))
        self._protects_arrays = protects_arrays
        self._room = _ROOM
        self._storages: dict[int, torch.UntypedStorage] = {}  # the copies, by the address of the original
        self._tensors: list[Tensor] = []  # those that are copied, and their copies
        self._copies: list[Tensor] = []
        self._cloned: list[
            tuple[torch.UntypedStorage, torch.UntypedStorage]
        ] = []  # of views, and these with the address
        self._views: list[tuple[Tensor, Tensor, int]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []

    def parameter(self, value: nn.Parameter) -> nn.Parameter:
        """A double of a parameter."""
        if id(value) not in self._copied:
            double = nn.Parameter(value, requires_grad=False)
            self.parameters.append((value, double))
            return double
        double = nn.Parameter(value.clone(), requires_grad=False)
        self._note(value, double)
        return double

    def tensor(self, value: Tensor) -> Tensor:
        """A double of a tensor that is no plain parameter; itself where it is of a class that cannot be copied.

        Raises:
            NoShapeError: If it is lazy.
        """
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_nested or value.is_meta:
            return self._special(value)
        storage = value.untyped_storage()
        size, address = storage.nbytes(), storage.data_ptr()
        if not self._has_room(value, size):
            self.shared_state.append(value)
            return value.detach()
        own = self._storages.get(address)
        if own is None:
            double = value.clone()
            whole = size == value.nbytes and double.stride() == value.stride()
            if whole or value.is_conj() or value.is_neg():
                if whole:
                    self._storages[address] = double.untyped_storage()
                self._note(value, double)
                return double
            own = self._storages[address] = storage.clone()
            self._cloned.append((storage, own))
        # It shares its memory with the copies of those with which the original shares its own.
        empty = torch.empty(0, dtype=value.dtype, device=value.device)
        double = empty.set_(own, value.storage_offset(), value.shape, value.stride())
        self._views.append((value, double, address))
        return double

    def _special(self, value: Tensor) -> Tensor:
        """A double of a tensor of another class or layout."""
        if is_lazy(value):
            raise NoShapeError
        if isinstance(value, nn.Parameter):
            self.undoubled.append(value)
            return value
        self.is_complete = False
        try:
            return value.clone()
        except (RuntimeError, NotImplementedError, TypeError):
            return value

    def _note(self, value: Tensor, double: Tensor) -> None:
        self._tensors.append(value)
        self._copies.append(double)

    def array(self, value: np.ndarray) -> np.ndarray:
        """A double of an array; itself where it is read-only."""
        if not value.flags.writeable:
            return value
        if type(value) not in (np.ndarray, np.memmap):
            self.is_complete = False
            return copy.deepcopy(value)
        if id(value) not in self._copied and (type(value) is np.memmap or not self._has_room(value, value.nbytes)):
            view = value.view()
            if self._protects_arrays:
                self.read_only.append(value)
                view.flags.writeable = False
            return view
        double = np.array(value, subok=False)
        self._arrays.append((value, double))
        return double

    def _has_room(self, value: Any, size: int) -> bool:
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits or size <= _SMALL or id(value) in self._copied

    def shared(self) -> dict[int, Tensor]:
        """The tensors that share their memory with a double, by the address of that memory."""
        tensors = [*self.shared_state, *(original for original, _ in self.parameters)]
        found = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
        return {address: tensor for address, tensor in found.items() if address}

    def versions(self) -> list[int]:
        """A number for each parameter that moves when it is written to, but by ``.data``."""
        try:
            return [original._version for original, _ in self.parameters]
        except RuntimeError:  # those made in inference mode have none
            return []

    def has_same_form(self) -> bool:
        """Whether each original is as it was but for its values, and each double is as it was made."""
        for original, double in self.parameters:
            if original.data_ptr() != double.data_ptr() or original.shape != double.shape:
                return False
            if original.stride() != double.stride() or double.requires_grad or double.grad is not None:
                return False
        for original, double in zip(self._tensors, self._copies, strict=True):
            if original.shape != double.shape or original.dtype != double.dtype or double.requires_grad:
                return False
        for original, double, address in self._views:
            if original.untyped_storage().data_ptr() != address or original.shape != double.shape:
                return False
            if original.stride() != double.stride() or original.storage_offset() != double.storage_offset():
                return False
        return all(one.shape == double.shape and double.flags.writeable for one, double in self._arrays)

    def update(self) -> None:
        """Bring the copies up to date."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._tensors)  # pyright: ignore[reportPrivateImportUsage]
        for storage, own in self._cloned:
            own.copy_(storage)
        for original, double in self._arrays:
            np.copyto(double, original)
