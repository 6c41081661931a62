"""Score hypotheses against references: several metrics at once, with 95 % intervals, signatures and splits.

    score.py --task webnlg --hypotheses FILE               the official scores of a task, on data/webnlg/test.jsonl
    score.py --protocol dart --hypotheses FILE --references R0 R1 R2          the same on plain files, without any data
    score.py --metric rouge --metric 'bleu={"lowercase": true}' --hypotheses FILE --examples test.jsonl
    score.py --task xsum --hypotheses A --compare B C                          differences, and whether they are chance

Scores go from 0 to 100, but for NIST (open above) and CIDEr (0 to 10); TER may exceed 100 and is better when small.
A table goes to stdout, and with --output everything to a JSON file. docs/scores.md says what is computed how.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import UserError, positive, read_jsonl, read_lines, run_main, sha256_file, single_line, write_json
from metrics import (
    E2E,
    METRICS,
    PROTOCOLS,
    SEEN,
    UNSEEN,
    Segments,
    Statistics,
    check_options,
    notices,
    statistics,
    unavailable,
)
from significance import SAMPLES, SEED, TRIALS, compare, intervals

PROJECT = Path(__file__).resolve().parents[2]
# Scores on scales of their own want more digits than percentages.
DIGITS = {"nist": 4, "cider": 4}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    metrics = wanted_metrics(args)
    references, groups = read_references(args, metrics)
    systems = [read_hypotheses(path, references, args) for path in [args.hypotheses, *args.compare]]
    scored, missing, failed, notes = {}, {}, {}, {}
    if any(options.get("protocol") == "webnlg" for options in metrics.values()) and (reason := _no_categories(groups)):
        print(f"notice: no scores for seen and unseen categories: {reason}", file=sys.stderr)
    for metric, options in metrics.items():
        if reason := unavailable(metric, options):
            missing[metric] = reason
            print(f"{metric} {reason}", file=sys.stderr)
            continue
        segments = [Segments(hypotheses, references, args.threads, args.java_memory) for hypotheses in systems]
        try:
            scored[metric] = [with_splits(statistics(metric, each, options), groups, options) for each in segments]
            notes[metric] = list(dict.fromkeys(note for each in segments for note in notices(metric, each, options)))
        except UserError as error:  # of a Java program, say: no reason to lose the other scores
            failed[metric] = f"failed: {error}"
    if not scored:
        raise UserError("; ".join(failed.values()) or "nothing could be computed; what is missing is said above")
    for metric, found in notes.items():
        for note in found:
            print(f"notice: {metric}: {note}", file=sys.stderr)
    report = make_report(args, scored, missing | failed, groups, notes)
    if args.output:
        write_json(args.output, report)
    sys.stdout.write(text_report(report))
    if failed:
        raise UserError("; ".join(f"{metric} {reason}" for metric, reason in failed.items()))


# Input ----------------------------------------------------------------------------------------------------------------


def wanted_metrics(args: argparse.Namespace) -> dict[str, dict]:
    """Metrics with their options: those named, those of the protocol, or those of the task's preset."""
    if args.metric:
        metrics = {name: options for name, options in args.metric}
        if len(metrics) < len(args.metric):
            raise UserError("--metric names a metric twice")
    elif args.protocol:
        metrics = {name: {"protocol": args.protocol} for name in PROTOCOLS[args.protocol]}
    elif args.task:
        metrics = _metrics_of_task(args.task)
    else:
        raise UserError("say what to compute: --task, --protocol or --metric")
    if args.by_group:
        metrics = {name: {**options, "groups": True} for name, options in metrics.items()}
    for name, options in metrics.items():
        check_options(name, options)
    return metrics


def _metrics_of_task(task: str) -> dict[str, dict]:
    """What configs/tasks/{task}.yaml says, here or else in the project, with the changes of config.yaml."""
    from config import Configuration, load_yaml

    folders = [folder for folder in (Path("configs"), PROJECT / "configs") if folder.is_dir()]
    file = next(folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file())
    return Configuration(load_yaml(file), str(file), folders).task(task)["metrics"]


def reference_files(args: argparse.Namespace) -> list[Path]:
    """The files that references come from: one test set, or text files."""
    return args.references or [args.examples or Path("data") / args.task / "test.jsonl"]


