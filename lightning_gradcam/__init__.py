"""Show where a vision model looks while it trains."""

from lightning_gradcam.batch import Batch, balanced
from lightning_gradcam.callback import GradCAMCallback
from lightning_gradcam.compare import compare
from lightning_gradcam.explanation import explain
from lightning_gradcam.functional import gradcam, neuron_importance
from lightning_gradcam.guided import GuidedReLUs, guided_backprop, guided_gradcam
from lightning_gradcam.history import Drift
from lightning_gradcam.picture.display import Display
from lightning_gradcam.record import Record
from lightning_gradcam.targets import DetectionTarget, SegmentationTarget, TopTarget

__all__ = [
    "Batch",
    "DetectionTarget",
    "Display",
    "Drift",
    "GradCAMCallback",
    "GuidedReLUs",
    "Record",
    "SegmentationTarget",
    "TopTarget",
    "balanced",
    "compare",
    "explain",
    "gradcam",
    "guided_backprop",
    "guided_gradcam",
    "neuron_importance",
]
__version__ = "0.1.0"
