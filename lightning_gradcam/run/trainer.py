"""The one place that knows which distribution of Lightning runs, and what we read of its inside.

``lightning.pytorch`` and ``pytorch_lightning`` are the same code under two names with unrelated classes. The
callback must be a subclass of the one that the user's ``Trainer`` comes from: whichever is imported already, else
``lightning.pytorch`` where it is installed, since whoever installs that package uses it by this name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_gradcam.attribution.doubles import Doubles
from lightning_gradcam.attribution.isolation import random_state
from lightning_gradcam.attribution.stand_in import StandIn
from lightning_gradcam.loggers.destinations import base_names

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.loggers.logger import DummyLogger
    from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error
else:
    imported = [name for name in ("pytorch_lightning", "lightning.pytorch") if name in sys.modules]
    if (imported or (find_spec("lightning") and ["lightning.pytorch"])) == ["lightning.pytorch"]:
        from lightning.pytorch import Callback, LightningModule, Trainer
        from lightning.pytorch.loggers.logger import DummyLogger
        from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
    else:
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.loggers.logger import DummyLogger
        from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error


def logged_step(trainer: Trainer) -> int:
    """The step at which ``self.log`` puts this epoch's metrics; ``trainer.global_step`` counts optimizer steps."""
    step = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return trainer.global_step if step is None else step


def stand_in_for(trainer: Trainer, pl_module: LightningModule, *others: Any) -> StandIn:
    """A stand-in for the module that logs nothing, neither by ``self.log`` nor by a logger, and sees a validation.

    Args:
        trainer: The trainer, of which the stand-in has one of its own.
        pl_module: The module.
        *others: See :class:`~lightning_gradcam.attribution.stand_in.StandIn`.
    """
    silent = copy.copy(trainer)
    loggers: list[Any] = [DummyLogger() for _ in trainer.loggers]

    def follow() -> None:
        vars(silent).update(vars(trainer))
        silent.loggers, silent.state = loggers, copy.copy(trainer.state)
        if trainer.state.fn == "fit":
            silent.validating = True

    return StandIn(pl_module, *others, known=[(trainer, silent)], before_look=follow, kept=True)


def transfer(trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int = 0) -> Any:
    """Bring a batch to the device by the hooks of the datamodule or the module, whichever Lightning would use.

    Doubles of both are asked, which see a validation, since many augment where the trainer or the module is training.
    """
    selector = getattr(trainer._data_connector, "_datahook_selector", None)
    stand_in = stand_in_for(trainer, pl_module, getattr(trainer, "datamodule", None))

    def call(name: str, *args: Any) -> Any:
        owner = pl_module if selector is None else selector.get_instance(name)
        return getattr(stand_in.of(owner), name)(*args)

    def run(module: Any) -> Any:
        found = call("on_before_batch_transfer", batch, dataloader_idx)
        found = call("transfer_batch_to_device", found, trainer.strategy.root_device, dataloader_idx)
        return call("on_after_batch_transfer", found, dataloader_idx)

    return stand_in.look(run)


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        loader: The data loader; ``None`` if there is none.
        index: Its number among the loaders of an evaluation, as Lightning's hooks get it; ``None``: it is training's.
        key: Its name, where they have some.
        together: The dict or list of loaders whose batches come as one, where it is one of these.
        first_batch: What Lightning handed over first, past the transfer hooks, where it has been kept.
    """

    loader: Any
    index: int | None = None
    key: str | None = None
    together: Any = None
    first_batch: Any = None


def candidate_sources(trainer: Trainer) -> list[Source]:
    """Where samples can be taken from: validation's loaders, without validation training's; in a test the test's."""
    fit = trainer.state.fn not in ("test", "validate")
    if trainer.state.fn == "test":
        loop, public = trainer.test_loop, trainer.test_dataloaders
    else:  # of a `fit` and a `validate` before it, whichever is no longer meant has loaders too
        loop = trainer.fit_loop.epoch_loop.val_loop if fit else trainer.validate_loop
        public = trainer.val_dataloaders
    found = getattr(loop, "_combined_loader", public)
    if fit and found is None and trainer.enable_validation:
        found = _requested_val_dataloaders(trainer)
    loaders = getattr(found, "iterables", found) if trainer.enable_validation or not fit else None
    in_turn = getattr(found, "_mode", "sequential") == "sequential"
    leaves = named_loaders(loaders)
    together = None if in_turn or len(leaves) < 2 or any(_is_empty(loader) for _, loader in leaves) else loaders
    sources = [Source(loader, i if in_turn else 0, key, together) for i, (key, loader) in enumerate(leaves)]
    filled = [source for source in sources if not _is_empty(source.loader)]
    if filled or not fit:
        return filled
    return [Source(loader) for _, loader in named_loaders(trainer.train_dataloader) if not _is_empty(loader)]


