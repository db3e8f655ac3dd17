import os
import random

import numpy as np
import pytest
import pytorch_lightning  # noqa: F401  # before the package, which takes the distribution that is imported already
import torch

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch, caplog):
    """Each test has a folder, a seed, and gradients on; none leaves them otherwise, or has our warnings unexpected."""
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not [record for record in caplog.get_records("call") if record.name == "lightning_gradcam"]
