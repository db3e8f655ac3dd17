"""Show where a vision model looks while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gradcam.attribution.batch import Batch
    from lightning_gradcam.attribution.functional import gradcam, neuron_importance
    from lightning_gradcam.attribution.guided import GuidedReLUs, guided_backprop, guided_gradcam
    from lightning_gradcam.attribution.targets import TopTarget
    from lightning_gradcam.attribution.tasks import (
        DetectionTarget,
        EmbeddingTarget,
        RegressionTarget,
        SegmentationTarget,
    )
    from lightning_gradcam.callback import GradCAMCallback
    from lightning_gradcam.metrics.channels import explain
    from lightning_gradcam.picture.display import Display
    from lightning_gradcam.picture.show import show
    from lightning_gradcam.record.compare import compare
    from lightning_gradcam.record.record import Record
    from lightning_gradcam.run.dataset_labels import balanced
    from lightning_gradcam.run.settings import Drift, Localization
    from lightning_gradcam.version import __version__ as __version__

__all__ = [
    "Batch",
    "DetectionTarget",
    "Display",
    "Drift",
    "EmbeddingTarget",
    "GradCAMCallback",
    "GuidedReLUs",
    "Localization",
    "Record",
    "RegressionTarget",
    "SegmentationTarget",
    "TopTarget",
    "balanced",
    "compare",
    "explain",
    "gradcam",
    "guided_backprop",
    "guided_gradcam",
    "neuron_importance",
    "show",
]

# Where each name lives. It is loaded when it is first asked for, since torch and Lightning take seconds (PEP 562).
_HOMES = {
    "attribution.batch": ["Batch"],
    "attribution.functional": ["gradcam", "neuron_importance"],
    "attribution.guided": ["GuidedReLUs", "guided_backprop", "guided_gradcam"],
    "attribution.targets": ["TopTarget"],
    "attribution.tasks": ["DetectionTarget", "EmbeddingTarget", "RegressionTarget", "SegmentationTarget"],
    "callback": ["GradCAMCallback"],
    "metrics.channels": ["explain"],
    "picture.display": ["Display"],
    "picture.show": ["show"],
    "record.compare": ["compare"],
    "record.record": ["Record"],
    "run.dataset_labels": ["balanced"],
    "run.settings": ["Drift", "Localization"],
    "version": ["__version__"],
}


if not TYPE_CHECKING:  # a type checker shall still find what is misspelt

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
