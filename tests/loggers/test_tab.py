"""The tab in TensorBoard, asked as its frame asks it: TensorBoard's own application, without a server."""

import json
import shutil
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from records import LEFT, data_of, write, write_maps
from tabs import OBSERVATIONS, grow, install_entry_point, logged
from tensorboard import default
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto import summary_pb2, types_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tiny import HOSTILE, ROOT, Images, TinyModule, Traced, different, loader, outcome, python, trainer
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from lightning_gradcam import GradCAMCallback, Record
from lightning_gradcam.loggers import tensorboard
from lightning_gradcam.loggers.tab import GradCAMTab
from lightning_gradcam.loggers.tensorboard import write_record

NAME = "lightning_gradcam"


def read(folder):
    """What TensorBoard reads of where records lie, by run and tag."""
    provider = provide({folder: None})
    found = provider.read_tensors(RequestContext(), experiment_id="", plugin_name=NAME, downsample=100)
    return {
        (run, tag): json.loads(points[-1].numpy.item()) for run, tags in found.items() for tag, points in tags.items()
    }


def provide(folders):
    multiplexer = EventMultiplexer()
    for folder, name in folders.items():
        multiplexer.AddRunsFromDirectory(str(folder), name)
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, ".")


class Tab:
    """TensorBoard with our tab and some of its own."""

    def __init__(self, logdir="logs", logdir_spec="", folders=None):
        flags = Namespace(
            logdir=logdir, logdir_spec=logdir_spec, path_prefix="", samples_per_plugin={}, window_title=""
        )
        provider = provide(folders or {logdir: None})
        own = [plugin for plugin in default.get_static_plugins() if "Core" in str(plugin) or "Scalars" in str(plugin)]
        self.client = Client(TensorBoardWSGIApp(flags, [*own, GradCAMTab], provider))

    def get(self, route, **options):
        answer = self.client.get(f"/data/plugin/{NAME}/{route}", **options)
        assert answer.status_code == 200
        return answer

    def runs(self):
        return json.loads(self.get("runs").text)["runs"]

    def listing(self):
        """What TensorBoard knows of the tab."""
        return json.loads(self.client.get("/data/plugins_listing").text)[NAME]

    def names(self):
        return [run["name"] for run in self.runs()]

    def errors(self):
        return {run["name"]: run["error"] for run in self.runs()}

    def page(self, *names):
        return self.get("page", query_string=[("run", name) for name in names]).text


# What the callback writes


@pytest.mark.parametrize("package", ["torch.utils.tensorboard", "tensorboardX"])
def test_where_the_record_lies_is_read_back(package):
    writer = pytest.importorskip(package).SummaryWriter("logs/run")
    write_record(SimpleNamespace(experiment=writer), "gradcam/record", Path("elsewhere/gradcam"), "1")
    writer.close()
    place = {
        "id": "1",
        "relative": "../../elsewhere/gradcam",
        "absolute": Path("elsewhere/gradcam").absolute().as_posix(),
    }
    assert read("logs") == {("run", "gradcam/record"): place}


def test_a_writer_with_the_public_interface_alone_is_left_in_peace():
    write_record(SimpleNamespace(experiment=object()), "gradcam/record", Path("gradcam"), "1")


def test_a_run_shows_in_the_tab():
    callbacks = [GradCAMCallback(samples=2), GradCAMCallback(samples=2, prefix="other")]
    run = trainer(*callbacks, logger=TensorBoardLogger("logs", name="digits", version="a"), max_epochs=1)
    run.fit(TinyModule(), loader(), loader())
    tab = Tab()
    assert (tab.listing()["enabled"], tab.listing()["tab_name"]) == (True, "Grad-CAM")
    assert [(row["name"], row["observations"], row["error"]) for row in tab.runs()] == [
        ("digits/a (gradcam)", 2, ""),
        ("digits/a (other)", 2, ""),
    ]
    data = data_of(tab.page("digits/a (gradcam)", "digits/a (other)"))
    assert [one["name"] for one in data["runs"]] == tab.names()


