# The pretrained model: an official archive, a Hugging Face directory, or one that the workflow pretrains itself.
# Everything waits for a pretraining, so its rules go first (priority); the tasks' data is prepared beside it.


localrules:
    place_base_file,
    place_base_dictionary,
    write_base_dictionary,


rule unpack_base:
    input:
        script=script("unpack.py"),
        modules=modules("unpack.py"),
        archive=lambda wildcards: study.base_inputs(wildcards.model)["archive"],
    output:
        model="bases/{model}/model.pt",
        dictionary="bases/{model}/dict.txt",
    log:
        "logs/bases/{model}/unpack.log",
    wildcard_constraints:
        model=any_of(study.models_with("archive")),
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    message:
        "Unpacking {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --archive {input.archive:q} --member model.pt={output.model:q}"
        " --member dict.txt={output.dictionary:q}"


rule unpack_vocabulary:
    input:
        script=script("unpack.py"),
        modules=modules("unpack.py"),
        archive=lambda wildcards: study.base_inputs(wildcards.model)["archive"],
    output:
        spm="bases/{model}/spm.model",
    log:
        "logs/bases/{model}/vocabulary.log",
    wildcard_constraints:
        model=any_of(study.models_with("archive", "sentencepiece")),
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    message:
        "Unpacking the vocabulary of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --archive {input.archive:q} --member sentence.bpe.model={output.spm:q}"


rule place_base_file:
    input:
        lambda wildcards: study.base_inputs(wildcards.model)[wildcards.file],
    output:
        "bases/{model}/{file}",
    log:
        "logs/bases/{model}/{file}.log",
    wildcard_constraints:
        model=any_of(study.models_with("files")),
        file=r"[A-Za-z0-9_.-]+\.(json|safetensors|bin)|spm\.model",
    message:
        "Putting {wildcards.file} of {wildcards.model} in place"
    shell:
        "(ln -f {input:q} {output:q} || cp {input:q} {output:q}) 2> {log:q}"


rule place_base_dictionary:
    input:
        dictionary("gpt2"),
    output:
        "bases/{model}/dict.txt",
    log:
        "logs/bases/{model}/dict.txt.log",
    wildcard_constraints:
        model=any_of(study.models_with("files", "gpt2")),
    message:
        "Putting the dictionary of {wildcards.model} in place"
    shell:
        "cp {input:q} {output:q} 2> {log:q}"


rule write_base_dictionary:
    input:
        script=script("write_dictionary.py"),
        modules=modules("write_dictionary.py"),
        spm="bases/{model}/spm.model",
    output:
        "bases/{model}/dict.txt",
    log:
        "logs/bases/{model}/dict.txt.log",
    wildcard_constraints:
        model=any_of(study.models_with("files", "sentencepiece")),
    message:
        "Writing the dictionary of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --spm {input.spm:q} --output {output:q}"


rule make_demo_documents:
    input:
        script=script("make_demo.py"),
        modules=modules("make_demo.py"),
    output:
        "bases/{model}/pretrain/documents.jsonl",
    log:
        "logs/bases/{model}/documents.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("demo")),
    priority: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        seed=lambda wildcards: pretraining(wildcards)["demo"]["seed"],
        options=lambda wildcards: arguments(pretraining(wildcards).get("documents", {})),
    message:
        "Making up the documents that {wildcards.model} is pretrained on"
    shell:
        "logged {log:q} python {input.script:q} documents --seed {params.seed} {params.options:q} --output {output:q}"


rule make_documents:
    input:
        script=script("make_documents.py"),
        modules=modules("make_documents.py"),
        texts=lambda wildcards: list(study.base_inputs(wildcards.model).values()),
    output:
        "bases/{model}/pretrain/documents.jsonl",
    log:
        "logs/bases/{model}/documents.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("inputs")),
    priority: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        options=lambda wildcards: arguments(pretraining(wildcards).get("documents", {})),
    message:
        "Cutting the text that {wildcards.model} is pretrained on into documents"
    shell:
        "logged {log:q} python {input.script:q} {params.options:q} --input {input.texts:q} --output {output:q}"


rule learn_vocabulary:
    input:
        script=script("learn_vocabulary.py"),
        modules=modules("learn_vocabulary.py"),
        documents="bases/{model}/pretrain/documents.jsonl",
    output:
        model="bases/{model}/spm.model",
        dictionary="bases/{model}/dict.txt",
    log:
        "logs/bases/{model}/vocabulary.log",
    wildcard_constraints:
        model=any_of(study.models_with("pretrained")),
    priority: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        options=lambda wildcards: arguments(pretraining(wildcards)["vocabulary"]),
        folder=subpath(output.model, parent=True),
    message:
        "Learning the vocabulary of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} {params.options:q} --documents {input.documents:q} --output-dir {params.folder:q}"


