"""The examples with language, as a user runs them; by `pytest -m slow`, since each takes a minute or two."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny import events

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(imported, monkeypatch):
    """Train an example, in an empty folder; what it has logged."""

    def train(name, *options):
        monkeypatch.setattr(sys, "argv", [name, *options])
        module = imported(name)
        module.main()
        return events(Path("runs", name)), module

    yield train
    torch.set_num_threads(1)


def last(log, key):
    return log.Scalars(key)[-1].value


def test_the_map_of_a_word_lies_on_its_digit(trained, capsys):
    log, example = trained("captioning")
    uniform = importlib.import_module("scenes").UNIFORM
    assert last(log, "val/accuracy") > 0.7
    assert last(log, "word/mass_digit") >= 3 * uniform
    assert last(log, "word/mass_digit") >= 2 * last(log, "word/mass_other")
    assert last(log, "caption/mass_digits") >= 2 * 2 * uniform
    words = {key.rpartition("/")[2] for key in log.Tags()["scalars"] if key.startswith("word/mass_digit/")}
    assert len(words) > 5
    assert words <= set(example.WORDS)
    assert {"word/grid", "word/filmstrip", "caption/grid", "caption/filmstrip"} <= set(log.Tags()["images"])
    *_, everything = (line for line in capsys.readouterr().out.splitlines() if line.startswith("all"))
    assert float(everything.split()[2]) >= 3 * uniform  # on all held-out scenes


def test_the_map_of_a_question_lies_on_the_digit_that_it_is_about(trained, capsys):
    log, example = trained("vqa", "--epochs", "11")
    uniform = importlib.import_module("scenes").UNIFORM
    assert last(log, "val/accuracy") > 0.8
    for key in ("mass_digit", *(f"mass_digit/{kind}" for kind in example.KINDS)):
        assert last(log, f"answer/{key}") >= 3 * uniform
    assert last(log, "answer/mass_digit") >= 3 * last(log, "answer/mass_other")
    assert {"answer/grid", "answer/filmstrip"} <= set(log.Tags()["images"])
    out = capsys.readouterr().out
    assert float(out.partition("for a place differ by ")[2][:4]) > 0.5