@pytest.mark.parametrize("options", [{"record": False}, {}])
def test_a_run_without_a_record_writes_nothing(options):
    run = trainer(GradCAMCallback(samples=2, **options), logger=TensorBoardLogger("logs"), max_epochs=1)
    if options:
        run.fit(TinyModule(), loader(), loader())
    else:
        run.validate(TinyModule(), loader(), verbose=False)  # which keeps no record
    assert read("logs") == {}
    assert not Tab().listing()["enabled"]


def test_training_is_the_same_to_the_last_bit():
    def train(name, *callbacks):
        options = {"logger": TensorBoardLogger("logs", name=name, version="")}
        return outcome(Traced, callbacks, Images(), Images(10), options, {})

    assert different(train("plain"), train("watched", GradCAMCallback(samples=2))) == set()
    assert read("logs").keys() == {("watched", "gradcam/record")}


def test_a_record_that_cannot_be_told_of_is_left_out(monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(tensorboard, "write_record", fail)
    run = trainer(GradCAMCallback(samples=2), logger=TensorBoardLogger("logs"), max_epochs=1)
    with pytest.warns(UserWarning, match="the way to the record in epoch 0, step 0, failed and is left out.*disk full"):
        run.fit(TinyModule(), loader(), loader())
    assert len(Record.open("logs/lightning_logs/version_0").epochs) == 2


# What TensorBoard loads


def test_it_imports_the_standard_library_and_tensorboard_alone():
    code = """
import sys
for name in ("torch", "numpy", "PIL", "torchvision", "lightning", "pytorch_lightning", "lightning_utilities"):
    sys.modules[name] = None
from lightning_gradcam.loggers.tab import GradCAMTab
print(*sorted(name.removeprefix("lightning_gradcam") for name in sys.modules if name.startswith("lightning_gradcam")))
"""
    done = python("-c", code)
    assert done.stderr == ""
    assert done.stdout.split() == [".loggers", ".loggers.tab"]  # and the package itself


def test_it_is_made_of_nothing_and_answers_at_once():
    tab = GradCAMTab(TBContext())
    start = time.perf_counter()
    for _ in range(100):
        tab.is_active()
        tab.data_plugin_names()
        tab.frontend_metadata()
    assert (time.perf_counter() - start) / 100 < 1e-3
    answer = Client(tab.get_plugin_apps()["/runs"]).get("/")
    assert (
        json.loads(answer.text)["error"]
        == "LookupError: TensorBoard gives no data; start it without `--generic_data=false`"
    )


@pytest.mark.parametrize("modules", ["record/*.py", pytest.param("**/*.py", marks=pytest.mark.slow)])
def test_a_module_with_a_fault_takes_nothing_from_tensorboard(modules, tmp_path):
    logged("logs/run", *OBSERVATIONS)
    package = shutil.copytree(ROOT / NAME, tmp_path / "site" / NAME, ignore=shutil.ignore_patterns("__pycache__"))
    install_entry_point(package.parent)
    done = python("-c", FAULTS, str(package.parent), modules)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) > (3 if modules == "record/*.py" else 70)
    for module, (enabled, scalars, runs, page) in answers.items():
        assert enabled, module
        assert scalars, module
        says_why = "SyntaxError" in runs and "SyntaxError" in page
        assert says_why or ('"name": "run"' in runs and 'data-failed="yes"' not in page), module
    for module in answers.keys() & {"loggers/tab_runs.py", "record/record.py", "record/compare.py", "record/page.py"}:
        assert f"SyntaxError: invalid syntax ({Path(module).name}, line 1)" in answers[module][2]


