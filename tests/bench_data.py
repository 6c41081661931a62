"""How long preparing takes and how much memory, beside the straightforward single-process use of the same packages.

    python tests/bench_data.py                 # XSUM at its full size, of made-up articles
    python tests/bench_data.py --data DIR      # E2E and WebNLG too, from a mirror that has them

What is beside it reads the release with tarfile, csv or xml.etree, cleans each text and writes JSON lines: no checks.
Each runs in a process of its own; its peak is the sum over it and its workers. The figures go to stdout.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import psutil

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

import fetch  # noqa: E402 -- found by the line above
from common import single_line  # noqa: E402
from readers import _XSUM_MARKER, XSUM_BOILERPLATE, _webnlg_original, linearise_e2e  # noqa: E402

ARTICLES = {"train": 204_045, "validation": 11_332, "test": 11_334}
PARAGRAPHS = 18  # of about 21 words each: 2.4 kB, the mean of the articles that were published in the raw form


def make_xsum(folder: Path, articles: dict[str, int]) -> dict[str, Path]:
    """An archive of made-up articles in the raw form, in an order that is not that of the splits."""
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    lines = [" ".join(rng.choices(words, k=rng.randint(12, 30))).encode() for _ in range(40_000)]
    ids = [str(10_000_000 + number) for number in range(sum(articles.values()))]
    rng.shuffle(ids)
    splits, begin = {}, 0
    for split, count in articles.items():
        splits[split] = ids[begin : begin + count]
        begin += count
    (folder / "splits.json").write_text(json.dumps(splits))
    with tarfile.open(folder / "xsum.tar.gz", "w:gz", compresslevel=6) as tar:
        for id_ in sorted(ids):
            url = f"[SN]URL[SN]\nhttp://www.bbc.co.uk/news/uk-{id_}\n\n[SN]TITLE[SN]\nx\n\n".encode()
            body = b"\n".join(rng.choices(lines, k=rng.randint(4, 2 * PARAGRAPHS - 4)))
            text = url + b"[SN]FIRST-SENTENCE[SN]\n" + rng.choice(lines) + b"\n\n[SN]RESTBODY[SN]\n" + body + b"\n"
            member = tarfile.TarInfo(f"bbc-summary-data/{id_}.summary")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return {"archive": folder / "xsum.tar.gz", "splits": folder / "splits.json"}


# The straightforward way ----------------------------------------------------------------------------------------------


def write(path: Path, rows) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def plain_xsum(inputs: dict[str, Path], output: Path) -> None:
    articles = {}
    with tarfile.open(inputs["archive"], "r:gz") as tar:
        for member in tar:
            sections, lines = {}, []
            for line in tar.extractfile(member).read().decode("utf-8").split("\n"):
                if marker := _XSUM_MARKER.match(line):
                    lines = sections.setdefault(marker[1], [])
                elif line.strip() and line not in XSUM_BOILERPLATE:
                    lines.append(line)
            source, reference = ("\n".join(sections[name]) for name in ("RESTBODY", "FIRST-SENTENCE"))
            id_ = Path(member.name).stem
            articles[id_] = {"id": id_, "source": single_line(source), "references": [single_line(reference)]}
    for split, ids in json.loads(inputs["splits"].read_text()).items():
        write(output / f"{split}.jsonl", (articles[id_] for id_ in ids))


def plain_e2e(inputs: dict[str, Path], output: Path) -> None:
    for split, path in inputs.items():
        groups: dict[str, list[str]] = {}
        with open(path, encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                source = linearise_e2e(row["mr"], "")
                groups.setdefault(f"{number} {source}" if split == "train" else source, []).append(
                    single_line(row["ref"])
                )
        write(output / f"{split}.jsonl", ({"source": source, "references": texts} for source, texts in groups.items()))


def plain_webnlg(inputs: dict[str, Path], output: Path) -> None:
    for split, path in inputs.items():
        rows = []
        if path.suffix == ".xml":
            trees = [xml.etree.ElementTree.parse(path)]
        else:
            with tarfile.open(path, "r:gz") as tar:
                trees = [xml.etree.ElementTree.parse(tar.extractfile(member)) for member in tar]
        for tree in trees:
            for entry in tree.iter("entry"):
                triples = [tuple(triple.text.split(" | ")) for triple in entry.iter("mtriple")]
                texts = [single_line(lex.text) for lex in entry.iter("lex") if lex.get("comment") == "good"]
                rows.append({"source": single_line(_webnlg_original(triples)), "references": texts})
        write(output / f"{split}.jsonl", rows)


PLAIN = {"xsum_raw": plain_xsum, "e2e": plain_e2e, "webnlg": plain_webnlg}


# Measuring ------------------------------------------------------------------------------------------------------------


def measured(command: list[str]) -> tuple[float, float, float]:
    """(seconds, seconds of CPU, peak megabytes) of a command with its workers; what they share counts once."""
    begin, before, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    reader = threading.Thread(target=process.stderr.read)
    reader.start()
    whole = psutil.Process(process.pid)
    while process.poll() is None:
        memory = 0
        for one in [whole, *_children(whole)]:
            try:
                memory += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak = max(peak, memory)
        time.sleep(0.1)
    reader.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - begin, used, peak / 1e6


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def compare(reader: str, inputs: dict[str, Path], folder: Path, workers: list[int]) -> None:
    pairs = [f"{key}={path}" for key, path in inputs.items()]
    runs = [("plain", [sys.executable, __file__, "--plain", reader, str(folder / "plain"), *pairs])]
    for count in workers:
        command = [sys.executable, str(SCRIPTS / "prepare.py"), "--reader", reader, "--workers", str(count)]
        command += ["--output-dir", str(folder / str(count)), *(f"--input={pair}" for pair in pairs)]
        runs.append((f"prepare.py, {count} workers", command))
    for name, command in runs:
        seconds, used, peak = measured(command)
        print(f"{reader:10}{name:24}{seconds:8.1f} s{used:8.1f} s of CPU{peak:8.0f} MB", flush=True)
    outputs = [(folder / str(count) / "data.json").read_bytes() for count in workers]
    if len(set(outputs)) != 1:
        sys.exit(f"{reader}: the files depend on the number of workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a mirror with e2e/ and webnlg2017/")
    parser.add_argument("--share", type=float, default=1.0, help="of XSUM's size [%(default)s]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, multiprocessing.cpu_count()])
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--plain", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        reader, output, *pairs = args.plain
        Path(output).mkdir()
        PLAIN[reader]({key: Path(path) for key, _, path in (pair.partition("=") for pair in pairs)}, Path(output))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.data:
            e2e = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}
            (folder / "e2e").mkdir()
            compare("e2e", {key: args.data / "e2e" / file for key, file in e2e.items()}, folder / "e2e", args.workers)
            (folder / "webnlg").mkdir()
            webnlg = {"test": args.data / "webnlg2017" / "test" / "testdata_with_lex.xml"}
            for key, part in (("train", "train"), ("valid", "dev")):
                webnlg[key] = folder / f"{part}.tar.gz"
                fetch.pack(args.data / "webnlg2017" / part, webnlg[key])
            compare("webnlg", webnlg, folder / "webnlg", args.workers)
        articles = {split: max(1, int(count * args.share)) for split, count in ARTICLES.items()}
        inputs = make_xsum(folder, articles)
        size = inputs["archive"].stat().st_size
        print(f"XSUM made up: {sum(articles.values()):,} articles, {size / 1e6:.0f} MB packed", flush=True)
        (folder / "xsum").mkdir()
        compare("xsum_raw", inputs, folder / "xsum", args.workers)


if __name__ == "__main__":
    main()
