# Beam search -> text -> scores -> tables. From hypotheses on nothing needs torch.


localrules:
    table,
    costs,


rule generate:
    input:
        data=lambda wildcards: kept_if_decoded(wildcards, binarised(wildcards.task, wildcards.model)),
        examples=lambda wildcards: kept_if_decoded(wildcards, [evaluated_examples(wildcards)]),
        base=lambda wildcards: kept_if_decoded(wildcards, study.base_files(wildcards.model)),
        checkpoint=generated_from,
        script=ancient(script("generate.py")),
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
        modules=modules("hypotheses.py"),
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
        "logged {log:q} python {input.script:q} --generated {input.generated:q} --examples {input.examples:q} {params.split:q} {params.vocabulary:q}"
        " --output {output:q}"


rule score:
    input:
        script=script("score.py"),
        modules=modules("score.py"),
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
        "logged {log:q} python {input.script:q} --metric {params.metric:q} --hypotheses {input.hypotheses:q}"
        " --examples {input.examples:q} --threads {threads} --output {output:q} >&2"


rule table:
    input:
        script=script("table.py"),
        modules=modules("table.py"),
        examples="data/{task}/test.jsonl",
        runs=lambda wildcards: made_from(wildcards.task, tabulated(wildcards)[0]),
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
        "logged {log:q} python {input.script:q} --task {wildcards.task} --metric {params.metrics:q} {params.notes:q} --run {params.runs:q}"
        " --examples {input.examples:q} --output {output.text:q}"


rule costs:
    input:
        script=script("costs.py"),
        modules=modules("costs.py"),
        examples="data/{task}/test.jsonl",
        runs=lambda wildcards: made_from(wildcards.task, main_metric(wildcards.task)),
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
        "logged {log:q} python {input.script:q} --task {wildcards.task} --metric {params.metric:q} {params.notes:q} --run {params.runs:q} --logs logs"
        " --examples {input.examples:q} --output {output.text:q}"