rule add_noise:
    input:
        script=script("noise.py"),
        modules=modules("noise.py"),
        documents="bases/{model}/pretrain/documents.jsonl",
        spm="bases/{model}/spm.model",
    output:
        expand("bases/{{model}}/pretrain/{split}.{side}", split=["train", "valid"], side=["source", "target"]),
    log:
        "logs/bases/{model}/noise.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("noise")),
    priority: 1
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        seed=lambda wildcards: pretraining(wildcards)["seed"],
        options=lambda wildcards: arguments(pretraining(wildcards)["noise"]),
        folder=subpath(output[0], parent=True),
    message:
        "Adding noise to the documents of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --seed {params.seed} {params.options:q} --documents {input.documents:q} --spm {input.spm:q}"
        " --output-dir {params.folder:q} --workers {threads}"


rule binarise_pretraining:
    input:
        script=script("binarise.py"),
        modules=modules("binarise.py"),
        text=expand("bases/{{model}}/pretrain/{split}.{side}", split=["train", "valid"], side=["source", "target"]),
        dictionary="bases/{model}/dict.txt",
    output:
        [f"bases/{{model}}/pretrain/bin/{file}" for file in BINARISED if not file.startswith("test")],
        dictionary="bases/{model}/pretrain/bin/dict.source.txt",
        target_dictionary="bases/{model}/pretrain/bin/dict.target.txt",
    log:
        "logs/bases/{model}/binarise.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("noise")),
    priority: 1
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        text=lambda wildcards, input: folder_of(input.text),
        folder=subpath(output.dictionary, parent=True),
    message:
        "Binarising the pretraining data of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --input-dir {params.text:q} --dict {input.dictionary:q} --output-dir {params.folder:q}"
        " --splits train valid --workers {threads}"


rule encode_documents:
    input:
        script=script("encode_documents.py"),
        modules=modules("encode_documents.py"),
        documents="bases/{model}/pretrain/documents.jsonl",
        spm="bases/{model}/spm.model",
    output:
        expand("bases/{{model}}/pretrain/{split}.text", split=["train", "valid"]),
    log:
        "logs/bases/{model}/encode.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("text")),
    priority: 1
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        options=lambda wildcards: arguments(pretraining(wildcards)["text"]),
        folder=subpath(output[0], parent=True),
    message:
        "Encoding the documents of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} {params.options:q} --documents {input.documents:q} --spm {input.spm:q}"
        " --output-dir {params.folder:q} --workers {threads}"


rule binarise_text:
    input:
        script=script("binarise.py"),
        modules=modules("binarise.py"),
        text=expand("bases/{{model}}/pretrain/{split}.text", split=["train", "valid"]),
        dictionary="bases/{model}/dict.txt",
    output:
        expand("bases/{{model}}/pretrain/bin/{split}.{suffix}", split=["train", "valid"], suffix=["bin", "idx"]),
        dictionary="bases/{model}/pretrain/bin/dict.txt",
    log:
        "logs/bases/{model}/binarise.log",
    wildcard_constraints:
        model=any_of(study.models_pretrained_with("text")),
    priority: 1
    threads: 4
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        text=lambda wildcards, input: folder_of(input.text),
        folder=subpath(output.dictionary, parent=True),
    message:
        "Binarising the text of {wildcards.model}"
    shell:
        "logged {log:q} python {input.script:q} --monolingual --input-dir {params.text:q} --dict {input.dictionary:q}"
        " --output-dir {params.folder:q} --splits train valid --workers {threads}"


rule pretrain:
    input:
        data=lambda wildcards: kept(
            pretraining_data(wildcards),
            f"bases/{wildcards.model}/model.pt",
            f"bases/{wildcards.model}/pretrain/run.json",
        ),
        script=ancient(script("train.py")),
    output:
        model="bases/{model}/model.pt",
        record="bases/{model}/pretrain/run.json",
        curve="bases/{model}/pretrain/curve.tsv",
    log:
        "logs/bases/{model}/pretrain.log",
    benchmark:
        "logs/bases/{model}/pretrain.benchmark.tsv"
    wildcard_constraints:
        model=any_of(study.models_with("pretrained")),
    priority: 1
    threads: threads_of
    resources:
        gpu=gpus_of,
        gpu_jobs=gpus_of,
        mem_mb=growing(mb_of_training),
        runtime=growing(1440),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        architecture=lambda wildcards: f"full_{study.model(wildcards.model)['architecture']}",
        seed=lambda wildcards: pretraining(wildcards)["seed"],
        flags=lambda wildcards: study.pretraining_flags(wildcards.model),
    message:
        "Pretraining {wildcards.model}"
    shell:
        "OMP_NUM_THREADS={threads} python {input.script:q} --data {params.data:q} --arch {params.architecture} --seed {params.seed}"
        " --output {output.model:q} --run-json {output.record:q} --log {log:q} -- {params.flags:q}"
