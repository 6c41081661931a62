# Raw files -> examples (or a subset of them) -> subword text -> binarised data; and a report of the examples.


localrules:
    fetch,


rule fetch:
    output:
        "resources/{path}",
    log:
        "logs/resources/{path}.log",
    wildcard_constraints:
        path=any_of(study.downloads()),
    params:
        script=script("fetch.py"),
        url=lambda wildcards: study.downloads()[wildcards.path]["url"],
        sha256=lambda wildcards: [f"--sha256={value}" for value in study.downloads()[wildcards.path]["sha256"]],
        mirror_path=lambda wildcards: wildcards.path.removeprefix("data/"),
    message:
        "Fetching {wildcards.path}"
    shell:
        "logged {log:q} python {params.script:q} --output {output:q} --mirror-path {params.mirror_path:q} {params.sha256:q}"
        " --url {params.url:q}"


rule make_demo_task:
    input:
        script=script("make_demo.py"),
        modules=modules("make_demo.py"),
    output:
        expand("resources/demo/{{task}}/{split}.jsonl", split=["train", "valid", "test"]),
    log:
        "logs/resources/demo/{task}.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        kind=lambda wildcards: study.task(wildcards.task)["demo"]["kind"],
        seed=lambda wildcards: study.task(wildcards.task)["demo"]["seed"],
        folder=subpath(output[0], parent=True),
    message:
        "Making up the examples of {wildcards.task}"
    shell:
        "logged {log:q} python {input.script:q} {params.kind:q} --seed {params.seed} --output-dir {params.folder:q}"


rule prepare:
    input:
        script=script("prepare.py"),
        modules=modules("prepare.py"),
        files=lambda wildcards: list(study.task_inputs(wildcards.task).values()),
    output:
        train="data/{task}/train.jsonl",
        valid="data/{task}/valid.jsonl",
        test="data/{task}/test.jsonl",
        report="data/{task}/data.json",
    log:
        "logs/data/{task}/prepare.log",
    wildcard_constraints:
        task=TASK,
    threads: lambda wildcards: 1 if "demo" in study.task(wildcards.task) else 4  # as preparation_threads
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        reader=lambda wildcards: study.task(wildcards.task)["reader"],
        expected=lambda wildcards: compact_json(study.task(wildcards.task).get("expected") or {}),
        options=lambda wildcards: compact_json(study.task(wildcards.task).get("options", {})),
        inputs=lambda wildcards: [f"--input={pair}" for pair in pairs(study.task_inputs(wildcards.task))],
        folder=subpath(output.train, parent=True),
    message:
        "Preparing {wildcards.task}"
    shell:
        "logged {log:q} python {input.script:q} --reader {params.reader:q} --options {params.options:q} {params.inputs:q}"
        " --expected {params.expected:q} --workers {threads} --output-dir {params.folder:q}"


rule draw_subset:
    input:
        script=script("subset.py"),
        modules=modules("subset.py"),
        report="data/{task}/data.json",
        splits=expand("data/{{task}}/{split}.jsonl", split=["train", "valid", "test"]),
    output:
        expand("data/{{task}}@{{size}}-{{subset_seed}}/{split}.jsonl", split=["train", "valid", "test"]),
        report="data/{task}@{size}-{subset_seed}/data.json",
    log:
        "logs/data/{task}@{size}-{subset_seed}/subset.log",
    wildcard_constraints:
        task=TASK,
        size=r"\d+",
        subset_seed=r"\d+",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        input_folder=subpath(input.report, parent=True),
        folder=subpath(output.report, parent=True),
    message:
        "Drawing {wildcards.size} training examples of {wildcards.task}, seed {wildcards.subset_seed}"
    shell:
        "logged {log:q} python {input.script:q} --input-dir {params.input_folder:q} --task {wildcards.task} --size {wildcards.size}"
        " --seed {wildcards.subset_seed} --output-dir {params.folder:q}"


rule describe:
    input:
        script=script("describe.py"),
        modules=modules("describe.py"),
        report="data/{task}/data.json",
        splits=expand("data/{{task}}/{split}.jsonl", split=["train", "valid", "test"]),
        vocabularies=[
            file for model in study.models for file in study.vocabulary_files(study.vocabulary(model)).values()
        ],
    output:
        text="results/{task}/data.txt",
        tsv="results/{task}/data.tsv",
    log:
        "logs/results/{task}/data.log",
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        folder=subpath(input.report, parent=True),
        models=lambda wildcards: compact_json(
            {model: options | study.truncation(wildcards.task, model) for model, options in described_models().items()}
        ),
    message:
        "Describing the data of {wildcards.task}"
    shell:
        "logged {log:q} python {input.script:q} --task {wildcards.task} --input-dir {params.folder:q} --models {params.models:q}"
        " --output {output.text:q} --workers {threads}"


rule encode:
    input:
        script=script("encode.py"),
        modules=modules("encode.py"),
        examples="data/{task}/{split}.jsonl",
        vocabulary=lambda wildcards: list(study.vocabulary_files(wildcards.vocabulary).values()),
    output:
        source="data/{task}/{vocabulary}/{split}.source",
        target="data/{task}/{vocabulary}/{split}.target",
    log:
        "logs/data/{task}/{vocabulary}/{split}.log",
    threads: preparation_threads
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        vocabulary=lambda wildcards: arguments(vocabulary_options(wildcards.vocabulary)),
        prefix=lambda wildcards, output: output.source.removesuffix(".source"),
    message:
        "Encoding {wildcards.task}, {wildcards.split}, with the vocabulary of {wildcards.vocabulary}"
    shell:
        "logged {log:q} python {input.script:q} --input {input.examples:q} --split {wildcards.split} {params.vocabulary:q}"
        " --output-prefix {params.prefix:q} --workers {threads}"


rule binarise:
    input:
        script=script("binarise.py"),
        modules=modules("binarise.py"),
        text=expand(
            "data/{{task}}/{{vocabulary}}/{split}.{side}", split=["train", "valid", "test"], side=["source", "target"]
        ),
        dictionary=lambda wildcards: dictionary(wildcards.vocabulary),
    output:
        expand("data/{{task}}/{{vocabulary}}/bin/{file}", file=BINARISED),
        dictionary="data/{task}/{vocabulary}/bin/dict.source.txt",
        target_dictionary="data/{task}/{vocabulary}/bin/dict.target.txt",
    log:
        "logs/data/{task}/{vocabulary}/binarise.log",
    threads: preparation_threads
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        text=lambda wildcards, input: folder_of(input.text),
        folder=subpath(output.dictionary, parent=True),
    message:
        "Binarising {wildcards.task} with the vocabulary of {wildcards.vocabulary}"
    shell:
        "logged {log:q} python {input.script:q} --input-dir {params.text:q} --dict {input.dictionary:q} --output-dir {params.folder:q}"
        " --workers {threads}"
