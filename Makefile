# Set-up, demo and tests. Everything is installed into .venv inside this folder, nothing outside it.
# PYTHON=... chooses the interpreter (3.11 or newer), CORES=... how many cores a workflow may use.

SHELL := /bin/sh
CORES ?= 2
VENV := .venv/bin/python
SOURCES := fairseq_prefix workflow tests setup.py

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-scores setup-bench setup-cluster demo demo-paper test test-scores test-slow test-cluster test-failures bench bench-scores bench-prompt bench-data lint status clean clean-trained

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1#/p' Makefile | while IFS='#' read -r name text; do printf '  make %-14s%s\n' "$$name" "$$text"; done

setup:  ## Create .venv with the locked versions (done by the other targets too)
	@PYTHON="$(PYTHON)" workflow/setup.sh run

setup-test:
	@PYTHON="$(PYTHON)" workflow/setup.sh test

setup-scores: setup  ## Add what METEOR, CIDEr and E2E's ROUGE-L need (100 MB, and Java)
	@PYTHON="$(PYTHON)" workflow/setup.sh scores

setup-bench: setup  ## Add PEFT, adapters and the transformers they need (150 MB), in a folder that only the benchmark sees
	@PYTHON="$(PYTHON)" workflow/setup.sh bench

setup-cluster: setup  ## Add Snakemake's plugins for Slurm and other batch systems
	@PYTHON="$(PYTHON)" workflow/setup.sh cluster

demo: setup  ## Train a prefix over a small frozen BART, from nothing to a table of scores, offline
	@$(VENV) workflow/scripts/warm.py $(VENV) -m snakemake --cores $(CORES) --configfile configs/demo.yaml
	@for table in results/demo_summary/rouge.txt results/demo_table/bleu.txt; do echo; cat $$table; done
	@printf '\n%s\n' "The files: tables in results/, prefixes and training curves in runs/, the base in bases/, logs in logs/."
	@printf '%s\n' "Use a prefix: echo 'name : The Rookdyke Dolphin | kind : guest house' | $(VENV) -m fairseq_prefix generate \
	--base-model bases/demo_bart --prefix table=runs/demo_table/demo_bart/prefix/1/prefix.safetensors --beam 4"
	@printf '%s\n' "Your own data: docs/adding.md leads from a JSON file to a table of scores."

# The second call is for what failed: it makes tables of what there is, and names the rest.
demo-paper: setup  ## The paper's comparisons over small models, from nothing to a report, offline (about an hour)
	@$(VENV) workflow/scripts/warm.py $(VENV) -m snakemake --cores $(CORES) results/studies/report.html --configfile configs/demo_paper.yaml || \
	$(VENV) -m snakemake --cores 1 results/studies/report.html --configfile configs/demo_paper.yaml --config partial=True

test: lint  ## Linters, then all tests
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist worksteal

test-scores: setup-test setup-scores  ## Every published score against ours, those of Java programs too (10 minutes)
	@$(VENV) -m pytest -m "slow or not slow" tests/test_score.py tests/test_metrics.py tests/test_metrics_java.py tests/test_published.py

test-slow: setup-test  ## The tests that `make test` leaves out for their time
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 -m slow

test-cluster: setup-cluster  ## The workflow as jobs of a real Slurm that is brought up for it, with jobs, a node and itself killed
	@$(VENV) tests/cluster $(CLUSTER)

test-failures: setup-test  ## Every stage under kills, full disks, damaged files and more (docs/failure.md); FAILURES="--help": its options
	@OMP_NUM_THREADS=1 $(VENV) tests/failures $(FAILURES)

bench: setup-bench  ## Speed, memory and files beside stock fairseq, PEFT and adapters (an hour); BENCH="--help": its options
	@$(VENV) tests/bench $(BENCH)

bench-scores: setup-test  ## Times of the scores, beside those of the packages they are built on
	@$(VENV) tests/bench_scores.py

lint: setup-test  ## ruff, mypy (the plugin), snakefmt and Snakemake's own linter
	@$(VENV) -m ruff check $(SOURCES)
	@$(VENV) -m ruff format --check $(SOURCES)
	@$(VENV) -m mypy
	@$(VENV) -m snakefmt --check Snakefile workflow
	@$(VENV) tests/lint_workflow.py

bench-prompt: setup-test  ## How long GPT-2 takes to read its source, beside stock fairseq
	@$(VENV) tests/bench_prompt.py

bench-data: setup-test  ## How long preparing data takes; DATA=a mirror with e2e/ and webnlg2017/ for these two as well
	@$(VENV) tests/bench_data.py $(if $(DATA),--data $(DATA))

status:  ## What is done, running, failed and to do; STATUS="--watch": again and again, or targets as for snakemake
	@$(VENV) workflow/scripts/status.py $(STATUS)

clean:  ## Remove what is made again in seconds: tables, plots and reports (results/)
	@rm -rf results

clean-trained: setup  ## Remove everything that the workflow made, trained models included; asks first (CLEAN=--yes: does not)
	@$(VENV) workflow/scripts/clean.py $(CLEAN)