def read_references(args: argparse.Namespace, metrics: dict[str, dict]) -> tuple[list[list[str]], list[str | None]]:
    """(references of every segment, its group); an empty reference is none, which a protocol may count as it likes.

    Raises:
        UserError: a segment has no reference, or files of references differ in length.
    """
    if args.references:
        in_groups = any(options.get("protocol") in E2E for options in metrics.values())
        references = _read_plain(args.references, in_groups)
        return references, [None] * len(references)
    [path] = reference_files(args)
    if not (args.examples or path.exists()):
        raise UserError(
            f"{path}: not there yet; make it with `snakemake --cores 2 {path}`, or give --examples or --references"
        )
    references, groups = [], []
    for number, row in read_jsonl(path):
        texts = row.get("references")
        if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise UserError(f"{path}, line {number}: no references")
        references.append(_with_text(texts, f"{path}, line {number}"))
        group = row.get("group")
        if not (group is None or isinstance(group, str)):
            raise UserError(f"{path}, line {number}: the group is not a text")
        groups.append(group)
    if not references:
        raise UserError(f"{path}: no examples")
    return references, groups


def _read_plain(paths: list[Path], in_groups: bool) -> list[list[str]]:
    """References from text files: one file each, line by line.

    A single file may also have the form in which E2E gives them: a table with the columns mr and ref, or for its
    protocol the references of each segment in lines of their own, with an empty line after them.
    """
    if len(paths) == 1 and {"mr", "ref"} <= set(_columns(paths[0])):
        return _references_by_mr(paths[0])
    files = [_read_texts(path) for path in paths]
    if in_groups and len(files) == 1 and not all(line.strip() for line in files[0]):
        groups: list[list[str]] = [[]]
        for line in files[0]:
            if line.strip():
                groups[-1].append(line)
            elif groups[-1]:
                groups.append([])
        references = [group for group in groups if group]
    else:
        for path, lines in zip(paths, files, strict=True):
            if len(lines) != len(files[0]):
                raise UserError(
                    f"{path} has {len(lines)} lines and {paths[0]} {len(files[0])}; references stand line by line"
                )
        names = ", ".join(map(str, paths))
        references = [
            _with_text(list(texts), f"{names}, line {number}")
            for number, texts in enumerate(zip(*files, strict=True), 1)
        ]
    if not references:
        raise UserError(f"{paths[0]}: no references")
    return references


def _columns(path: Path) -> list[str]:
    """The names of a table's columns, from its first line; a line with spaces is text, not the head of a table."""
    line = next((line for _, line in read_lines(path)), "")
    return [] if " " in line else [name.strip('"').lower() for name in line.split("\t" if "\t" in line else ",")]


def _references_by_mr(path: Path) -> list[list[str]]:
    from readers import csv_rows

    groups: dict[str, list[str]] = {}
    for _, row in csv_rows(path, "mr", "ref"):
        groups.setdefault(row["mr"], []).append(single_line(row["ref"]))
    return [_with_text(texts, f"{path}, {mr}") for mr, texts in groups.items()]