FAULTS = """
import importlib, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from argparse import Namespace
from tensorboard import default
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto import summary_pb2, types_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client
multiplexer = EventMultiplexer()
multiplexer.AddRunsFromDirectory("logs", None)
multiplexer.Reload()
flags = Namespace(logdir="logs", logdir_spec="", path_prefix="", samples_per_plugin={}, window_title="")
package = Path(sys.argv[1], "lightning_gradcam")
answers = {}
for file in sorted(package.glob(sys.argv[2])):
    if file.name in ("__init__.py", "tab.py"):
        continue
    source = file.read_text("utf-8")
    file.write_text("def (")
    for name in [name for name in sys.modules if name.startswith("lightning_gradcam")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    own = [plugin for plugin in default.get_static_plugins() if "Core" in str(plugin) or "Scalars" in str(plugin)]
    ours = [plugin for plugin in default.get_dynamic_plugins() if plugin.__name__ == "GradCAMTab"]
    assert ours and Path(sys.modules["lightning_gradcam"].__file__).parent == package
    client = Client(TensorBoardWSGIApp(flags, own + ours, MultiplexerDataProvider(multiplexer, "logs")))
    base = "/data/plugin/lightning_gradcam"
    listing = client.get("/data/plugins_listing").json["lightning_gradcam"]["enabled"]
    scalars = client.get("/data/plugin/scalars/tags").status_code == 200
    got = [client.get(f"{base}/runs"), client.get(f"{base}/page?run=run")]
    assert all(answer.status_code == 200 for answer in got)
    answers[str(file.relative_to(package))] = [listing, scalars, *(answer.text for answer in got)]
    file.write_text(source, "utf-8")
print(json.dumps(answers))
"""


# Where records are found


def test_a_log_directory_that_was_moved_is_read_where_it_lies_now():
    logged("old/run", *OBSERVATIONS)
    shutil.move("old", "logs")
    Path("old/run").mkdir(parents=True)
    shutil.copytree("logs/run/gradcam", "old/run/gradcam")
    grow("logs/run/gradcam")
    tab = Tab()
    assert tab.runs()[0]["observations"] == 3  # the copy at the old place has two
    assert data_of(tab.page("run"))["moments"] == [0, 1, 2]


def test_event_files_that_were_copied_alone_lead_to_the_record_by_its_absolute_path():
    logged("old/run", *OBSERVATIONS)
    Path("logs").mkdir()
    shutil.copytree("old/run", "logs/run", ignore=shutil.ignore_patterns("gradcam"))
    assert Tab().errors() == {"run": ""}


def test_runs_of_a_logdir_spec():
    logged("one/run", *OBSERVATIONS)
    logged("two", *OBSERVATIONS)
    logged("three/deep", *OBSERVATIONS)
    shutil.move("one", "here")
    shutil.move("two", "there")
    shutil.move("three", "third")
    spec = f"named:here,other:there,{Path('third').absolute()}"
    tab = Tab("", spec, {"here": "named", "there": "other", "third": None})
    assert tab.errors() == {"deep": "", "named/run": "", "other/.": ""}
    assert "data-failed" not in tab.page("named/run", "other/.")


def test_the_run_of_the_log_directory_itself():
    logged("logs", *OBSERVATIONS)
    assert Tab().errors() == {".": ""}


def test_a_run_behind_a_link_is_read_where_the_link_leads():
    logged("data/deep/run", *OBSERVATIONS, folder="data/record")
    Path("logs").mkdir()
    Path("logs/run").symlink_to(Path("data/deep/run").absolute())
    shutil.move("data", "moved")
    Path("logs/run").unlink()
    Path("logs/run").symlink_to(Path("moved/deep/run").absolute())
    assert Tab().errors() == {"run": ""}


def test_the_last_place_of_a_run_counts():
    logged("logs/run", *OBSERVATIONS, folder="logs/run/first")
    time.sleep(0.01)
    folder = logged("logs/run", *OBSERVATIONS, folder="logs/run/second")
    grow(folder)
    assert [run["observations"] for run in Tab().runs()] == [3]


def test_a_record_that_was_taken_away_is_said():
    folder = logged("logs/run", *OBSERVATIONS)
    shutil.rmtree(folder)
    (error,) = Tab().errors().values()
    where = repr(str(folder.absolute()))
    assert error == f"FileNotFoundError: there is no record at {where}; it was taken away, or lies on another machine"


