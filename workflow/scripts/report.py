"""All studies on one page that needs nothing else: what was asked, what came out, the plots, and what was run.

The plots are inside the page; nothing is fetched from anywhere. Training curves are links to the runs' folders.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import os
import re
from pathlib import Path

from common import UserError, atomic_open, json_object, run_main

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
pre { font-size: 12px; line-height: 1.35; overflow-x: auto; background: #f6f6f6; padding: 0.8em; }
svg { max-width: 100%; height: auto; }
h2 { border-top: 1px solid #ccc; padding-top: 1em; }
"""


# What may run in a browser: no plot of matplotlib's has any of it.
PROGRAM = re.compile(
    r"<\s*(script|foreignObject|iframe|object|embed)|<\w[^>]*\son\w+\s*=|javascript:|data:text", re.IGNORECASE
)


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    parts = []
    for name, study in args.studies.items():
        parts.append(
            f"<h2 id='{html.escape(name)}'>{html.escape(study['title'])}</h2>\n<p>{html.escape(study['question'])}</p>"
        )
        if "paper" in study:
            parts.append(f"<p>In the paper: {html.escape(study['paper'])}</p>")
        parts += [section(table, args.output) for table in args.table if table.parent.name == name]
    contents = "".join(
        f"<li><a href='#{html.escape(name)}'>{html.escape(study['title'])}</a></li>"
        for name, study in args.studies.items()
    )
    with atomic_open(args.output) as file:
        file.write(
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>Studies of prefix-tuning</title>"
            f"<style>{STYLE}</style></head>\n<body><h1>Studies of prefix-tuning</h1>\n<ul>{contents}</ul>\n"
            + "\n".join(parts)
            + "\n</body></html>\n"
        )


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", type=json_object, required=True, metavar="JSON", help="by name, what its file says"
    )
    parser.add_argument(
        "--table",
        type=Path,
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="{study}/{task}.txt, .tsv and .svg beside it",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page")
    return parser.parse_args(argv)


def section(table: Path, page: Path) -> str:
    """A study on one task: the plot, the table, and what was run."""
    path = table.with_suffix(".svg")
    svg = path.read_text(encoding="utf-8", errors="replace")
    if "<svg" not in svg or PROGRAM.search(svg):
        raise UserError(f"{path}: not a plot of study.py's; remove it, and it is made again")
    svg = svg[svg.index("<svg") :].replace('id="', f'id="{table.parent.name}-{table.stem}-')  # unique on the page
    svg = svg.replace('href="#', f'href="#{table.parent.name}-{table.stem}-')
    svg = svg.replace("url(#", f"url(#{table.parent.name}-{table.stem}-")
    text = html.escape(table.read_text(encoding="utf-8"))
    return (
        f"<h3>{html.escape(table.stem)}</h3>\n{svg}\n<pre>{text}</pre>\n{what_was_run(table.with_suffix('.tsv'), page)}"
    )


def what_was_run(tsv: Path, page: Path) -> str:
    """Flags, seeds, versions and hashes of every row, folded up, with links to the training curves."""
    with open(tsv, encoding="utf-8", newline="") as file:
        runs = dict.fromkeys(row["run"] for row in csv.DictReader(file, delimiter="\t"))
    lines = []
    for run in runs:
        path = Path(run) / "run.json"
        if not path.exists():
            lines.append(f"{run}\n  no record: it failed, or has not finished")
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        versions = " ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
        lines.append(f"{run}\n  {record['arch']} seed {record['seed']}: {' '.join(record['flags'])}\n  {versions}")
        lines += [f"  {digest}  {name}" for name, digest in record["data_sha256"].items()]
    body = html.escape("\n".join(lines))
    curves = [Path(run) / "curve.svg" for run in runs if (Path(run) / "curve.svg").exists()]
    links = [
        f"<a href='{html.escape(os.path.relpath(c, page.parent))}'>{html.escape(str(c.parent))}</a>" for c in curves
    ]
    return (
        f"<details><summary>{len(runs)} runs: flags, seeds, versions, SHA-256</summary><pre>{body}</pre>"
        f"{'<p>Training curves: ' + ', '.join(links) + '</p>' if links else ''}</details>"
    )


if __name__ == "__main__":
    run_main(main)
