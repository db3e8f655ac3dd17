"""What `compare` says of the differences between runs."""

import numpy as np
import pytest
from records import LEFT, RIGHT, write, write_maps

from lightning_gradcam import compare

WHOLE = np.array([[1, 1], [1, 1]], np.float32)


def two_runs(n=4):
    """A run whose maps lie on the left half, and one whose maps lie on both halves alike; of ``n`` samples."""
    left = {"left": np.array([[0, 0, 4, 8]] * n)}
    photos = np.zeros((n, 8, 8), np.uint8)
    aside = np.array([[1, 0], [1, 0]], np.float32)
    write_maps("weak", [[aside] * n], photos, left)
    write_maps("strong", [[WHOLE] * n], photos, left)
    return compare("weak", "strong")


def test_by_hand():
    found = {one.number: one for one in two_runs().differences()}
    assert list(found) == ["concentration", "strength", "mass_left", "lift_left"]  # no drift at a first moment
    mass = found["mass_left"]
    assert mass.runs == ("weak", "strong")
    assert mass.values == (1, 0.5)
    assert (mass.mean, mass.agreeing, mass.n, mass.interval) == (0.5, 4, 4, None)
    assert mass.p == 2 / 2**4
    assert found["strength"].mean == -2
    assert found["strength"].agreeing == 4


def test_the_lines():
    text = str(two_runs())
    assert text.splitlines()[-7:] == [
        "At the last moment, of the samples with a value in both:",
        "concentration: weak 0.50, strong 0.00 (medians); mean difference 0.50 on 4 of 4 samples (sign-flip p = 0.12).",
        "strength: weak 2.00, strong 4.00 (medians); mean difference -2.00 on 4 of 4 samples (sign-flip p = 0.12).",
        "mass_left: weak 1.00, strong 0.50; difference 0.50 on 4 of 4 samples (sign-flip p = 0.12).",
        "lift_left: weak 2.00, strong 1.00; difference 1.00 on 4 of 4 samples (sign-flip p = 0.12).",
        "4 numbers are compared; p adjusted for that (Holm): concentration 0.5, strength 0.5, mass_left 0.5, "
        "lift_left 0.5.",
        "One run each: seeds may differ by more.",
    ]
    assert "significant" not in text
    assert "p <" not in text


def test_an_interval_of_many_samples():
    mass = two_runs(32).differences()[2]
    assert mass.interval == (0.5, 0.5)
    assert str(mass) == (
        "mass_left: weak 1.00, strong 0.50; difference 0.50 on 32 of 32 samples "
        "(sign-flip p = 0.0001, 95 % interval 0.50 to 0.50)."
    )


def test_samples_without_a_value_in_both_are_left_out():
    write("one", [[-WHOLE, LEFT]])
    write("two", [[LEFT, RIGHT]])
    found = {one.number: one for one in compare("one", "two", samples="all").differences()}
    assert found["mass_left"].n == 1
    assert found["mass_left"].mean == 1
    assert found["mass_left"].p == 1
    assert found["strength"].n == 2


def test_runs_without_a_value_and_runs_alone():
    write("one", [[-WHOLE, -WHOLE]])
    write("two", [[LEFT, RIGHT]])
    assert [one.number for one in compare("one", "two", samples="all").differences()] == ["strength"]
    assert compare("two").differences() == []
    assert "At the last moment" not in str(compare("two"))


def test_three_runs_are_compared_with_the_first():
    for name in ("one", "two", "three"):
        write(name, [[LEFT, RIGHT]])
    text = str(compare("one", "two", "three"))
    assert "mass_left: one 0.50, three 0.50; difference 0.00 on 2 of 2 samples (sign-flip p = 1)." in text
    assert "mass_left of three 1" in text
    assert text.count("One run each: seeds may differ by more.") == 1


@pytest.mark.parametrize("samples", ["right", "all"])
def test_numbers_are_of_the_samples_of_the_table(samples):
    write("one", [[LEFT, LEFT]], right=[[1, 0]])
    write("two", [[LEFT, RIGHT]])
    found = {one.number: one for one in compare("one", "two", samples=samples).differences()}
    assert found["mass_left"].n == (1 if samples == "right" else 2)
    assert found["mass_left"].mean == (0 if samples == "right" else 0.5)