def test_only_a_folder_with_a_record_is_read():
    folder = logged("logs/run")
    folder.mkdir()
    (folder / "record.json").write_text('{"secret": "s3cr3t"}')
    (error,) = Tab().errors().values()
    assert error.startswith("ValueError: '")
    assert "logs/run/gradcam/record.json' is damaged or of another program: KeyError" in error
    assert "s3cr3t" not in Tab().get("runs").text + Tab().page("run")


@pytest.mark.parametrize("place", ["", "{}", "[]", "7", "null", '{"absolute": 3}', '{"absolute": "\\u0000"}', "\x00"])
def test_a_place_that_says_nothing_is_said(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gradcam.loggers.tensorboard.json", SimpleNamespace(dumps=lambda _: place))
        logged("logs/bad")
    logged("logs/good", *OBSERVATIONS)
    errors = Tab().errors()
    assert errors["bad"]
    assert not errors["good"]


def test_a_record_without_observations_is_said():
    for observation in logged("logs/run", *OBSERVATIONS).glob("observation*"):
        observation.unlink()
    assert Tab().errors() == {"run": "it holds no observation yet"}


def test_a_damaged_observation_is_said_once_it_was_read_and_until_it_changes():
    damaged = next(logged("logs/bad", *OBSERVATIONS).glob("observation=000001*"))
    logged("logs/good", *OBSERVATIONS)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    tab = Tab()
    assert tab.errors() == {"bad": "", "good": ""}
    text = tab.page("bad", "good")
    assert 'data-failed="yes"' in text
    assert "ValueError: bad cannot be read: &#x27;" in text
    assert "is damaged" in tab.errors()["bad"]
    assert "data-failed" not in tab.page("good")
    damaged.write_bytes(whole)
    assert tab.errors() == {"bad": "", "good": ""}
    assert "data-failed" not in tab.page("bad", "good")


# Which runs go together


def test_runs_on_other_samples_are_groups_of_their_own():
    other = {"fingerprint": {"identity": "other", "pixels": "p", "length": 12}}
    for number, (name, options) in enumerate({"a": {}, "b": other, "c": {}}.items()):
        logged(f"logs/{name}", *OBSERVATIONS, started=f"2030-01-0{number + 1}T00:00:00+00:00", **options)
    found = {run["name"]: (run["group"], run["differs"]) for run in Tab().runs()}
    why = "Cannot be compared with c, on other samples: the datasets hold 9 and 12."
    assert found == {"a": (0, ""), "b": (1, why), "c": (0, "")}
    text = Tab().page("a", "b")
    assert "a and b do not look at the same samples: the datasets hold 9 and 12" in text


def test_images_with_other_axes_are_a_group_of_their_own():
    photos = {"volumes": np.zeros((2, 8, 8, 8), np.uint8), "images": np.zeros((2, 8, 8), np.uint8)}
    for run, one in photos.items():
        folder = write_maps(f"logs/{run}/gradcam", [np.ones((2, *[2] * (one.ndim - 1)))], one)
        logged(f"logs/{run}", folder=folder)
    found = {run["name"]: run for run in Tab().runs()}
    assert {found["volumes"]["group"], found["images"]["group"]} == {0, 1}
    told = found["volumes"]["differs"] + found["images"]["differs"]
    assert "on other samples: their images have" in told


def test_names_stay_distinct():
    for run, prefix in (("x", "a"), ("x", "b"), ("x (a)", "c")):
        logged(f"logs/{run}", *OBSERVATIONS, prefix=prefix)
    assert sorted(Tab().names()) == ["x (a)", "x (a) (2)", "x (b)"]


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a\"b'c", "a&run=b", "a#b?c", "with space", "猫 🐈 é", "%2e%2e%2f", "a+b,c"]
)
def test_names_of_runs_stay_names(name):
    if "/" in name:
        logged(f"logs/{name}", *OBSERVATIONS)
    else:
        logged(str(Path("logs", name)), *OBSERVATIONS)
    (found,) = Tab().names()
    assert found == name
    text = Tab().page(name)
    assert data_of(text)["runs"][0]["name"] == name
    assert text.count("<script") == 2


