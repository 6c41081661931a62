# Beam search -> text -> scores -> tables. From hypotheses on nothing needs torch.


localrules:
    table,
    costs,


rule generate:
    input:
        data=lambda wildcards: binarised(wildcards.task, wildcards.model),
        examples=evaluated_examples,
        base=lambda wildcards: study.base_files(wildcards.model),
        checkpoint=generated_from,
        script=script("generate.py"),
    output:
        "runs/{task}/{model}/{method}/{seed}/{part}generate.txt",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/{part}generate.log",
    benchmark:
        "logs/runs/{task}/{model}/{method}/{seed}/{part}generate.benchmark.tsv"
    threads: threads_of
    resources:
        gpu=gpus_of,
        gpu_jobs=gpus_of,
        mem_mb=growing(mb_of_decoding),
        runtime=growing(720),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=base_option,
        split=split_option,
        flags=lambda wildcards: study.flags("generate", wildcards.task, wildcards.model, wildcards.method),
    message:
        "Generating {wildcards.task} with {wildcards.method} of {wildcards.model}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python {input.script:q} --data {params.data:q} --examples {input.examples:q} --checkpoint {input.checkpoint:q}"
        " {params.base:q} {params.split:q} --output {output:q} --log {log:q} -- {params.flags:q}"


rule hypotheses:
    input:
        script=script("hypotheses.py"),
        bpe=script("bpe.py"),
        generated="runs/{task}/{model}/{method}/{seed}/{part}generate.txt",
        examples=evaluated_examples,
        vocabulary=lambda wildcards: list(study.vocabulary_files(study.vocabulary(wildcards.model)).values()),
    output:
        "runs/{task}/{model}/{method}/{seed}/{part}hypotheses.txt",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/{part}hypotheses.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        split=split_option,
        vocabulary=lambda wildcards: arguments(vocabulary_options(study.vocabulary(wildcards.model))),
    message:
        "Collecting the hypotheses of {wildcards.method} of {wildcards.model} on {wildcards.task}, seed {wildcards.seed}"
    shell:
        "python {input.script:q} --generated {input.generated:q} --examples {input.examples:q} {params.split:q} {params.vocabulary:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule score:
    input:
        script=script("score.py"),
        modules=[script(name) for name in ("metrics.py", "ter.py", "java_tools.py", "significance.py")],
        hypotheses="runs/{task}/{model}/{method}/{seed}/{part}hypotheses.txt",
        examples=evaluated_examples,
    output:
        "runs/{task}/{model}/{method}/{seed}/{part}{metric}.json",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/{part}{metric}.log",
    threads: lambda wildcards: 2 if wildcards.metric in ("ter", "chrf") else 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        metric=lambda wildcards: "{}={}".format(
            wildcards.metric, compact_json(study.task(wildcards.task)["metrics"].get(wildcards.metric, {}))
        ),
    message:
        "Scoring {wildcards.method} of {wildcards.model} on {wildcards.task}, seed {wildcards.seed}: {wildcards.metric}"
    shell:
        "python {input.script:q} --metric {params.metric:q} --hypotheses {input.hypotheses:q}"
        " --examples {input.examples:q} --threads {threads} --output {output:q} 2> >(tee {log:q} >&2) >&2"


rule table:
    input:
        script=script("table.py"),
        examples="data/{task}/test.jsonl",
        scores=lambda wildcards: scored(wildcards.task, tabulated(wildcards)[0]),
        records=lambda wildcards: [f"{run}/run.json" for run in run_folders(wildcards.task)],
        hypotheses=lambda wildcards: [f"{run}/hypotheses.txt" for run in run_folders(wildcards.task)],
        curves=lambda wildcards: curves(run_folders(wildcards.task)),
    output:
        text=report("results/{task}/{table}.txt", category="Scores", labels={"task": "{task}", "score": "{table}"}),
        tsv="results/{task}/{table}.tsv",
    log:
        "logs/results/{task}/{table}.log",
    params:
        metrics=lambda wildcards: tabulated(wildcards)[0],
        notes=lambda wildcards: [f"--note={note}" for note in tabulated(wildcards)[1]],
        runs=lambda wildcards: run_folders(wildcards.task),
    message:
        "Making the table of {wildcards.task}: {wildcards.table}"
    shell:
        "python {input.script:q} --task {wildcards.task} --metric {params.metrics:q} {params.notes:q} --run {params.runs:q}"
        " --examples {input.examples:q} --output {output.text:q} 2> >(tee {log:q} >&2)"


rule costs:
    input:
        script=script("costs.py"),
        examples="data/{task}/test.jsonl",
        scores=lambda wildcards: scored(wildcards.task, main_metric(wildcards.task)),
        records=lambda wildcards: [f"{run}/run.json" for run in run_folders(wildcards.task)],
        hypotheses=lambda wildcards: [f"{run}/hypotheses.txt" for run in run_folders(wildcards.task)],
        benchmarks=lambda wildcards: benchmarks(wildcards.task),
    output:
        text=report("results/{task}/costs.txt", category="Costs", labels={"task": "{task}"}),
        tsv="results/{task}/costs.tsv",
    log:
        "logs/results/{task}/costs.log",
    params:
        metric=lambda wildcards: main_metric(wildcards.task),
        notes=lambda wildcards: [f"--note={note}" for note in study.notes(wildcards.task)],
        runs=lambda wildcards: run_folders(wildcards.task),
    message:
        "Making the table of what {wildcards.task} cost"
    shell:
        "python {input.script:q} --task {wildcards.task} --metric {params.metric:q} {params.notes:q} --run {params.runs:q} --logs logs"
        " --examples {input.examples:q} --output {output.text:q} 2> >(tee {log:q} >&2)"
