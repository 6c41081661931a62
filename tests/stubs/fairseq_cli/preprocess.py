"""fairseq-preprocess: real files in its mmap format, in milliseconds."""

import argparse
import shutil
import struct
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("--source-lang", "--target-lang", "--srcdict", "--destdir", "--workers", "--dataset-impl"):
    parser.add_argument(option)
for split in ("train", "valid", "test"):
    parser.add_argument(f"--{split}pref")
parser.add_argument("--joined-dictionary", action="store_true")
parser.add_argument("--only-source", action="store_true")
args = parser.parse_args()

folder = Path(args.destdir)
folder.mkdir(parents=True)
index = {line.rpartition(" ")[0]: 4 + n for n, line in enumerate(Path(args.srcdict).read_text("utf-8").splitlines())}
# Endings of the text, of the dictionary and of what becomes of the text.
sides = [("", "dict.txt", "")] if args.only_source else []
sides = sides or [(f".{side}", f"dict.{side}.txt", f".source-target.{side}") for side in ("source", "target")]
for ending, dictionary, binarised in sides:
    shutil.copy(args.srcdict, folder / dictionary)
    for split in ("train", "valid", "test"):
        if prefix := getattr(args, f"{split}pref"):
            lines = Path(f"{prefix}{ending}").read_text("utf-8").splitlines()
            rows = [[*(index.get(token, 3) for token in line.split()), 2] for line in lines]
            stem = folder / f"{split}{binarised}"
            data = b"".join(struct.pack(f"<{len(row)}H", *row) for row in rows)
            Path(f"{stem}.bin").write_bytes(data)
            sizes = struct.pack(f"<{len(rows)}i", *map(len, rows))
            starts = [2 * sum(map(len, rows[:n])) for n in range(len(rows))]
            header = struct.pack("<9sQBQ", b"MMIDIDX\0\0", 1, 8, len(rows))
            Path(f"{stem}.idx").write_bytes(header + sizes + struct.pack(f"<{len(rows)}q", *starts))