@pytest.mark.parametrize("name", ["../secret", "..", "/etc", "", *HOSTILE.values()])
def test_a_name_in_a_query_is_no_path(name):
    logged("logs/run", *OBSERVATIONS)
    logged("secret", *OBSERVATIONS)
    text = Tab().page(name.encode("utf-8", "replace").decode())
    assert 'data-failed="yes"' in text
    assert "LookupError: no run with a record here is called" in text
    assert "<script" not in text
    assert "<img" not in text


def test_a_query_without_a_name_says_what_to_give():
    logged("logs/run", *OBSERVATIONS)
    assert "LookupError: `page` needs the name of a run, as in" in Tab().page()


# Pages


def test_a_page_is_made_once_until_its_records_grow(monkeypatch):
    folder = logged("logs/run", *OBSERVATIONS)
    tab = Tab()
    state = tab.runs()[0]["state"]
    first = tab.page("run")
    with monkeypatch.context() as patch:
        patch.setattr(Record, "open", lambda *_: pytest.fail("read again"))
        assert tab.page("run") == first
    grow(folder)
    assert tab.runs()[0]["state"] != state
    assert data_of(tab.page("run"))["moments"] == [0, 1, 2]


def test_the_policy_of_the_answer_allows_the_script_of_the_page_alone():
    logged("logs/run", *OBSERVATIONS)
    answer = Tab().get("page?run=run")
    policy = answer.headers["Content-Security-Policy"]
    own = answer.text.partition("script-src ")[2].partition('"')[0]
    assert f"script-src 'self' 'unsafe-eval' {own}" in policy
    assert "sha256" not in Tab().get("page").headers["Content-Security-Policy"]


def test_hundreds_of_runs_are_listed_in_a_second():
    logged("one/run", *OBSERVATIONS)
    for number in range(300):
        shutil.copytree("one/run", f"logs/run{number}")
    tab = Tab()
    tab.runs()
    start = time.perf_counter()
    assert len(tab.runs()) == 300
    assert time.perf_counter() - start < 1


def test_a_record_of_another_run_is_not_shown_for_one_that_is_gone():
    folder = logged("logs/run", *OBSERVATIONS)
    shutil.rmtree(folder)
    write(folder, [[LEFT, LEFT]])
    assert "is that of another run; this one's was taken away" in Tab().errors()["run"]


def test_runs_on_other_layers_are_groups_of_their_own():
    logged("logs/one", *OBSERVATIONS, started="2030-01-02T00:00:00+00:00")
    two = logged("logs/two", *OBSERVATIONS, started="2030-01-01T00:00:00+00:00")
    about = json.loads((two / "record.json").read_text())
    about["settings"]["layers"] = {"gradcam_a": "a", "gradcam_b": "b"}
    (two / "record.json").write_text(json.dumps(about))
    found = {run["name"]: (run["group"], run["differs"]) for run in Tab().runs()}
    why = "Cannot be compared with one, on other layers: these are gradcam and gradcam_a, gradcam_b."
    assert found == {"one": (0, ""), "two": (1, why)}


@pytest.mark.parametrize("texts", [[], [b"{}", b"{}"], [b"\xff"], [b"[]"], [b"{}"]])
def test_an_odd_summary_leaves_the_other_runs(texts):
    logged("logs/good", *OBSERVATIONS)
    with SummaryWriter("logs/odd") as writer:
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="lightning_gradcam")
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(texts))])
        text = TensorProto(dtype=types_pb2.DT_STRING, string_val=texts, tensor_shape=shape)
        value = summary_pb2.Summary.Value(tag="gradcam/record", tensor=text, metadata=metadata)
        writer._get_file_writer().add_summary(summary_pb2.Summary(value=[value]), 0)
    errors = Tab().errors()
    assert errors["good"] == ""
    assert errors["odd"]
