# Training, and the export of what was trained. A training is repeated for other settings or other bytes of its data or base, and
# for nothing else: train.py and the inputs are ancient(), and the outputs are update()d, so that an earlier training is there
# until its successor is whole. run.json records settings, bytes and versions.


localrules:
    check_runs,
    export_prefix,
    import_prefix,


rule train:
    input:
        data=lambda wildcards: kept_if_trained(wildcards, binarised(wildcards.task, wildcards.model)),
        base=lambda wildcards: kept_if_trained(wildcards, study.base_files(wildcards.model)),
        words=lambda wildcards: kept_if_trained(
            wildcards, study.files_of_words(wildcards.task, wildcards.model, wildcards.method)
        ),
        script=ancient(script("train.py")),
    output:
        checkpoint="runs/{task}/{model}/{method}/{seed}/checkpoint.pt",
        record="runs/{task}/{model}/{method}/{seed}/run.json",
        curve="runs/{task}/{model}/{method}/{seed}/curve.tsv",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/train.log",
    benchmark:
        "logs/runs/{task}/{model}/{method}/{seed}/train.benchmark.tsv"
    wildcard_constraints:
        method=methods_named(study.methods_where(trained=True)),
    threads: lambda wildcards: threads_of(wildcards) * processes_here(wildcards)
    resources:
        gpu=gpus_of_training,
        gpu_jobs=lambda wildcards: gpus_of(wildcards) * shares(wildcards)["gpus"],
        nodes=lambda wildcards: shares(wildcards)["nodes"],
        mpi=if_across_nodes(lambda shared, small: "srun"),
        gres=if_across_nodes(lambda shared, small: None if small else f"gpu:{shared['gpus']}"),
        tasks=if_across_nodes(lambda shared, small: shared["nodes"] if shared["gpus"] == 1 else None),
        tasks_per_node=if_across_nodes(lambda shared, small: shared["gpus"] if shared["gpus"] > 1 else None),
        tasks_per_gpu=if_across_nodes(lambda shared, small: 0),  # or `tasks` would be taken for it
        mem_mb=growing(lambda wildcards: mb_of_training(wildcards) * shares(wildcards)["gpus"]),
        runtime=growing(1440),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=lambda wildcards, input: folder_of(input.base),
        architecture=architecture,
        shared=lambda wildcards: arguments({key: n for key, n in shares(wildcards).items() if n > 1}),
        flags=lambda wildcards: study.flags("train", wildcards.task, wildcards.model, wildcards.method),
    message:
        "Training {wildcards.method} of {wildcards.model} on {wildcards.task}, seed {wildcards.seed}"
    shell:
        "OMP_NUM_THREADS={threads} python {input.script:q} --data {params.data:q} --arch {params.architecture} --base-model {params.base:q}"
        " --seed {wildcards.seed} {params.shared:q} --output {output.checkpoint:q} --run-json {output.record:q} --log {log:q}"
        " -- {params.flags:q}"


rule leave_untuned:
    input:
        base=lambda wildcards: kept_if_trained(wildcards, study.base_files(wildcards.model)),
        script=ancient(script("train.py")),
    output:
        checkpoint="runs/{task}/{model}/{method}/{seed}/checkpoint.pt",
        record="runs/{task}/{model}/{method}/{seed}/run.json",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/untuned.log",
    wildcard_constraints:
        method=methods_named(study.methods_where(trained=False)),
    resources:
        mem_mb=growing(mb_of_decoding),
        runtime=growing(30),
    params:
        base=lambda wildcards, input: folder_of(input.base),
        architecture=architecture,
        tags=language_tags,
    message:
        "Taking {wildcards.model} as it is for {wildcards.task}"
    shell:
        "logged {log:q} python {input.script:q} --untuned --arch {params.architecture} --base-model {params.base:q}"
        " --output {output.checkpoint:q} --run-json {output.record:q}{params.tags}"


rule check_runs:
    input:
        script=script("check_runs.py"),
        modules=modules("check_runs.py"),
        data=lambda wildcards: binarised(wildcards.task, wildcards.model),
        base=lambda wildcards: study.base_files(wildcards.model),
        pretraining=pretrained_from,
    output:
        "data/{task}/checked/{model}.json",
    log:
        "logs/data/{task}/checked/{model}.log",
    params:
        runs=lambda wildcards: planned_runs(wildcards.task, wildcards.model),
        replace=study.replace,  # what was allowed once is compared again
    message:
        "Comparing the runs of {wildcards.model} on {wildcards.task} with the data and the base"
    shell:
        "logged {log:q} python {input.script:q} --run {params.runs:q} --output {output:q}"


rule export_prefix:
    input:
        checkpoint="runs/{task}/{model}/{method}/{seed}/checkpoint.pt",
        script=ancient(script("plugin.py")),
    output:
        "runs/{task}/{model}/{method}/{seed}/prefix.safetensors",
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/export.log",
    wildcard_constraints:
        method=methods_named(study.methods_where(exported=True)),
    message:
        "Exporting the prefix: {output}"
    shell:
        "python {input.script:q} export {input.checkpoint:q} {output:q} > {log:q} 2>&1"


# What is generated from is what is published: the exported prefix, brought back.
rule import_prefix:
    input:
        prefix="runs/{task}/{model}/{method}/{seed}/prefix.safetensors",
        script=ancient(script("plugin.py")),
        base=lambda wildcards: kept_if_trained(wildcards, study.base_files(wildcards.model)),
    output:
        temp("runs/{task}/{model}/{method}/{seed}/imported.pt"),
    log:
        "logs/runs/{task}/{model}/{method}/{seed}/import.log",
    wildcard_constraints:
        method=methods_named(study.methods_where(exported=True)),
    params:
        base=lambda wildcards, input: folder_of(input.base),
    message:
        "Bringing back the exported prefix: {input.prefix}"
    shell:
        "python {input.script:q} import {input.prefix:q} {output:q} --base-model {params.base:q} > {log:q} 2>&1"
