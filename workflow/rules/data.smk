# Raw files -> examples -> subword text -> binarised data.


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
        "python {params.script:q} --output {output:q} --mirror-path {params.mirror_path:q} {params.sha256:q}"
        " --url {params.url:q} 2> >(tee {log:q} >&2)"


rule make_demo_task:
    input:
        script=script("make_demo.py"),
        world=script("world.py"),
    output:
        expand("resources/demo/{{task}}/{split}.jsonl", split=["train", "valid", "test"]),
    log:
        "logs/resources/demo/{task}.log",
    params:
        kind=lambda wildcards: study.task(wildcards.task)["demo"]["kind"],
        seed=lambda wildcards: study.task(wildcards.task)["demo"]["seed"],
        folder=subpath(output[0], parent=True),
    message:
        "Making up the examples of {wildcards.task}"
    shell:
        "python {input.script:q} {params.kind:q} --seed {params.seed} --output-dir {params.folder:q} 2> >(tee {log:q} >&2)"


rule prepare:
    input:
        script=script("prepare.py"),
        readers=script("readers.py"),
        files=lambda wildcards: list(study.task_inputs(wildcards.task).values()),
    output:
        train="data/{task}/train.jsonl",
        valid="data/{task}/valid.jsonl",
        test="data/{task}/test.jsonl",
        report="data/{task}/data.json",
    log:
        "logs/data/{task}/prepare.log",
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        reader=lambda wildcards: study.task(wildcards.task)["reader"],
        options=lambda wildcards: compact_json(study.task(wildcards.task).get("options", {})),
        inputs=lambda wildcards: [f"--input={pair}" for pair in pairs(study.task_inputs(wildcards.task))],
        folder=subpath(output.train, parent=True),
    message:
        "Preparing {wildcards.task}"
    shell:
        "python {input.script:q} --reader {params.reader:q} --options {params.options:q} {params.inputs:q}"
        " --output-dir {params.folder:q} 2> >(tee {log:q} >&2)"


rule encode:
    input:
        script=script("encode.py"),
        bpe=script("bpe.py"),
        examples="data/{task}/{split}.jsonl",
        vocabulary=lambda wildcards: list(vocabulary_files(wildcards.vocabulary).values()),
    output:
        source="data/{task}/{vocabulary}/{split}.source",
        target="data/{task}/{vocabulary}/{split}.target",
    log:
        "logs/data/{task}/{vocabulary}/{split}.log",
    threads: preparation_threads
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        vocabulary=lambda wildcards: vocabulary_options(wildcards.vocabulary),
        prefix=lambda wildcards, output: output.source.removesuffix(".source"),
    message:
        "Encoding {wildcards.task}, {wildcards.split}, with the vocabulary of {wildcards.vocabulary}"
    shell:
        "python {input.script:q} --input {input.examples:q} --split {wildcards.split} {params.vocabulary:q}"
        " --output-prefix {params.prefix:q} --workers {threads} 2> >(tee {log:q} >&2)"


rule binarise:
    input:
        script=script("binarise.py"),
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
        mem_mb=4000,
        runtime=120,
    params:
        text=lambda wildcards, input: folder_of(input.text),
        folder=subpath(output.dictionary, parent=True),
    message:
        "Binarising {wildcards.task} with the vocabulary of {wildcards.vocabulary}"
    shell:
        "python {input.script:q} --input-dir {params.text:q} --dict {input.dictionary:q} --output-dir {params.folder:q}"
        " --workers {threads} 2> >(tee {log:q} >&2)"
