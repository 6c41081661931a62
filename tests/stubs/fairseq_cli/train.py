"""fairseq-train: the checkpoint is the command line, and whether there was one to go on from.

STUB_TRAIN=fail ends with an error after the first checkpoint; STUB_TRAIN=hang waits for a signal after it, and writes
its process id into the pipe STUB_PIPE; STUB_TRAIN=gpu says of a GPU what fairseq says. STUB_TRAIN=long makes six
updates with a checkpoint and a validation after the third and the last; STUB_TRAIN=cut fails after the fifth.
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
done = json.loads(last.read_text())["updates"] if last.exists() else 0
state = {"arguments": arguments, "resumed": last.exists(), "updates": 1}
if (mode := os.environ.get("STUB_TRAIN")) in ("long", "cut"):
    for update in range(done + 1, 7):
        if mode == "cut" and update > 5:
            sys.exit("error: no space left on device")
        logged = {"epoch": 1, "loss": str(6 / update), "num_updates": str(update), "lr": "0.1", "ups": str(os.getpid())}
        print(f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(logged)}", flush=True)
        if update % 3 == 0:
            logged = {"epoch": 1, "valid_loss": str(7 / update), "valid_num_updates": str(update)}
            print(f"2026-01-01 00:00:00 | INFO | valid | {json.dumps(logged)}", flush=True)
            last.write_text(json.dumps(state | {"updates": update}))
    (folder / "checkpoint_best.pt").write_text(json.dumps(state))
    sys.exit()
last.write_text(json.dumps(state))
updates = {"loss": "2.5", "num_updates": "1"}
print(f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(updates)}", flush=True)
match mode:
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
