"""Snakemake's linter, with the one advice set aside that this project does not take; run by `make lint`.

It wants a conda environment or container for every rule. Here fairseq, the plugin and the workflow share one
environment, which `make setup` builds from the lock files; environments per rule that nobody has built would be traps.
"""

import subprocess
import sys

SET_ASIDE = "Specify a conda environment or container for each rule."


def findings(report: str) -> list[str]:
    """`place: advice` of everything in the linter's report that is not set aside."""
    found, place = [], ""
    for line in report.splitlines():
        if line.startswith("Lints for "):
            place = line.removeprefix("Lints for ").rstrip(":")
        elif line.startswith("    * ") and not line.startswith(f"    * {SET_ASIDE}"):
            found.append(f"{place}: {line.removeprefix('    * ').rstrip(':')}")
    return found


def main() -> None:
    result = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], capture_output=True, text=True)
    report = result.stdout + result.stderr
    if "Lints for " not in report and "Congratulations" not in report:
        sys.exit(f"snakemake --lint did not run:\n{report}")
    if found := findings(report):
        sys.exit("snakemake --lint:\n" + "\n".join(found))
    print("snakemake --lint: nothing to report")


if __name__ == "__main__":
    main()
