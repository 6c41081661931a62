# Studies: runs that differ in what a study varies, as tables and plots, one per task; and the report of them all.


localrules:
    study,
    report,


rule study:
    input:
        script=script("study.py"),
        modules=modules("study.py"),
        checked=lambda wildcards: checks(scores_of_study(wildcards.study, wildcards.task)),
        scores=lambda wildcards: scores_of_study(wildcards.study, wildcards.task),
    output:
        text=report(
            "results/studies/{study}/{task}.txt",
            category="{study}",
            labels={"task": "{task}", "what": "table"},
        ),
        svg=report(
            "results/studies/{study}/{task}.svg",
            category="{study}",
            labels={"task": "{task}", "what": "plot"},
        ),
        others=multiext("results/studies/{study}/{task}", ".tsv", ".png"),
    log:
        "logs/results/studies/{study}/{task}.log",
    wildcard_constraints:
        task=TASK,
    params:
        study=lambda wildcards: compact_json(study.study(wildcards.study)),
        rows=lambda wildcards: compact_json(rows_of_study(wildcards.study, wildcards.task)),
        metrics=lambda wildcards: scored_metrics(wildcards.task)[0],
    message:
        "Making the table and the plot of {wildcards.study} on {wildcards.task}"
    shell:
        "logged {log:q} python {input.script:q} --study {params.study:q} --task {wildcards.task} --rows {params.rows:q}"
        " --metric {params.metrics:q} --output {output.text:q}"


rule report:
    input:
        script=script("report.py"),
        modules=modules("report.py"),
        tables=studies_on_tasks(),
    output:
        report("results/studies/report.html", category="All studies on one page"),
    log:
        "logs/results/studies/report.log",
    params:
        studies=lambda wildcards: compact_json({name: study.study(name) for name in study.studies}),
    message:
        "Making the report of all studies"
    shell:
        "logged {log:q} python {input.script:q} --studies {params.studies:q} --table {input.tables:q} --output {output:q}"
