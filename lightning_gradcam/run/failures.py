"""What fails is told and left out, so that nothing of ours ends a run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning_gradcam.run.trainer import Trainer

_T = TypeVar("_T")
MAX_FAILURES_IN_A_ROW = 3  # observations, after which there are no more


class OtherProcessError(RuntimeError):
    """Another process has failed, and tells why itself."""


def on_first_process(trainer: Trainer, make: Callable[[], _T], what: str) -> _T:
    """What the first process makes, handed to all of them; where it fails, an error on each that names ``what``."""
    made: Any = None
    error = None
    if trainer.is_global_zero:
        try:
            made = make()
        except Exception as failure:  # the other processes wait for the broadcast
            error = failure
    message = f"{type(error).__name__}: {error}" if error else None
    message, made = trainer.strategy.broadcast((message, made))
    if message:
        raise error or OtherProcessError(f"the first process could not {what}: {message}")
    return made


@contextmanager
def left_out(trainer: Trainer, what: str, raises: bool = False) -> Iterator[None]:
    """Warn of a failure in the block, naming ``what`` failed, and go on behind it; ``raises``: raise it after all."""
    try:
        yield
    except Exception as error:
        if raises:
            raise
        warn_of_failure(trainer, what, error)


def warn_of_failure(trainer: Trainer, what: str, error: Exception) -> None:
    """Warn on the first process, and on one whose own error it is."""
    if trainer.is_global_zero or not isinstance(error, OtherProcessError):
        warn(
            f"GradCAMCallback: {what} in epoch {trainer.current_epoch}, step {trainer.global_step}, failed and is "
            f"left out; training goes on. {type(error).__name__}: {error}"
        )


def warn_of_no_look(error: Exception, yet: bool = False) -> None:
    """Warn that the model cannot be looked at, or cannot ``yet``, since its forward has failed."""
    if yet:
        what = "cannot look at the model yet, since its forward failed, and tries again after the first validation"
    else:
        what = "cannot look at this model; training goes on without maps"
    warn(f"GradCAMCallback {what}. {type(error).__name__}: {error}")


def warn(text: str) -> None:
    """Warn; where the user has made warnings errors, log it: a run must not end by ours."""
    try:
        warnings.warn(text, stacklevel=3)
    except UserWarning:
        logging.getLogger("lightning_gradcam").warning(text)
