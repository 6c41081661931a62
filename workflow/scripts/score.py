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

from common import UserError, positive, read_jsonl, read_lines, run_main, sha256_file, write_json
from metrics import METRICS, PROTOCOLS, SEEN, Segments, Statistics, check_options, statistics, unavailable
from significance import SAMPLES, SEED, TRIALS, compare, intervals

PROJECT = Path(__file__).resolve().parents[2]
# Scores on scales of their own want more digits than percentages.
DIGITS = {"nist": 4, "cider": 4}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    metrics = wanted_metrics(args)
    references, groups = read_references(args, metrics)
    systems = [read_hypotheses(path, references, args) for path in [args.hypotheses, *args.compare]]
    scored, missing, failed = {}, {}, {}
    for metric, options in metrics.items():
        if reason := unavailable(metric, options):
            missing[metric] = reason
            print(f"{metric} {reason}", file=sys.stderr)
            continue
        segments = [Segments(hypotheses, references, args.threads, args.java_memory) for hypotheses in systems]
        try:
            scored[metric] = [with_splits(statistics(metric, each, options), groups, options) for each in segments]
        except UserError as error:  # of a Java program, say: no reason to lose the other scores
            failed[metric] = f"failed: {error}"
    if not scored:
        raise UserError("; ".join(failed.values()) or "nothing could be computed; what is missing is said above")
    report = make_report(args, scored, missing | failed, groups)
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
        in_groups = any(options.get("protocol") == "e2e" for options in metrics.values())
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
    """References from text files: one file each, line by line; e2e's one file has groups with empty lines between."""
    files = [[line for _, line in read_lines(path)] for path in paths]
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


def _with_text(texts: list[str], where: str) -> list[str]:
    if kept := [text for text in texts if text.strip()]:
        return kept
    raise UserError(f"{where}: no references")


def read_hypotheses(path: Path, references: list, args: argparse.Namespace) -> list[str]:
    """One hypothesis a line, as many as there are references.

    Raises:
        UserError: the numbers differ.
    """
    hypotheses = [line for _, line in read_lines(path)]
    if len(hypotheses) != len(references):
        source = ", ".join(map(str, reference_files(args)))
        raise UserError(
            f"{path} has {len(hypotheses)} lines and {source} {len(references)} examples; "
            "there must be one hypothesis per example, in order"
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
    if options.get("protocol") == "webnlg" and None in groups:
        print("notice: without the categories of all examples, no scores for seen and unseen", file=sys.stderr)
    elif options.get("protocol") == "webnlg":
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


def score_name(name: str, split: str) -> str:
    """bleu of the whole test set, bleu:seen of a split."""
    return name if split == "all" else f"{name}:{split}"


def make_report(args: argparse.Namespace, scored: dict, unavailable: dict[str, str], groups: list) -> dict:
    """What goes into the JSON file: for each metric its scores, intervals, signature and comparisons."""
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
    against.add_argument("--examples", type=Path, metavar="FILE", help="the test set as prepared (JSON lines)")
    against.add_argument(
        "--references",
        type=Path,
        action="extend",
        nargs="+",
        metavar="FILE",
        help="references in text files instead, line by line; an empty line is a missing reference (in a single file "
        "for the protocol e2e it ends the references of one segment)",
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
