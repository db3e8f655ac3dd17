"""A stand-in for a model: it computes what the model computes, and a look at it leaves no trace in the model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradcam.attribution.doubles import Doubles, no_garbage_collection
from lightning_gradcam.attribution.isolation import random_state, seed_generator
from lightning_gradcam.attribution.memory import NoShapeError

_T = TypeVar("_T")
_CHEAP = 0.02  # of a look's time: for so much it is watched also when the first ones have found nothing
_SECONDS_OF_CALL, _SECONDS_OF_OPERATION = 4e-6, 2e-5  # what it takes to watch one


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
        before_look: Callable[[], object] | None = None,
        kept: bool = False,
    ) -> None:
        """Make none yet; the first look does.

        Args:
            model: The model.
            *others: Objects of which doubles are made as well.
            known: See :class:`~lightning_gradcam.attribution.doubles.Doubles`.
            before_look: Brings the doubles that are known up to date.
            kept: Whether it is for many looks. Then the first finds out what the forward writes to, which takes time;
                else a forward that writes to a parameter is warned of.
        """
        self._model = model
        self._others = others
        self._known = known
        self._before_look = before_look
        self._kept = kept
        self._copied: list[Any] = []
        self._doubles: Doubles | None = None
        self._watches = True

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
        if self._before_look is not None:
            self._before_look()
        # What was made in inference mode could take no part in a graph. What is thrown away is never looked through.
        with torch.inference_mode(False), nullcontext() if self._kept else no_garbage_collection():
            while True:
                doubles = self._current()
                try:
                    return self._watched(doubles, run)
                except _WrittenError as error:
                    self._copied.append(error.tensor)
                    self._doubles = None
                except ValueError as error:
                    if not doubles.memory.read_only or "read-only" not in str(error):
                        raise
                    self._copied.extend(doubles.memory.read_only)
                    self._doubles = None
                finally:
                    doubles.restart()
                    del doubles
                    if not self._kept:
                        self._doubles = None

    def _current(self) -> Doubles:
        """The doubles as the model is now."""
        try:
            if self._doubles is None or not self._doubles.refresh():
                roots, self._watches = (self._model, *self._others), True
                self._doubles = Doubles(roots, self._model, self._known, self._copied, self._kept)
        except NoShapeError as error:
            name = type(self._model).__name__
            raise ValueError(f"{name} has layers without a shape; run it once on a batch before") from error
        except Exception as error:
            name = type(self._model).__name__
            raise NoStandInError(f"no stand-in can be made for {name}: {type(error).__name__}: {error}") from error
        return self._doubles

    def _watched(self, doubles: Doubles, run: Callable[[Any], _T]) -> _T:
        watch, model = _Watch(doubles), doubles.of(self._model)
        writes = (self._kept and self._watches) or bool(doubles.memory.shared_state)
        for generator in doubles.generators:
            seed_generator(generator, 0)
        with ExitStack() as stack:
            stack.enter_context(random_state(seed=0))
            stack.enter_context(_eager())
            stack.enter_context(_rnns_without_cudnn(model))
            stack.enter_context(_frozen(doubles.undoubled_parameters))
            if doubles.have_own_eval:
                with watch:
                    model.train(False)
            stack.enter_context(watch.calls_of_originals() if self._watches else nullcontext())
            stack.enter_context(watch if writes else nullcontext())
            before, started = doubles.memory.versions(), perf_counter()
            try:
                result = run(model)
            finally:
                if watch.found is not None:  # whatever the forward has made of it
                    raise watch.found
            if self._watches and watch.calls:
                self._watches = watch.seconds < _CHEAP * (perf_counter() - started)
        if doubles.memory.versions() != before:
            self._watches = True
            warnings.warn(
                "the forward writes to the model's parameters, also in eval mode, so this look has changed them",
                stacklevel=3,
            )
        return result


class _Watch(TorchDispatchMode):
    """Stops a forward that calls an original, or is about to write to memory of the model.

    Attributes:
        calls: How many modules have been called.
        found: What is wrong, if something is.
    """

    supports_higher_order_operators = True

    def __init__(self, doubles: Doubles) -> None:
        super().__init__()
        self.calls = 0
        self.found: Exception | None = None
        self._operations = 0
        self._doubles = doubles
        self._shared: dict[int, Tensor] | None = None

    @property
    def seconds(self) -> float:
        """What it has taken, about."""
        return self.calls * _SECONDS_OF_CALL + self._operations * _SECONDS_OF_OPERATION

    @contextmanager
    def calls_of_originals(self) -> Iterator[None]:
        """Stop the call of an original."""
        handle = register_module_forward_pre_hook(self._check)
        try:
            yield
        finally:
            handle.remove()

    def _check(self, module: nn.Module, args: Any) -> None:
        self.calls += 1
        if id(module) in self._doubles.originals:
            self.found = NoStandInError(
                f"the forward calls a {type(module).__name__} of the model by a way that leads past its stand-in, such "
                "as a global variable or a class attribute, so a look would leave traces in the run; let the modules "
                "reach one another by their attributes"
            )
            raise self.found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations += 1
        kwargs = kwargs or {}
        for place, name in _written_arguments(func):
            value = args[place] if place < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if type(tensor) in (Tensor, nn.Parameter):
                    self._check_write(tensor)
        return func(*args, **kwargs)

    def _check_write(self, tensor: Tensor) -> None:
        if self._shared is None:
            self._shared = self._doubles.memory.shared()
        original = self._shared.get(tensor.untyped_storage().data_ptr())
        if original is not None:
            self.found = _WrittenError(original)
            raise self.found


@lru_cache(4096)
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operation writes to: place and name."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema is not None and schema.is_mutable else ()
    return tuple((i, one.name) for i, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write)


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
def _rnns_without_cudnn(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers run without cuDNN, whose backward passes refuse models in eval mode."""
    left: list[bool] = []

    def enter(module: nn.Module, args: Any) -> None:
        left.append(torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False  # `flags()` fails where the new precision settings are used

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        torch.backends.cudnn.enabled = left.pop()

    handles = []
    try:
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled. Without dynamo loaded nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
