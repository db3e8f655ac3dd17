"""The site: docs/api.md has every public name, and links lead somewhere, there and on a code host."""

import importlib
import re
import runpy

import pytest
from tiny import ROOT

import lightning_gradcam
from lightning_gradcam.record.cli import _parser

REFERENCE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DIRECTIVES = re.findall(r"^\.\. auto(\w+):: (\S+)", REFERENCE, re.M)
BESIDE = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md"]  # no pages of docs/
PAGES = [*BESIDE, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


# Names


def documented():
    """The full names that the reference documents; of a module what its `__all__` names."""
    names = set()
    for kind, name in DIRECTIVES:
        names |= {f"{name}.{one}" for one in importlib.import_module(name).__all__} if kind == "module" else {name}
    return names


def test_the_reference_has_every_public_name():
    assert {f"lightning_gradcam.{name}" for name in lightning_gradcam.__all__} - documented() == set()
    assert len(DIRECTIVES) == len(set(DIRECTIVES))


def test_the_reference_names_what_exists():
    for kind, name in DIRECTIVES:
        if kind != "module":
            module, _, last = name.rpartition(".")
            assert getattr(importlib.import_module(module), last).__doc__


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py"))]
)
def test_what_users_are_shown_to_import_is_in_the_reference(page):
    imports = re.findall(r"^ *from (lightning_gradcam\S*) import (\([^)]*\)|[^\n#]+)", text_of(page), re.M)
    assert {f"{module}.{name}" for module, names in imports for name in re.findall(r"\w+", names)} <= documented()


def test_the_reference_has_every_command_and_option():
    (commands,) = (action for action in _parser()._actions if action.dest == "command")
    for command, parser in commands.choices.items():
        assert f"`lightning-gradcam {command}" in REFERENCE
        options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        assert all(re.search(rf"`{option}\b", REFERENCE) for option in options), command


# Links


def anchors(page):
    """Those of a page's headings, as a code host gives them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text_of(page)), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^()\s]+)\)", without_code(text_of(page))):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            there = (ROOT / page).parent / path if path else ROOT / page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    ("folder", "link", "on_site"),
    [
        ("docs", "paper.md#bias", "paper.md#bias"),
        ("docs", "../CONTRIBUTING.md#checks", "contributing.md#checks"),
        ("docs", "../examples/bias.py", "../examples/bias.py"),
        ("benchmarks", "../docs/benchmarks.md", "benchmarks.md"),
        ("benchmarks", "paper.py", "../benchmarks/paper.py"),
        (".", "docs/weak.jpg", "weak.jpg"),
        (".", "CONTRIBUTING.md", "contributing.md"),
        (".", "nothing.md", "nothing.md"),
        (".", "https://arxiv.org/abs/1610.02391", "https://arxiv.org/abs/1610.02391"),
    ],
)
def test_links_on_the_site_lead_where_they_do_on_a_code_host(folder, link, on_site):
    to_site = runpy.run_path(str(ROOT / "docs" / "conf.py"))["with_links_of_site"]
    assert to_site(f"See [this]({link}), (that).", folder) == f"See [this]({on_site}), (that)."


def test_every_page_is_in_the_contents():
    contents = re.findall(r"^```\{toctree\}\n(.*?)^```", text_of("docs/index.md"), re.S | re.M)
    listed = [line for one in contents for line in one.splitlines() if line and not line.startswith(":")]
    assert sorted(f"docs/{name}.md" for name in [*listed, "index"]) == [page for page in PAGES if page not in BESIDE]
