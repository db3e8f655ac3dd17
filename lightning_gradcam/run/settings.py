"""What the user said: checked once, brought to one form, and never changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from lightning_gradcam.attribution.batch import Batch, check_name
from lightning_gradcam.attribution.layers import Layer
from lightning_gradcam.attribution.layout import Layout
from lightning_gradcam.attribution.methods import METHODS, SIGNED_METHODS, Method
from lightning_gradcam.attribution.sequences import as_list
from lightning_gradcam.attribution.targets import Target
from lightning_gradcam.picture.display import Display
from lightning_gradcam.run.samples import Samples


@dataclass(frozen=True)
class Drift:
    """What drift is measured against.

    Attributes:
        reference: ``"first"``: each sample's first map with a positive cell after a trained epoch; or the number of
            the epoch, counted from 0, whose maps serve. The untrained model is never the reference: everything is far
            from it.
        reference_run: The folder of another run's record, or of the run. Its last maps are the last column of the
            filmstrip, and ``difference_from_<its name>`` is logged: one less how far the maps agree with these, in
            [0, 1]. It must have looked at the same samples.
        noise_floor: Measure at every observation how far the maps move when the images are shifted by one pixel. It
            costs a second capture.
        alert_above: Warn when the median drift exceeds this and the noise floor, after two observations in a row in
            which it did not; in (0, 1). ``None``: never.

    Raises:
        ValueError: If a value is not as above.
    """

    reference: Literal["first"] | int = "first"
    reference_run: str | Path | None = None
    noise_floor: bool = True
    alert_above: float | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.reference, int) and not isinstance(self.reference, bool)
        if self.reference != "first" and (not whole or self.reference < 0):
            raise ValueError(f'`reference` must be "first" or an epoch of at least 0, got {self.reference!r}')
        if self.reference_run is not None and not isinstance(self.reference_run, (str, Path)):
            raise ValueError(f"`reference_run` must be a folder, got {self.reference_run!r}")
        number = isinstance(self.alert_above, (int, float))
        if self.alert_above is not None and not (number and 0 < self.alert_above < 1):
            raise ValueError(f"`alert_above` must lie between 0 and 1, got {self.alert_above!r}")


@dataclass(frozen=True)
class Localization:
    """Which region holds each sample's object, and of which samples it is scored how well maps find it.

    Attributes:
        region: Its name in the batch.
        samples: ``"pictured"``: those that are drawn; ``"all"``. It takes some 50 ms a sample of 224 pixels.

    Raises:
        ValueError: If ``samples`` is neither.
        TypeError: If the region is no name.
    """

    region: str
    samples: Literal["pictured", "all"] = "pictured"

    def __post_init__(self) -> None:
        if not isinstance(self.region, str):
            raise TypeError(f"`localization` must be the name of a region, got {type(self.region).__name__}")
        if self.samples not in ("pictured", "all"):
            raise ValueError(f'`Localization(samples=...)` must be "pictured" or "all", got {self.samples!r}')


@dataclass(frozen=True)
class Settings:
    """The arguments of :class:`~lightning_gradcam.GradCAMCallback`, which explains them, each in one form.

    Attributes:
        guided: Every so many observations; 0: never.
        target_name: What is asked for, in words that are the same in another process.
        question: The same, and by which method.

    Raises:
        ValueError: If an argument can never work.
        TypeError: If an argument is of another type.
    """

    target_layer: tuple[Layer, ...]
    samples: Samples
    pictures: int | list[int]
    target: Target
    method: Method
    every_n_epochs: int
    batch_fn: Callable[[Any], Batch]
    forward_fn: Callable[[Any, Batch], Any]
    grid: Layout | None
    drift: Drift
    display: Display
    guided: int
    localization: Localization | None
    checks: bool
    record: bool | str | Path
    prefix: str
    on_error: Literal["warn", "raise"]
    target_name: str
    question: str

    def __post_init__(self) -> None:
        every = self.every_n_epochs
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"`every_n_epochs` must be a whole number of at least 1, got {every!r}")
        check_name("`prefix`", self.prefix)
        for name, function in (("batch_fn", self.batch_fn), ("forward_fn", self.forward_fn)):
            if not callable(function):
                raise TypeError(f"`{name}` must be a function, got {type(function).__name__}")
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f'`on_error` must be "warn" or "raise", got {self.on_error!r}')
        for name, value, kind in (("drift", self.drift, Drift), ("display", self.display, Display)):
            if not isinstance(value, kind):
                raise TypeError(f"`{name}` must be a `{kind.__name__}`, got {type(value).__name__}")
        reference = self.drift.reference
        if isinstance(reference, int) and (reference + 1) % every:
            raise ValueError(
                f"`Drift(reference={reference})` names an epoch that `every_n_epochs={every}` leaves "
                f"out; one nearby is {max((reference + 1) // every, 1) * every - 1}"
            )
        if not isinstance(self.guided, int) or self.guided < 0:
            raise ValueError(f"`guided` must be True, False or a number of observations, got {self.guided!r}")
        if not isinstance(self.checks, bool):
            raise TypeError(f"`checks` must be True or False, got {type(self.checks).__name__}")
        if not isinstance(self.record, (bool, str, Path)):
            raise TypeError(f"`record` must be True, False or a folder, got {type(self.record).__name__}")
        name = next((name for name, method in METHODS.items() if method is self.method), None)
        if self.display.counterfactual and name is not None and self.method not in SIGNED_METHODS:
            signed = sorted(name for name, method in METHODS.items() if method in SIGNED_METHODS)
            raise ValueError(
                f"`Display(counterfactual=True)` shows the negative side of maps, and `method` {name!r} has none; "
                f"take one of {signed}"
            )

    @property
    def history_question(self) -> str:
        """What the numbers of a run depend on beside its samples and layers."""
        return f"{self.question} · reference {self.drift.reference}"


def as_localization(localization: Any) -> Localization | None:
    """Bring the ``localization`` argument to one form."""
    if localization is None or isinstance(localization, Localization):
        return localization
    return Localization(localization)


def in_words(choice: Any) -> str:
    """A target or method in words that are the same in another process."""
    choice = as_list(choice)
    if isinstance(choice, (str, Integral, list)) or is_dataclass(choice):
        return str(choice)
    return getattr(choice, "__name__", type(choice).__name__)
