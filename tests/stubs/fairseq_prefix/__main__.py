"""export, import, base, inspect: a prefix is a copy of its checkpoint."""

import json
import shutil
import sys
from pathlib import Path

command, *files = [argument for argument in sys.argv[1:] if argument != "--json"]
if command in ("export", "import"):
    shutil.copyfile(files[0], files[1])
if command == "base":
    Path(files[0]).write_text(json.dumps({"arguments": files}))
if command in ("base", "inspect"):
    state = json.loads(Path(files[0]).read_text())
    arguments = state["arguments"]
    trained = 0 if "--lr" not in arguments else 50
    numbers = {"trained_parameters": trained, "stored_parameters": trained // 5, "base_parameters": 1000}
    print(json.dumps({**numbers, "base_fingerprint": "f00d", "updates": state.get("updates")}))
