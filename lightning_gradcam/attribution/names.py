"""What samples and labels are called wherever they are shown."""

from __future__ import annotations

NO_LABEL = -100  # of a sample, as `CrossEntropyLoss` ignores it


def sample_name(sample: int | str) -> str:
    """How pictures and tables name a sample: an index behind a number sign, a name of its own as it is."""
    return f"#{sample}" if isinstance(sample, int) else sample