def _requested_val_dataloaders(trainer: Trainer) -> Any:
    """Ask for loaders of our own where Lightning has not set up its own yet.

    That is so before training without sanity check and with ``check_val_every_n_epoch`` above 1. The user's
    ``val_dataloader`` may draw random numbers, so Lightning must still call it at its own time.
    """
    owner = getattr(trainer, "datamodule", None) or trainer.lightning_module
    source = getattr(trainer.fit_loop.epoch_loop.val_loop, "_data_source", None)
    name = getattr(source, "name", "val_dataloader")
    owner = owner if source is None else source.instance
    with random_state(holder=owner):  # also that of what has no double
        return getattr(Doubles((owner,)).of(owner), name)() if hasattr(owner, name) else owner


def named_loaders(loaders: Any, key: Any = None) -> list[tuple[Any, Any]]:
    """Every data loader in a dict, list or combination of such, with the name that it has there."""
    loaders = getattr(loaders, "iterables", loaders)  # a CombinedLoader
    if isinstance(loaders, Mapping):
        return [leaf for name, loader in loaders.items() for leaf in named_loaders(loader, name)]
    if isinstance(loaders, (list, tuple)):
        return [leaf for loader in loaders for leaf in named_loaders(loader, key)]
    return [(key, loaders)]


def _is_empty(loader: Any) -> bool:
    dataset = getattr(loader, "dataset", None)
    return loader is None or (isinstance(dataset, Sized) and not len(dataset))


def stops_here(trainer: Trainer) -> bool:
    """Whether the epoch that ends now is the run's last."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    last_epoch = epochs is not None and epochs != -1 and trainer.current_epoch + 1 >= epochs
    last_step = steps != -1 and trainer.global_step >= steps
    return trainer.should_stop or last_epoch or last_step


def is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of the model only, so that a forward is an exchange between all of them."""
    return not base_names(trainer.strategy).isdisjoint({"ModelParallelStrategy", "DeepSpeedStrategy"})


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy under which the module cannot be run from outside its own steps.

    Raises:
        ValueError: If the trainer has such a one.
    """
    strategy = trainer.strategy
    if "FSDPStrategy" in base_names(strategy):  # the module's own parameters are then views without memory
        why, instead = "joins a module's parameters in its own steps only", "`ModelParallelStrategy` with `fully_shard`"
    elif getattr(strategy, "zero_stage_3", False):
        why, instead = "of stage 3 splits the parameters of each layer, which is not proven to work", "stage 1 or 2"
    else:
        return
    raise ValueError(
        f"{type(strategy).__name__} {why}, so `GradCAMCallback` cannot run the module; "
        f"give the trainer {instead}, or train without the callback"
    )


def leaves_nothing(trainer: Trainer) -> bool:
    """Whether Lightning writes nothing to disk: with ``fast_dev_run`` or ``barebones``."""
    return bool(getattr(trainer, "fast_dev_run", False) or getattr(trainer, "barebones", False))


def run_folder(trainer: Trainer, prefix: str) -> Path:
    """The folder of this run for what we write: beside the checkpoints, where ``ModelCheckpoint`` puts them.

    That is ``save_dir/name/version/prefix`` of the first logger. Without loggers runs share the trainer's
    ``default_root_dir``, so the folder gets a number where the name is taken. A folder on a remote store is replaced
    by the trainer's, or by the working directory.
    """
    root = _local(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(_local(logger.save_dir or root, root), str(logger.name), version, prefix)
    folder, number = root / prefix, 0
    while folder.exists():
        number += 1
        folder = root / f"{prefix}_{number}"
    return folder


def _local(folder: str | Path, otherwise: str | Path = ".") -> Path:
    """The folder, or the other one where it lies on a remote store."""
    plain = str(folder).removeprefix("file://")
    if "://" not in plain:
        return Path(plain)
    rank_zero_info(
        f"GradCAMCallback: {plain} is not on this machine; what is written to files goes to "
        f"{str(Path(otherwise).resolve())!r}. `record=` names another folder for the record."
    )
    return Path(otherwise)
