"""Two processes: the same samples and numbers on both, pictures once, weights as without the callback."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import hashlib, json, sys, torch
import pytorch_lightning as pl
from tiny import Augmented, TinyModule, loader
from lightning_gradcam import GradCAMCallback

torch.set_num_threads(1)
pl.seed_everything(1, verbose=False)
module, callback = TinyModule(), GradCAMCallback(samples=5)
trainer = pl.Trainer(callbacks=[callback] if sys.argv[1] == "with" else [], max_epochs=2, accelerator="cpu", devices=2,
                     strategy="ddp", logger=False, enable_progress_bar=False, enable_model_summary=False,
                     enable_checkpointing=False, num_sanity_val_steps=0)
trainer.fit(module, loader(Augmented(), shuffle=True, batch_size=4), loader(Augmented(), batch_size=4))
weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()
numbers = {key: value.item() for key, value in trainer.callback_metrics.items() if "seconds" not in key}
result = {"weights": weights, "numbers": {key: value for key, value in numbers.items() if "gradcam" in key}}
if callback._probe:
    result |= {"ids": list(callback._probe.batch.ids), "fingerprint": vars(callback._probe.fingerprint)}
with open(f"{sys.argv[1]}-{trainer.global_rank}.json", "w") as file:
    json.dump(result, file)
"""


def run(how):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    Path("run.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "run.py", how], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{how}-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes():
    first, second = run("with")
    without, _ = run("without")
    assert first["ids"] == [0, 4, 9, 14, 19]
    assert first == second
    assert {"gradcam/strength", "gradcam/drift", "gradcam/drift_from_reference"} <= set(first["numbers"])
    assert first["weights"] == without["weights"]
    assert len(list(Path("gradcam").glob("*grid*.jpg"))) == 3
