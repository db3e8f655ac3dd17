"""How often what `compare` prints takes chance for a difference, and how often it sees one.

Drawn are the paired differences of samples, as of `gradcam/mass_<region>` in two runs: once around 0, where p at or
below 0.05 is a false alarm, and once 0.10 apart. They are normal; or those of shares between 0 and 1, which go together
from sample to sample; or skewed themselves, which flipping signs is not made for. Their spread is 0.14.

    python benchmarks/paired.py          # some minutes on one core
    python benchmarks/paired.py --quick  # that it runs
"""

from __future__ import annotations

import argparse

import numpy as np

from lightning_gradcam.metrics.paired import FEWEST_FOR_INTERVAL, mean_interval, sign_flip_p

SHIFT, SPREAD = 0.10, 0.14  # of the mean, and of the paired differences


def normal(rng: np.random.Generator, n: int, shift: float) -> np.ndarray:
    return rng.normal(shift, SPREAD, n)


def skewed(rng: np.random.Generator, n: int, shift: float) -> np.ndarray:
    """Differences of shares of maps, whose samples have unlike means, so that pairs go together."""
    means = rng.beta(2, 6, n)
    one, other = (rng.beta(8 * means, 8 * (1 - means)) for _ in range(2))
    return (one - other) * SPREAD / 0.19 + shift  # 0.19 is their spread


def lopsided(rng: np.random.Generator, n: int, shift: float) -> np.ndarray:
    """Differences that are skewed themselves: one run varies from sample to sample, the other does not."""
    return (rng.beta(1, 4, n) - 0.2) * SPREAD / 0.163 + shift  # mean 1 / 5, spread 0.163


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="see that it runs; the figures mean nothing")
    draws = 20 if parser.parse_args().quick else 2000
    print("| values | samples | false alarms, p <= 0.05 | sees 0.10 | interval misses |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind in (normal, skewed, lopsided):
        for n in (8, 16, 32, 256):
            rng = np.random.default_rng(n)
            false = np.mean([sign_flip_p(kind(rng, n, 0.0)) <= 0.05 for _ in range(draws)])
            seen = np.mean([sign_flip_p(kind(rng, n, SHIFT)) <= 0.05 for _ in range(draws)])
            missed = "none given"
            if n >= FEWEST_FOR_INTERVAL:
                ends = [mean_interval(kind(rng, n, 0.0)) or (0.0, 0.0) for _ in range(draws // 4)]
                missed = f"{np.mean([not low <= 0 <= high for low, high in ends]):.1%}"
            print(f"| {kind.__name__} | {n} | {false:.1%} | {seen:.0%} | {missed} |", flush=True)


if __name__ == "__main__":
    main()