def _read_texts(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        UserError: the file has another form: a table, JSON or XML.
    """
    lines = [line for _, line in read_lines(path)]
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("csv", "tsv") or "mr" in _columns(path):
        raise UserError(
            f"{path}: a table, but expected text, one line per example; only references may be a table, a single one "
            "with the columns mr and ref, as E2E's"
        )
    if kind in ("json", "jsonl") or lines and lines[0].startswith(('{"', "[{")):
        raise UserError(
            f'{path}: JSON, but expected text, one line per example; give JSON lines with "references" as --examples'
        )
    if kind in ("xml", "sgm") or lines and lines[0].startswith("<?xml"):
        raise UserError(
            f"{path}: XML, but expected text, one line per example; make JSON lines of a release with prepare.py "
            "--reader webnlg, and give them as --examples"
        )
    return lines


def _with_text(texts: list[str], where: str) -> list[str]:
    if kept := [text for text in texts if text.strip()]:
        return kept
    raise UserError(f"{where}: no references")


def read_hypotheses(path: Path, references: list, args: argparse.Namespace) -> list[str]:
    """One hypothesis a line, as many as there are references.

    Raises:
        UserError: the numbers differ.
    """
    hypotheses = _read_texts(path)
    if len(hypotheses) != len(references):
        source = ", ".join(map(str, reference_files(args)))
        raise UserError(
            f"{path} has {len(hypotheses)} lines and {source} {len(references)} examples; "
            "there must be one hypothesis per example, in order"
        )
    if empty := [number for number, text in enumerate(hypotheses, 1) if not text.strip()]:
        print(
            f"notice: {path}: {len(empty):,} of {len(hypotheses):,} hypotheses are empty, the first in line {empty[0]}",
            file=sys.stderr,
        )
    return hypotheses


# Scores ---------------------------------------------------------------------------------------------------------------


def with_splits(whole: Statistics, groups: list[str | None], options: dict) -> dict[str, Statistics]:
    """Statistics of the whole test set ("all") and of its splits, by name."""
    return {"all": whole} | {name: whole.subset(segments) for name, segments in split_segments(groups, options).items()}


def split_segments(groups: list[str | None], options: dict) -> dict[str, list[int]]:
    """The segments of every split: seen and unseen by WebNLG's protocol, and each group where that is asked for.

    Raises:
        UserError: groups are asked for where there are none.
    """
    splits: dict[str, list[int]] = {}
    named = {group for group in groups if group is not None}
    if options.get("protocol") == "webnlg" and not _no_categories(groups):
        for name, wanted in (("seen", True), ("unseen", False)):
            splits[name] = [index for index, group in enumerate(groups) if (group in SEEN) == wanted]
    if options.get("groups"):
        if not named:
            raise UserError("scores by group were asked for, but the examples have no groups")
        for name in sorted(named):
            label = f"group {name}" if name in ("all", "seen", "unseen", "no group") else name
            splits[label] = [index for index, group in enumerate(groups) if group == name]
        splits["no group"] = [index for index, group in enumerate(groups) if group is None]
    return {name: segments for name, segments in splits.items() if segments}


def _no_categories(groups: list[str | None]) -> str | None:
    """Why the groups of the examples are not the categories of WebNLG 2017, or None where they are."""
    if None in groups:
        return "these need --examples, in which each example has its category as `group`"
    strange = [group for group in groups if group not in SEEN | UNSEEN]
    return f"{len(strange):,} examples have a group that is no category, such as {strange[0]!r}" if strange else None


def score_name(name: str, split: str) -> str:
    """bleu of the whole test set, bleu:seen of a split."""
    return name if split == "all" else f"{name}:{split}"


def make_report(
    args: argparse.Namespace, scored: dict, unavailable: dict[str, str], groups: list, notes: dict[str, list[str]]
) -> dict:
    """What goes into the JSON file: for each metric its scores, intervals, signature, notices and comparisons."""
    report = {
        "bootstrap": {"samples": args.samples, "seed": args.seed},
        "compared": [str(path) for path in args.compare],
        "count": len(groups),
        "hypotheses": str(args.hypotheses),
        "hypotheses_sha256": sha256_file(args.hypotheses),
        "references_sha256": {str(path): sha256_file(path) for path in reference_files(args)},
        "metrics": {},
        "unavailable": unavailable,
    }
    for metric, (baseline, *others) in scored.items():
        entry = {"signature": baseline["all"].signature, "scores": {}, "intervals": {}, "counts": {}}
        if notes[metric]:
            entry["notices"] = notes[metric]
        for split, part in baseline.items():
            entry["counts"][split] = len(part.rows)
            for name, score, interval in zip(
                part.names, part.scores(), intervals(part, args.samples, args.seed), strict=True
            ):
                entry["scores"][score_name(name, split)] = score
                entry["intervals"][score_name(name, split)] = list(interval)
        if others:
            entry["comparisons"] = {
                str(path): _compared(baseline, other, args) for path, other in zip(args.compare, others, strict=True)
            }
        report["metrics"][metric] = entry
    return report


def _compared(baseline: dict[str, Statistics], other: dict[str, Statistics], args: argparse.Namespace) -> dict:
    result = {}
    for split, part in other.items():
        tests = compare(baseline[split], part, args.samples, args.trials, args.seed)
        for name, score, before, test in zip(part.names, part.scores(), baseline[split].scores(), tests, strict=True):
            result[score_name(name, split)] = {"score": score, "difference": score - before, **test._asdict()}
    return result


# Output ---------------------------------------------------------------------------------------------------------------


def text_report(report: dict) -> str:
    """The table for people: scores with intervals, comparisons below them, signatures at the end."""
    from table import aligned

    counts: dict[str, int] = {}
    columns: dict[str, dict[str, str]] = {}  # score -> split -> cell
    for entry in report["metrics"].values():
        counts |= entry["counts"]
        for name in entry["scores"]:
            score, _, split = name.partition(":")
            columns.setdefault(score, {})[split or "all"] = with_interval(entry, name)
    rows = [["split", "segments", *columns]]
    for split, count in counts.items():
        rows.append([split, f"{count:,}", *(cells.get(split, "") for cells in columns.values())])
    lines = [
        f"{report['hypotheses']}; in brackets 95 % intervals of {report['bootstrap']['samples']:,} bootstrap samples",
        "",
        *aligned(rows, left=1),
    ]
    for path in report["compared"]:
        rows = [["score", "score of it", "difference", "p (bootstrap)", "p (randomisation)"]]
        for entry in report["metrics"].values():
            for name, found in entry["comparisons"][path].items():
                digits = digits_of(name)
                rows.append(
                    [name, f"{found['score']:.{digits}f}", f"{found['difference']:+.{digits}f}"]
                    + [f"{found[test]:.4f}" for test in ("bootstrap", "randomisation")]
                )
        lines += ["", f"{path}, against the first", "", *aligned(rows, left=1)]
    lines += ["", *(f"{metric}: {entry['signature']}" for metric, entry in report["metrics"].items())]
    lines += [
        f"notice: {metric}: {note}" for metric, entry in report["metrics"].items() for note in entry.get("notices", [])
    ]
    lines += [f"{metric}: not computed; it {reason}" for metric, reason in report["unavailable"].items()]
    return "\n".join(lines) + "\n"


def digits_of(name: str) -> int:
    """How many digits of a score are shown."""
    return DIGITS.get(name.partition(":")[0], 2)


def with_interval(entry: dict, name: str) -> str:
    """A score with its interval, such as 45.13 [44.01, 46.22]."""
    low, high = entry["intervals"][name]
    digits = digits_of(name)
    return f"{entry['scores'][name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def named_metric(text: str) -> tuple[str, dict]:
    """The type of --metric: a metric's name, with its options as a JSON object after a "="."""
    name, separator, options = text.partition("=")
    if name not in METRICS:
        raise argparse.ArgumentTypeError(f"no metric is called {name!r}; there are: {', '.join(METRICS)}")
    try:
        value = json.loads(options) if separator else {}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the options of {name} are not JSON ({error}): {options}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"the options of {name} are not a JSON object: {options}")
    return name, value


