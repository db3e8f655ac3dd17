import importlib

import pytest
from tiny import ROOT


@pytest.fixture(scope="session")
def imported():
    """Import an example by its name; they find each other in their own folder, as they do for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield importlib.import_module
