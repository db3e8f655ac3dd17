"""What a checkpoint keeps of a run, and what the run that is resumed from it takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_gradcam.attribution.decision import to_state as reading_state
from lightning_gradcam.attribution.methods import ADDITIVE_METHODS
from lightning_gradcam.picture.filmstrip import ROWS
from lightning_gradcam.run.history import History
from lightning_gradcam.run.probe import Probe
from lightning_gradcam.run.samples import Fingerprint
from lightning_gradcam.run.settings import Settings

_LAYOUT = 1  # raise it with every change of what `to_state` gives


@dataclass(frozen=True)
class Resumed:
    """What a run goes on with.

    Attributes:
        history: The run so far; empty where drift starts anew.
        failures: How many observations of the run have failed.
        record: Which record to go on with, if any.
    """

    history: History
    failures: int = 0
    record: dict[str, Any] | None = None


def empty_history(settings: Settings) -> History:
    """The history of a run that begins."""
    return History(settings.prefix, settings.drift, settings.method in ADDITIVE_METHODS)


def to_state(probe: Probe, history: History, failures: int, record: dict[str, Any] | None) -> dict[str, Any]:
    """Plain values and tensors, for a checkpoint."""
    return {
        "layout": _LAYOUT,
        "fingerprint": asdict(probe.fingerprint),
        "layers": list(probe.layers.values()),
        "question": probe.settings.history_question,
        "reading": reading_state(probe.question),
        "failures": failures,
        "history": history.state(),
        "record": record,
        "pictured": probe.pictured,
    }


def from_state(state: Mapping[str, Any], probe: Probe) -> Resumed:
    """Go on with the history of the run that is resumed, where its samples, layers and question are the same."""
    settings, layers = probe.settings, list(probe.layers.values())
    history, question, reading = empty_history(settings), settings.history_question, reading_state(probe.question)
    if not state:
        return Resumed(history)
    try:
        if state["layout"] != _LAYOUT:
            raise ValueError("another layout")
        history.restore(state["history"])
        before, failures = Fingerprint(**state["fingerprint"]), int(state["failures"])
    except (AttributeError, KeyError, TypeError, ValueError):
        rank_zero_warn(
            "GradCAMCallback cannot read its part of the resumed run's checkpoint, which another version of it "
            "wrote; drift starts anew."
        )
        return Resumed(empty_history(settings))
    everything = list(range(len(probe.batch.images)))
    if state.get("pictured", everything)[:ROWS] != probe.pictured[:ROWS]:
        for track in history.tracks.values():
            track.frames = []  # of other samples: the filmstrip starts anew
    if before.identity != probe.fingerprint.identity:
        difference = ": the samples of the fixed batch are not those of the resumed run"
    elif state["layers"] != layers:
        difference = f" looks at {layers}, the resumed run looked at {state['layers']}"
    elif state["question"] != question:
        difference = f" asks for {question!r}, the resumed run asked for {state['question']!r}"
    elif state.get("reading", reading) != reading:
        difference = f" reads the model's output as {reading}, the resumed run as {state['reading']}"
    elif before.pixels != probe.fingerprint.pixels:
        rank_zero_warn("GradCAMCallback: the pixels of the fixed batch are not those of the resumed run.")
        return Resumed(history, failures)
    else:
        return Resumed(history, failures, state.get("record"))
    rank_zero_warn(f"GradCAMCallback{difference}; drift starts anew.")
    return Resumed(empty_history(settings), failures)
