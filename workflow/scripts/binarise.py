"""Binarise subword text with fairseq-preprocess, and check that nothing was lost or changed on the way.

The text is pairs, {split}.source and {split}.target, or for a language model lines alone, {split}.text.

Every line must come back with as many tokens as the text has, and no token may have become `<unk>` that is not `<unk>`
in the text: a dictionary that does not belong to the vocabulary is found here and not after a training.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from common import SPLITS, UserError, progress, read_lines, run_main

UNKNOWN = 3  # index of <unk> in every fairseq dictionary, after <s>, <pad> and </s>
# Codes of element types in the header of a fairseq index file.
ELEMENT_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    sides = ("text",) if args.monolingual else ("source", "target")
    texts = {f"{split}.{side}": args.input_dir / f"{split}.{side}" for split in args.splits for side in sides}
    words = known_words(args.dict)
    lengths = {name: check_text(path, words) for name, path in texts.items()}
    for split in args.splits:
        first, last = (len(lengths[f"{split}.{side}"]) for side in (sides[0], sides[-1]))
        if first != last:
            raise UserError(f"{args.input_dir}: {split}.source has {first} lines and {split}.target {last}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix=".preprocess.") as folder:
        made = Path(folder) / "bin"
        tokens = sum(int(line_lengths.sum()) for line_lengths in lengths.values())
        preprocess(args, made, tokens * (2 if len(words) < 65_000 else 4))
        for name, path in texts.items():
            split, side = name.split(".")
            check_binary(made / (split if args.monolingual else f"{split}.source-target.{side}"), path, lengths[name])
        for path in sorted(made.iterdir()):
            if path.suffix in (".bin", ".idx") or path.name.startswith("dict."):
                os.replace(path, args.output_dir / path.name)
    for name, line_lengths in lengths.items():
        print(f"{name}: {len(line_lengths)} lines, {int(line_lengths.sum())} tokens with </s>", file=sys.stderr)


def known_words(dictionary: Path) -> set[str]:
    """The words that a text may have: those of the dictionary, and `<unk>`. fairseq adds `</s>` and the like itself."""
    words = {"<unk>"}
    for number, line in read_lines(dictionary):
        word, separator, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not (separator and word and count.isdecimal()):
            raise UserError(f"{dictionary}, line {number}: not a word and a count, as a fairseq dictionary has them")
        words.add(word)
    return words


def check_text(path: Path, words: set[str]) -> np.ndarray:
    """Tokens per line of a subword text, each line's `</s>` included.

    Raises:
        UserError: a line is empty, or a token is not in the dictionary.
    """
    lengths, missing = [], Counter()
    for number, line in read_lines(path):
        tokens = line.split()
        if not tokens:
            raise UserError(f"{path}, line {number}: the line is empty")
        lengths.append(len(tokens) + 1)
        if not words.issuperset(tokens):
            missing.update(token for token in tokens if token not in words)
    if not lengths:
        raise UserError(f"{path}: no lines")
    if missing:
        some = ", ".join(repr(token) for token, _ in missing.most_common(3))
        raise UserError(
            f"{path}: {missing.total()} tokens ({len(missing)} different, such as {some}) are not in the dictionary; "
            "encode with the vocabulary that the dictionary belongs to"
        )
    return np.array(lengths, dtype=np.int64)


def preprocess(args: argparse.Namespace, destination: Path, expected_bytes: int) -> None:
    """Run fairseq-preprocess with this interpreter; a bar follows the size of what it has written."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--srcdict", str(args.dict)]
    if args.monolingual:
        command.append("--only-source")
    else:
        command += ["--source-lang", "source", "--target-lang", "target", "--joined-dictionary"]
    for split in args.splits:
        command += [f"--{split}pref", str(args.input_dir / (f"{split}.text" if args.monolingual else split))]
    command += ["--workers", str(args.workers)]
    command += ["--dataset-impl", "mmap", "--destdir", str(destination)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            with progress(None, "fairseq-preprocess", total=expected_bytes, unit="B", unit_scale=True) as bar:
                while process.poll() is None:
                    try:
                        process.wait(timeout=1)
                    except subprocess.TimeoutExpired:
                        written = sum(path.stat().st_size for path in destination.glob("*.bin"))
                        bar.update(min(written, expected_bytes) - bar.n)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        output = log.read()
    if process.returncode:
        reason = output.strip().rpartition("\n")[2] or f"exit status {process.returncode}"
        raise UserError(f"{args.input_dir}: fairseq-preprocess failed ({reason})")


def check_binary(prefix: Path, text: Path, lengths: np.ndarray) -> None:
    """Compare a binarised file with the lines it was made from: tokens per line, and the number of `<unk>`."""
    sizes, element_type = read_index(Path(f"{prefix}.idx"))
    if not np.array_equal(sizes, lengths):
        raise UserError(
            f"{text}: fairseq-preprocess made {len(sizes)} examples of {len(lengths)} lines, or changed some"
        )
    tokens = np.memmap(f"{prefix}.bin", dtype=element_type, mode="r")
    in_text = sum(line.split().count("<unk>") for _, line in read_lines(text))
    unknown = int((tokens == UNKNOWN).sum())
    if len(tokens) != sizes.sum() or unknown != in_text:
        raise UserError(f"{text}: {unknown} tokens became <unk> where the text has {in_text}")


def read_index(path: Path) -> tuple[np.ndarray, type]:
    """(tokens per example, element type) of a fairseq mmap index."""
    data = path.read_bytes()
    form = struct.Struct("<9sQBQ")
    magic, version, code, count = form.unpack_from(data.ljust(form.size, b"\0"))
    complete = len(data) >= form.size + 4 * count
    if magic != b"MMIDIDX\0\0" or version != 1 or code not in ELEMENT_TYPES or not complete:
        raise UserError(f"{path}: not an index of fairseq's mmap format")
    return np.frombuffer(data, dtype=np.int32, count=count, offset=form.size), ELEMENT_TYPES[code]


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dir", required=True, type=Path, help="holds the text of every split")
    parser.add_argument("--monolingual", action="store_true", help="{split}.text, not {split}.source and .target")
    parser.add_argument("--dict", required=True, type=Path, help="the base's dictionary, for both sides")
    parser.add_argument("--output-dir", required=True, type=Path, help="where the binarised data is put")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which there are (default: all three)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