def not_negative(text: str) -> int:
    """The type of a number that is at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypotheses", required=True, type=Path, metavar="FILE", help="one detokenised line each")
    what = parser.add_argument_group("what to compute", "one of these; --metric goes before the others")
    what.add_argument("--task", help="the metrics of configs/tasks/TASK.yaml, on data/TASK/test.jsonl")
    what.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="the official scores of a data set: its metrics and preprocessing"
    )
    what.add_argument(
        "--metric",
        type=named_metric,
        action="append",
        metavar="NAME[=JSON]",
        help=f"a metric ({', '.join(METRICS)}), such as 'bleu={{\"lowercase\": true}}'; several may be given",
    )
    what.add_argument("--by-group", action="store_true", help="every score for each group of the examples as well")
    against = parser.add_argument_group("what to compare with")
    against.add_argument(
        "--examples",
        type=Path,
        metavar="FILE",
        help='the test set as JSON lines, as prepare.py writes it: {"references": ["...", "..."], "group": "Airport"}; '
        "group may be left out: it is for --by-group, and for WebNLG's seen and unseen categories",
    )
    against.add_argument(
        "--references",
        type=Path,
        action="extend",
        nargs="+",
        metavar="FILE",
        help="references in text files instead: R0 R1 R2 have the first, second and third reference of each example, "
        "one a line; an empty line is a missing reference. For the protocol e2e one file may have all references of an "
        "example in lines of their own, and an empty line after them. One CSV or TSV file with the columns mr and ref, "
        "as E2E's, is grouped by mr",
    )
    against.add_argument(
        "--compare",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="other systems' hypotheses, to test against",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--samples", type=positive, default=SAMPLES, metavar="N", help="bootstrap samples [%(default)s]"
    )
    parser.add_argument(
        "--trials", type=positive, default=TRIALS, metavar="N", help="trials of the randomisation test [%(default)s]"
    )
    parser.add_argument(
        "--seed", type=not_negative, default=SEED, metavar="N", help="of both tests [%(default)s, sacrebleu's]"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="processes; changes no score [1]")
    parser.add_argument(
        "--java-memory", default="2G", metavar="SIZE", help="for METEOR and the tokeniser [%(default)s]"
    )
    args = parser.parse_args(argv)
    if args.references and args.examples:
        parser.error("--references and --examples are two sources of the same; give one")
    if not (args.references or args.examples or args.task):
        parser.error("say what to compare with: --examples, --references, or --task and its data/TASK/test.jsonl")
    return args


if __name__ == "__main__":
    run_main(main)
