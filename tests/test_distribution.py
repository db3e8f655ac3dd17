"""What is uploaded: the wheel and the sdist, as an index shows them and as a user gets them; `slow`.

The wheel is installed beside links to those of the packages here that it requires; to download them would take minutes.
"""

import re
import subprocess
import sys
import tarfile
from email import message_from_bytes
from email.message import Message
from html.parser import HTMLParser
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from tiny import ROOT, environment

from lightning_gradcam import __version__

pytestmark = pytest.mark.slow

PACKAGE = "lightning_gradcam"


class Built(NamedTuple):
    wheel: Path
    sdist: Path
    metadata: Message
    description: str
    address: str


def output_of(*arguments, **options):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both, the wheel built from the sdist, as a release is."""
    folder = tmp_path_factory.mktemp("dist")
    output_of("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with ZipFile(wheel) as archive:
        raw = archive.read(f"{PACKAGE}-{__version__}.dist-info/METADATA")
    metadata = message_from_bytes(raw)
    (address,) = re.findall(r'^address = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return Built(wheel, sdist, metadata, raw.partition(b"\n\n")[2].decode(), address)


def required(name, found):
    """Collect the distributions that one requires, without extras, and those that they do."""
    for requirement in map(Requirement, requires(name) or ()):
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[requirement.name] = distribution(requirement.name)
            required(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """A folder of packages: the wheel, and what it requires."""
    folder = tmp_path_factory.mktemp("site")
    for one in required("lightning-gradcam", {}).values():
        for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(Path(one.locate_file(name)))
    output_of("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(built.wheel))
    return folder


def sdist_texts(sdist):
    """The files of an sdist that hold text, by their path."""
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive if member.isfile()}
        data = {name: file.read() for name, file in files.items() if file}
    return {name: text.decode(errors="ignore") for name, text in data.items()}


def test_an_index_takes_both(built):
    output_of("-m", "twine", "check", "--strict", str(built.wheel), str(built.sdist))


def test_the_sdist_holds_what_is_tracked(built):
    if not (ROOT / ".git").exists():
        pytest.skip("what is tracked is known in a clone alone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    tracked = {path for path in listed if path and not path.startswith(".github/") and (ROOT / path).exists()}
    assert sdist_texts(built.sdist).keys() - {"PKG-INFO"} == tracked


def test_the_wheel_holds_the_package_and_its_data(built):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*") if path.is_file()}
    with ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [archive.read(name) for name in archive.namelist() if ".dist-info/licenses/" in name]
    assert packed == {file for file in files if "__pycache__" not in file}
    data = "py.typed", "record/page.html", "record/page.js", "loggers/tab.js", "picture/fonts/DejaVuSansCondensed.ttf"
    assert {f"{PACKAGE}/{file}" for file in data} < packed
    ours = [(ROOT / file).read_bytes() for file in ("LICENSE", f"{PACKAGE}/picture/fonts/LICENSE")]
    assert sorted(licences) == sorted(ours)


def test_every_link_of_the_project_is_made_of_its_one_address(built):
    links = dict(link.split(", ") for link in built.metadata.get_all("Project-URL", []))
    assert links.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(link.startswith(built.address) for link in links.values())
    holders = {name for name, text in sdist_texts(built.sdist).items() if built.address in text}
    assert holders == {"PKG-INFO", "pyproject.toml"}


def test_an_index_refuses_what_leads_nowhere(built):
    is_placeholder = built.address.partition("://")[2].partition("/")[0].endswith(".invalid")
    assert ("Private :: Do Not Upload" in built.metadata.get_all("Classifier", [])) == is_placeholder


class Page(HTMLParser):
    """The values of the attributes of a page, by name."""

    def __init__(self, text):
        super().__init__()
        self.values = {"href": [], "src": [], "id": []}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            self.values.get(name, []).append(value)


def test_the_description_is_the_readme_with_every_link_and_picture_at_the_address(built):
    """As the index renders it."""
    from readme_renderer import markdown

    page = Page(markdown.render(built.description)).values
    assert page["src"]
    assert {link[1:] for link in page["href"] if link.startswith("#")} <= {*page["id"]}
    paths = []
    for view, links in (("blob", page["href"]), ("raw", page["src"])):
        start = f"{built.address}/{view}/v{__version__}/"
        assert [link for link in links if not link.startswith((start, "https://", "#"))] == []
        assert [link for link in links if built.address in link and not link.startswith(start)] == []
        paths += [link.removeprefix(start).partition("#")[0] for link in links if link.startswith(start)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    readme = re.sub(rf"{built.address}/(raw|blob)/v{__version__}/", "", built.description)
    assert readme.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_version_is_the_same_wherever_it_stands(built):
    assert built.metadata["Version"] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


RUN = f"""
import sys
import lightning_gradcam
from pytorch_lightning.loggers import CSVLogger
from lightning_gradcam import GradCAMCallback, Record
from lightning_gradcam.record.cli import main
sys.path.append({str(ROOT / "tests")!r})
from tiny import TinyModule, loader, trainer
for logger, folder in ((CSVLogger(".", name="csv"), "csv/version_0"), (False, "runs")):
    run = trainer(GradCAMCallback(samples=3, on_error="raise"), logger=logger, max_epochs=1, default_root_dir="runs")
    run.fit(TinyModule(), loader(), loader())
    assert main(["report", folder, "-o", f"{{folder.partition('/')[0]}}.html"]) == 0
    assert Record.open(folder).maps["gradcam"].shape == (2, 3, 8, 8)
print(lightning_gradcam.__file__)
for name in ("lightning", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "timm", "transformers", "wandb"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print(name)
"""


def test_the_wheel_works_with_what_it_requires_alone(site, tmp_path):
    alone = {"cwd": tmp_path, "env": environment(PYTHONPATH=str(site))}
    for command in (["-m", PACKAGE], [str(site / "bin" / "lightning-gradcam")]):
        assert output_of("-S", *command, "--version", **alone) == f"lightning-gradcam {__version__}\n"
    printed = output_of("-S", "-W", "ignore", "-c", RUN, **alone).splitlines()
    assert printed[-10:] == [
        str(site / PACKAGE / "__init__.py"),
        "lightning",
        "matplotlib",
        "pandas",
        "scipy",
        "sklearn",
        "tensorboard",
        "timm",
        "transformers",
        "wandb",
    ]
    assert {path.name for path in tmp_path.glob("*.html")} == {"csv.html", "runs.html"}
    assert list(tmp_path.glob("runs/gradcam/*.jpg"))  # pictures where no logger takes them
