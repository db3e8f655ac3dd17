"""A stand-in for a model: it computes what the model computes, and a look at it leaves no trace in the model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradcam.attribution.doubles import Doubles, NoShapeError
from lightning_gradcam.attribution.isolation import random_state, seed_generator

_T = TypeVar("_T")


class NoStandInError(ValueError):
    """A model's forward reaches its parts by a way that a stand-in does not know."""


class _WrittenError(Exception):
    """A forward is about to write to a tensor that the stand-in shares with the model."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__("a forward writes to a tensor of the model")
        self.tensor = tensor


class StandIn:
    """A double of a model, in eval mode, that shares the memory of its parameters, and what it takes to run it.

    It is kept from one look to the next. At each it is compared with the model, and what has changed is taken over.
    """

    def __init__(
        self,
        model: nn.Module,
        *others: Any,
        known: Sequence[tuple[Any, Any]] = (),
        instead: Mapping[tuple[type, str], Callable[..., Any]] = {},
        kept: bool = False,
    ) -> None:
        """Make none yet; the first look does.

        Args:
            model: The model.
            *others: Objects of which doubles are made as well.
            known: See :class:`~lightning_gradcam.attribution.doubles.Doubles`.
            instead: See there.
            kept: Whether it is for many looks. Then the first finds out what the forward writes to, which takes time;
                else a forward that writes to a parameter is warned of.
        """
        self._model = model
        self._others = others
        self._known = known
        self._instead = instead
        self._kept = kept
        self._copied: list[Any] = []
        self._doubles: Doubles | None = None

    def of(self, value: Any) -> Any:
        """What stands for a part of the model, or for a function that refers to one, within a look."""
        assert self._doubles is not None
        return self._doubles.of(value)

    def look(self, run: Callable[[Any], _T]) -> _T:
        """Run something on the double.

        All random states begin at 0, those of generators that the model holds too, so that a forward that draws random
        numbers draws the same at each look; they are given back. Nothing runs compiled, since a compiled graph skips
        hooks.

        Args:
            run: Gets the model's double, with hooks, flags and buffers to do with as it likes.

        Returns:
            What ``run`` does.

        Raises:
            ValueError: If the model has lazy layers, whose first forward would give them a shape.
            NoStandInError: If the forward calls a part of the model itself, which it reaches by another way than
                attributes, containers, methods and closures.
        """
        with torch.inference_mode(False):  # what was made in inference mode could take no part in a graph
            while True:
                fresh = self._doubles is None or not self._doubles.refresh()
                doubles = self._make() if fresh else self._doubles
                assert doubles is not None
                try:
                    with self._around(doubles, fresh):
                        return run(doubles.of(self._model))
                except _WrittenError as error:
                    self._copied.append(error.tensor)
                except ValueError as error:
                    if not doubles.read_only or "read-only" not in str(error):
                        raise
                    self._copied.extend(doubles.read_only)
                self._doubles = None

    def _make(self) -> Doubles:
        roots, name = (self._model, *self._others), type(self._model).__name__
        try:
            self._doubles = Doubles(roots, self._model, self._known, self._instead, self._copied, self._kept)
        except NoShapeError as error:
            raise ValueError(f"{name} has layers without a shape; run it once on a batch before") from error
        except Exception as error:
            raise NoStandInError(f"no stand-in can be made for {name}: {type(error).__name__}: {error}") from error
        return self._doubles

    @contextmanager
    def _around(self, doubles: Doubles, fresh: bool) -> Iterator[None]:
        for generator in doubles.generators:
            seed_generator(generator, 0)
        with ExitStack() as stack:
            stack.enter_context(random_state(seed=0))
            stack.enter_context(_eager())
            stack.enter_context(_frozen(doubles.undoubled_parameters))
            if fresh:
                stack.enter_context(_guarding(doubles.originals))
                if not self._kept:
                    stack.enter_context(_watching([parameter for parameter, _ in doubles.parameters]))
            if doubles.shared_state or (fresh and self._kept):
                stack.enter_context(_Guard(doubles.shared()))
            yield


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters that have no double ask for no gradient."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _watching(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Warn where a parameter is written to."""
    before = [parameter._version for parameter in parameters]
    yield
    if before != [parameter._version for parameter in parameters]:
        warnings.warn(
            "the forward writes to the model's parameters, also in eval mode, so this call has changed them",
            stacklevel=2,
        )


@contextmanager
def _guarding(originals: Mapping[int, Any]) -> Iterator[None]:
    """Refuse the call of an original."""

    def check(module: nn.Module, args: Any) -> None:
        if id(module) in originals:
            raise NoStandInError(
                f"the forward calls a {type(module).__name__} of the model by a way that leads past its stand-in, such "
                "as a global variable, a class attribute or a weak proxy, so a look would leave traces in the run; let "
                "the modules reach one another by their attributes"
            )

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


class _Guard(TorchDispatchMode):
    """Raises before a tensor is written to whose memory belongs to the model."""

    supports_higher_order_operators = True

    def __init__(self, shared: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.shared = shared

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, name in _written_arguments(func):
            value = args[place] if place < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if type(tensor) in (Tensor, nn.Parameter):
                    original = self.shared.get(tensor.untyped_storage().data_ptr())
                    if original is not None:
                        raise _WrittenError(original)
        return func(*args, **kwargs)


@lru_cache(None)
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operation writes to: place and name."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema is not None and schema.is_mutable else ()
    return tuple((i, one.name) for i, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write)


def _eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled. Without dynamo loaded nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
