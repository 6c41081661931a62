"""fairseq-train: the checkpoint is the command line, and whether there was one to go on from.

STUB_TRAIN=fail ends with an error after the first checkpoint; STUB_TRAIN=hang waits for a signal after it, and writes
its process id into the pipe STUB_PIPE; STUB_TRAIN=gpu says of a GPU what fairseq says.
"""

import json
import os
import signal
import sys
from pathlib import Path

arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--save-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
last = folder / "checkpoint_last.pt"
state = {"arguments": arguments, "resumed": last.exists(), "updates": 1}
last.write_text(json.dumps(state))
updates = {"loss": "2.5", "num_updates": "1"}
print(f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(updates)}", flush=True)
match os.environ.get("STUB_TRAIN"):
    case "gpu":
        gpu = "rank   0: capabilities =  9.0  ; total memory = 139.811 GB ; name = NVIDIA H200      "
        print(f"2026-01-01 00:00:00 | INFO | fairseq.utils | {gpu}", flush=True)
        for free in ("130.5", "120.3", "125.0"):
            print(f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(updates | {'gb_free': free})}", flush=True)
    case "fail":
        print("Traceback (most recent call last):\n  ...\nerror: --base-model x: no such folder", file=sys.stderr)
        sys.exit(1)
    case "hang":
        Path(os.environ["STUB_PIPE"]).write_text(str(os.getpid()))
        signal.pause()
(folder / "checkpoint_best.pt").write_text(json.dumps(state))
