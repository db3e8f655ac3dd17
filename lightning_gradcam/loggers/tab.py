"""The tab in TensorBoard: runs side by side on the page of :mod:`~lightning_gradcam.record.page`, while they train.

TensorBoard imports this module at every start, in every environment that has this package, and does not start where
that fails. So it takes the standard library and TensorBoard alone; the rest is imported when it is first asked for,
and what fails then is the answer.
"""

from __future__ import annotations

import html
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

if TYPE_CHECKING:
    _TBPlugin = object  # TensorBoard tells no types, and a base class without one would hide the mistakes of this one
    from lightning_gradcam.loggers.tab_runs import TabRun
else:
    _TBPlugin = base_plugin.TBPlugin

_SCRIPT = "/tab.js"
_MOST_POINTS = 100  # that are read of where a record lies: one each time a run is resumed
_FAILURE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Grad-CAM</title>
<style>
:root {{ color-scheme: light dark; }}
:root[data-theme=light] {{ color-scheme: light; }}
:root[data-theme=dark] {{ color-scheme: dark; }}
body {{ margin: 0; padding: 0 1rem; background: light-dark(#fff, #161616); color: light-dark(#222, #ececec);
  font: 15px/1.4 system-ui, sans-serif; }}
h1 {{ font-size: 1.3rem; }}
p {{ max-width: 50rem; overflow-wrap: anywhere; }}
</style>
</head>
<body data-ready="yes" data-failed="yes">
<main><h1>These runs cannot be shown</h1><p>{}</p></main>
</body>
</html>
"""


class GradCAMTab(_TBPlugin):
    """A tab for the runs whose callback has written where its record lies."""

    plugin_name = "lightning_gradcam"

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._context = context
        self._lock = threading.Lock()  # TensorBoard answers on threads
        self._pages: Any = None

    def get_plugin_apps(self) -> dict[str, Any]:
        answers = {_SCRIPT: self._answer_script, "/runs": self._answer_runs, "/page": self._answer_page}
        return {route: wrappers.Request.application(answer) for route, answer in answers.items()}

    def is_active(self) -> bool:
        return False  # asked where no run has data of this name, which TensorBoard knows by itself

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        return base_plugin.FrontendMetadata(es_module_path=_SCRIPT, tab_name="Grad-CAM")

    def _answer_script(self, request: wrappers.Request) -> wrappers.Response:
        return Respond(request, Path(__file__).with_name("tab.js").read_text("utf-8"), "application/javascript")

    def _answer_runs(self, request: wrappers.Request) -> wrappers.Response:
        try:
            with self._lock:
                from lightning_gradcam.loggers.tab_runs import describe_runs

                answer = {"runs": describe_runs(self._runs(request), self._kept_pages())}
        except Exception as error:
            answer = {"error": _in_words(error)}
        return Respond(request, answer, "application/json")

    def _answer_page(self, request: wrappers.Request) -> wrappers.Response:
        try:
            with self._lock:
                known = {run.name: run for run in self._runs(request)}
                names = request.args.getlist("run")
                if not names:
                    raise LookupError("`page` needs the name of a run, as in `page?run=weak&run=strong`; got none")
                if unknown := [name for name in names if name not in known]:
                    raise LookupError(f"no run with a record here is called {', '.join(map(repr, unknown))}")
                text = self._kept_pages().page([known[name] for name in dict.fromkeys(names)])
            script = re.findall(r"script-src 'sha256-([^']+)'", text)[:1]  # as the page's own policy has it
        except Exception as error:
            text, script = _FAILURE.format(html.escape(_in_words(error))), []
        return Respond(request, text, "text/html", csp_scripts_sha256s=script)

    def _runs(self, request: wrappers.Request) -> list[TabRun]:
        """The runs that TensorBoard lists with a record."""
        from lightning_gradcam.loggers.tab_runs import find_runs

        if self._context.data_provider is None:
            raise LookupError("TensorBoard gives no data; start it without `--generic_data=false`")
        series = self._context.data_provider.read_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=self.plugin_name,
            downsample=_MOST_POINTS,
        )
        places = {
            (run, tag): max(points, key=lambda point: point.wall_time).numpy
            for run, tags in series.items()
            for tag, points in tags.items()
            if points
        }
        flags = self._context.flags
        return find_runs(places, *(getattr(flags, name, None) or "" for name in ("logdir", "logdir_spec")))

    def _kept_pages(self) -> Any:
        from lightning_gradcam.loggers.tab_runs import Pages

        self._pages = self._pages or Pages()
        return self._pages


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
