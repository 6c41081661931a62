"""fairseq-generate: the same word for every example of the subset, in an order that is not that of the examples.

STUB_GENERATE=drop leaves the first example out, as fairseq does with one that is too long for the model.
"""

import os
import struct
import sys
from pathlib import Path

folder = Path(sys.argv[1])
subset = sys.argv[sys.argv.index("--gen-subset") + 1]
(count,) = struct.unpack_from("<Q", (folder / f"{subset}.source-target.source.idx").read_bytes(), 18)
word = (folder / "dict.target.txt").read_text("utf-8").splitlines()[-3].rpartition(" ")[0]
print("2026-01-01 00:00:00 | INFO | fairseq_cli.generate | a line of the log")
for number in reversed(range(1 if os.environ.get("STUB_GENERATE") == "drop" else 0, count)):
    print(
        f"S-{number}\t{word}\nT-{number}\t{word}\nH-{number}\t-0.5\t{word}\nD-{number}\t-0.5\t{word}\nP-{number}\t-0.5"
    )
