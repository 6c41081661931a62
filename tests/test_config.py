"""The configuration: the command lines that the shipped presets make, and the sentences that mistakes get."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from common import UserError
from config import TRUNCATION, Configuration, check, load_yaml
from conftest import REPOSITORY
from flags import SCHEMAS, arguments

CONFIGS = REPOSITORY / "configs"
GOLDEN = Path(__file__).parent / "golden_commands.txt"
SHIPPED = {"tasks": ["xsum"], "models": ["bart_large"], "methods": ["prefix"], "seeds": [1]}
OFFICIAL = ("xsum", "xsum_news_sport", "xsum_within_news", "e2e", "webnlg", "dart", "aeslc", "dialogsum", "scitldr")
MAIN = [(task, model) for task in OFFICIAL for model in ("bart_large", "gpt2_medium", "text_bart", "text_gpt2")]
MAIN += [(task, model) for task in ("demo_summary", "demo_table") for model in ("demo_bart", "demo_gpt2")]
MAIN.append(("e2e", "mbart_large"))


COMPARED = ("base", "finetune", "prefix")


def configuration(folder: Path = CONFIGS, **changes) -> Configuration:
    return Configuration({**SHIPPED, **changes}, "mine.yaml", [folder, CONFIGS])


def commands() -> str:
    """One line per command of the runs that are there to be run; golden_commands.txt holds them."""
    study = configuration()
    lines = []
    runs = [(task, model, method) for task, model in MAIN for method in COMPARED]
    runs += [("e2e", model, method) for model in ("bart_large", "gpt2_medium") for method in study.known("methods")]
    for task, model, method in dict.fromkeys(runs):
        if study.fits(method, model):
            trained = ["train"] if study.method(method)["trained"] else []
            for command in (*trained, "generate"):
                flags = study.flags(command, task, model, method)
                lines.append(f"{task} {model} {method}: fairseq-{command} {shlex.join(flags)}")
    for model in study.models_with("pretrained"):
        lines.append(f"{model}: fairseq-train {shlex.join(study.pretraining_flags(model))}")
    return "\n".join(lines) + "\n"


def test_the_shipped_presets_make_these_commands():
    """After a change that is meant: python tests/test_config.py > tests/golden_commands.txt, and read the diff."""
    assert commands() == GOLDEN.read_text()


@pytest.mark.parametrize(
    "flag, value",
    # Paper, Table 6 and section 6, and its code; the updates are 30 epochs of 204,045 examples in batches of 14.
    {
        "lr": "5e-05",
        "batch-size": "14",
        "max-update": "437250",
        "total-num-update": "437250",
        "prefix-length": "100",
        "prefix-mid-dim": "800",
        "label-smoothing": "0",
        "clip-norm": "1.0",
        "weight-decay": "0",
        "warmup-updates": "0",
        "max-source-tokens": "512",
        "max-target-tokens": "60",
    }.items(),
)
def test_xsum_is_the_papers_run(flag, value):
    flags = configuration().flags("train", "xsum", "bart_large", "prefix")
    assert flags[flags.index(f"--{flag}") + 1] == value
    assert "--fp16" in flags


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_is_valid(name):
    values = load_yaml(CONFIGS / "config.yaml") | load_yaml(CONFIGS / name)
    study = Configuration(values, name, [CONFIGS])
    assert list(study.runs()) and study.downloads()


def test_every_preset_is_valid_alone_and_combined():
    study = configuration()
    for task in study.known("tasks"):
        for model in study.known("models"):
            for method in study.known("methods"):
                if study.fits(method, model):
                    assert "--beam" in study.flags("generate", task, model, method)
        assert study.task_inputs(task)
    assert all(study.base_inputs(model) for model in study.known("models") if not model.startswith("demo_"))


def test_layers_win_in_order(tmp_path):
    """Method < model < task < overrides; inside each, what names more of the run wins."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "tasks").mkdir()
    method = {
        "architecture": "prefix",
        "trained": True,
        "exported": True,
        "train": {"lr": 1, "data-buffer-size": 1, "stop-time-hours": 1},
    }
    model = {"architecture": "bart_base", "vocabulary": "gpt2", "base": {"archive": {"file": "a.tar.gz"}}}
    model |= {
        "train": {"data-buffer-size": 2, "stop-time-hours": 2},
        "methods": {"mine": {"train": {"stop-time-hours": 3}}},
    }
    task = {"reader": "jsonl", "metrics": {"bleu": {}}, "inputs": {"train": {"path": "t"}}}
    task |= {
        "train": {"patience": 4, "clip-norm": 4, "max-epoch": 4, "save-interval": 4},
        "methods": {"mine": {"train": {"clip-norm": 5, "max-epoch": 5, "save-interval": 5}}},
        "models": {
            "bart_base": {
                "train": {"max-epoch": 6, "save-interval": 6},
                "methods": {"mine": {"train": {"save-interval": 7}}},
            }
        },
    }
    for kind, values in (("methods", method), ("models", model), ("tasks", task)):
        (tmp_path / kind / "mine.yaml").write_text(yaml.safe_dump(values))
    names = {"tasks": ["mine"], "models": ["mine"], "methods": ["mine"]}
    study = configuration(tmp_path, **names)
    expected = {
        "lr": 1,
        "data-buffer-size": 2,
        "stop-time-hours": 3,
        "patience": 4,
        "clip-norm": 5,
        "max-epoch": 6,
        "save-interval": 7,
    }
    expected |= {"task": "conditional_generation"}
    assert study.flags("train", "mine", "mine", "mine") == arguments(expected)
    for overrides, changed in (
        ({"train": {"save-interval": 8}}, {"save-interval": 8}),
        ({"train": {"lr": 8}, "tasks": {"mine": {"methods": {"mine": {"train": {"lr": 9}}}}}}, {"lr": 9}),
        ({"methods": {"prefix": {"train": {"lr": 9}}}}, {}),
        ({"tasks": {"mine": {"train": {"patience": None}}}}, {"patience": None}),
        ({"generate": {"beam": 3}}, {}),
    ):
        study = configuration(tmp_path, **names, overrides=overrides)
        assert study.flags("train", "mine", "mine", "mine") == arguments(expected | changed), overrides


def test_sections_may_be_for_a_family_a_size_or_an_architecture(tmp_path):
    """In this order, the model's own last; and every family has its task of fairseq, unless a preset says otherwise."""
    names = ("gpt2", "tiny", "gpt2_tiny", "demo_gpt2")
    flags = ("lr", "clip-norm", "patience", "keep-last-epochs")
    sections = {name: {"train": dict.fromkeys(flags[number:], number)} for number, name in enumerate(names)}
    study = configuration(tmp_path, overrides={"models": dict(reversed(sections.items()))})

    def given(model, flag, command="train", study=study):
        flags = study.flags(command, "e2e", model, "prefix")
        return flags[flags.index(f"--{flag}") + 1] if f"--{flag}" in flags else None

    assert [given("demo_gpt2", flag) for flag in flags] == ["0", "1", "2", "3"]
    assert [given("demo_bart", flag) for flag in flags[1:]] == ["1", "1", "1"]
    assert given("gpt2_medium", "patience") == "0" and given("bart_large", "patience") is None
    for command in ("train", "generate"):
        assert given("demo_gpt2", "task", command) == "conditional_lm"
        assert given("bart_large", "task", command) == "conditional_generation"
    own = configuration(tmp_path, overrides={"methods": {"prefix": {"data": {"task": "conditional_lm"}}}})
    assert given("bart_large", "task", study=own) == "conditional_lm"
    with pytest.raises(UserError, match="overrides: models: no model is called 'gpt3'; did you mean 'gpt2"):
        configuration(tmp_path, overrides={"models": {"gpt3": {}}})


@pytest.mark.parametrize(
    "task, values",
    # Paper, Table 6; the updates are its epochs over 42,061, 18,025 and 62,659 pairs.
    {
        "e2e": {
            "prefix": {"lr": "8e-05", "batch-size": "10", "max-update": "21035", "prefix-length": "5"},
            "finetune": {"lr": "5e-05", "batch-size": "10", "max-update": "21035"},
        },
        "webnlg": {
            "prefix": {"lr": "5e-05", "batch-size": "5", "max-update": "18025", "prefix-length": "5"},
            "finetune": {"lr": "1e-05", "batch-size": "6", "max-update": "30050"},
        },
        "dart": {
            "prefix": {"lr": "5e-05", "batch-size": "5", "max-update": "125320", "prefix-length": "10"},
            "finetune": {"lr": "1e-05", "batch-size": "6", "max-update": "104440"},
        },
    }.items(),
)
def test_table_to_text_over_gpt2_is_the_papers_run(task, values):
    for method, expected in values.items():
        flags = configuration().flags("train", task, "gpt2_medium", method)
        expected = {
            **expected,
            "task": "conditional_lm",
            "label-smoothing": "0",
            "weight-decay": "0",
            "clip-norm": "1.0",
        }
        expected |= {"prefix-mid-dim": "512", "base-dropout": "off"} if method == "prefix" else {}
        for flag, value in expected.items():
            assert flags[flags.index(f"--{flag}") + 1] == value, (method, flag)
        assert ("--sentence-avg" in flags) == (method == "prefix")


def flag(flags: list[str], name: str) -> str | None:
    return flags[flags.index(f"--{name}") + 1] if f"--{name}" in flags else None


def test_a_method_may_extend_another_and_what_it_changes_holds_for_all_tasks_and_models():
    study = configuration()
    for model in ("bart_large", "demo_bart"):  # whose sections for prefix set another length
        flags = study.flags("train", "e2e@50-1", model, "prefix_low")
        assert flag(flags, "prefix-length") == "6" and flag(flags, "max-update") == "200"
    flags = study.flags("train", "e2e", "demo_bart", "prefix_low")
    assert flag(flags, "lr") == "0.002"  # of the model's section for prefix
    assert flag(flags, "max-update") == flag(flags, "total-num-update") == "600"
    assert study.method("prefix_low")["exported"]
    overrides = {"methods": {"prefix": {"train": {"prefix-length": 7}}}}
    assert (
        flag(configuration(overrides=overrides).flags("train", "e2e", "bart_large", "prefix_low"), "prefix-length")
        == "7"
    )


def test_sections_for_subsets_go_from_any_to_one():
    sections = {"e2e": 1, "@": 2, "@50": 3, "e2e@50-1": 4}
    overrides = {"tasks": {name: {"train": {"lr": number}} for name, number in reversed(sections.items())}}
    with_all = configuration(overrides=overrides)
    tasks = ("e2e", "e2e@60-1", "e2e@50-2", "e2e@50-1")
    assert [flag(with_all.flags("train", task, "bart_large", "prefix"), "lr") for task in tasks] == list("1234")


def test_a_variant_is_a_method_with_flags_above_all_others():
    study = configuration(overrides={"train": {"lr": 9}})
    name = "prefix~lr=1e-4~prefix-sites=encoder,cross~beam=3~fp16=true"
    flags = study.flags("train", "e2e", "bart_large", name)
    assert (flag(flags, "lr"), flag(flags, "prefix-sites")) == ("1e-4", "encoder,cross")
    assert "--fp16" in flags and "--beam" not in flags
    assert flag(study.flags("generate", "e2e", "bart_large", name), "beam") == "3"
    assert study.method(name)["exported"]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("prefix~prefix-lenght=5", "fairseq-train has no flag --prefix-lenght; did you mean 'prefix-length'?"),
        ("prefix~seed=5", "seed is set for each run: list the seeds under seeds"),
        ("prefix~fp16=5", "fp16 is a switch"),
        ("perfix~lr=5", "no method is called 'perfix~lr=5'"),
        ("prefix~lr", "expected a name"),
        ("prefix~lr=../x", "expected a name"),
        ("infix", "infix is not for bart_large, but for ['gpt2'] only"),
        ("prefix~prefix_length=5", "fairseq-train has no flag --prefix_length; did you mean 'prefix-length'?"),
        ("prefix~fp16=yes", "prefix~fp16=yes: fp16 is a switch: write true or false, not 'yes'"),
        ("prefix~beam=2.5", "prefix~beam=2.5: beam: expected a whole number above 0, got '2.5'"),
        ("prefix~lr=1~lr=2", "prefix~lr=1~lr=2: a flag stands twice"),
        ("base~lr=1", "base~lr=1: base is not trained, and lr is for training alone"),
        (
            "finetune~prefix-length=5",
            "fairseq-train accepts prefix-length with arch prefix_bart, prefix_gpt2 or prefix_mbart only",
        ),
    ],
)
def test_a_mistake_in_a_variant_is_one_sentence(name, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        configuration(methods=[name])


@pytest.mark.parametrize(
    "setting, train, generate",
    [
        ("fp16=false", {"fp16": False}, {"fp16": True}),
        ("batch-size=8", {"batch-size": "8"}, {"batch-size": "32"}),
        ("lr-scheduler=inverse_sqrt", {"lr-scheduler": "inverse_sqrt"}, {}),
        ("lr=1e-4", {"lr": "1e-4"}, {}),
        ("base-dropout=on", {"base-dropout": "on"}, {}),
        ("max-target-tokens=null", {"max-target-tokens": None}, {"max-target-tokens": None}),
        ("max-source-tokens=9", {"max-source-tokens": "9"}, {"max-source-tokens": "9"}),
        ("beam=3", {}, {"beam": "3"}),
    ],
)
def test_a_flag_in_a_name_means_what_it_means_in_a_preset_and_is_for_training_where_both_have_it(
    setting, train, generate
):
    study = configuration()
    for command, expected in (("train", train), ("generate", generate)):
        flags = study.flags(command, "xsum", "bart_large", f"prefix~{setting}")
        for name, value in expected.items():
            assert (f"--{name}" in flags) == (value not in (None, False))
            assert flag(flags, name) == value or value in (None, False, True)


def test_a_batch_size_in_a_name_is_shared_out_among_gpus():
    study = configuration(methods=["prefix~batch-size=8"], overrides={"resources": {"gpus": 2}})
    assert flag(study.flags("train", "e2e", "bart_large", "prefix~batch-size=8"), "batch-size") == "4"


def test_sections_may_be_for_a_variant():
    """Its own flags win over them, as over all layers."""
    section = {"train": {"lr": 3, "prefix-length": 7}, "resources": {"gpus": 4}}
    study = configuration(overrides={"methods": {"prefix~lr=0.1": section, "prefix": {"train": {"prefix-length": 9}}}})
    flags = study.flags("train", "xsum_news_sport", "demo_bart", "prefix~lr=0.1")
    assert (flag(flags, "lr"), flag(flags, "prefix-length")) == ("0.1", "7")
    assert study.resources("e2e", "bart_large", "prefix~lr=0.1")["gpus"] == 4
    assert flag(study.flags("train", "e2e", "bart_large", "prefix~lr=0.2"), "prefix-length") == "9"
    for name, sentence in (
        ("prefix~lrr=0.1", "overrides: methods: prefix~lrr=0.1: fairseq-train has no flag --lrr; did you mean 'lr'?"),
        ("prefix~lr", "overrides: methods: 0: expected a name made of letters"),
        ("prefx~lr=1", "overrides: methods: no method is called 'prefx~lr=1'"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            configuration(overrides={"methods": {name: {}}})


def test_words_come_with_the_models_encoder_and_begin_as_its_texts_do():
    study = configuration()
    flags = study.flags("train", "xsum", "gpt2_medium", "prefix_words")
    assert flag(flags, "prefix-init-text") == " summarize" and flag(flags, "bpe") == "gpt2"
    assert flag(flags, "gpt2-encoder-json") in study.files_of_words("xsum", "gpt2_medium", "prefix_words")
    assert flag(study.flags("train", "e2e", "bart_large", "prefix_words"), "prefix-init-text") == "table-to-text:"
    flags = study.flags("train", "e2e", "demo_bart", "prefix_words")
    assert (flag(flags, "bpe"), flag(flags, "sentencepiece-model")) == ("sentencepiece", "bases/demo_bart/spm.model")
    assert study.files_of_words("e2e", "bart_large", "prefix") == []


def test_a_study_becomes_rows_of_runs():
    study = configuration(tasks=["e2e", "xsum"], models=["bart_large", "gpt2_medium"], seeds=[1, 2])
    rows = study.study_rows("length", "e2e")
    assert {row["model"] for row in rows} == {"bart_large", "gpt2_medium"}
    assert rows[0] == {
        "model": "bart_large",
        "method": "prefix~prefix-length=1",
        "x": "1",
        "runs": [f"runs/e2e/bart_large/prefix~prefix-length=1/{seed}" for seed in (1, 2)],
    }
    low = study.study_rows("low_data", "e2e")
    assert [row["x"] for row in low[:4]] == ["50", "100", "200", "500"]
    assert low[0]["runs"][:3] == [f"runs/e2e@50-{n}/bart_large/prefix_low/{s}" for n, s in ((1, 1), (1, 2), (2, 1))]
    assert len(low[0]["runs"]) == 5 * 2
    assert {row["model"] for row in study.study_rows("positions", "e2e")} == {"gpt2_medium"}
    assert study.study_rows("main", "e2e")[0]["runs"] == ["runs/e2e/bart_large/base/0"]
    assert study.study_rows("data_efficiency", "e2e")[4]["runs"] == [f"runs/e2e/bart_large/prefix/{s}" for s in (1, 2)]


def test_a_study_is_made_for_the_tasks_that_it_makes_sense_for_or_for_those_it_is_given():
    study = configuration(tasks=["e2e", "xsum"], studies=["extrapolation", "main"])
    assert study.studies == {"extrapolation": [], "main": ["e2e", "xsum"]}
    given = {"main": ["dart"], "low_data": ["e2e@50-1"]}
    assert configuration(tasks=["xsum"], studies=given).studies == given
    with pytest.raises(UserError, match="no task is called 'dat'; did you mean 'dart'"):
        configuration(studies={"main": ["dat"]})


def test_a_method_is_left_out_for_models_that_it_does_not_fit_with_a_note():
    study = configuration(models=["bart_large", "gpt2_medium"], methods=["prefix", "infix"])
    pairs = [("bart_large", "prefix"), ("gpt2_medium", "prefix"), ("gpt2_medium", "infix")]
    assert [run[:2] for run in study.runs()] == pairs
    note = "infix of bart_large: left out, the method is for gpt2 only"
    assert study.notes("xsum") == [note]
    rows = study.study_rows("positions", "e2e")
    assert {row["model"] for row in rows} == {"gpt2_medium"} and study.study_notes("positions", "e2e") == []
    with pytest.raises(UserError, match="infix is not for bart_base, but for"):
        configuration(models=["bart_base", "bart_large"], methods=["prefix", "infix"])


def test_a_note_says_which_flags_the_overrides_change_of_the_presets():
    overrides = {"train": {"lr": 0.01, "adam-eps": 1.0e-8}, "tasks": {"e2e": {"generate": {"beam": 9}}}}
    overrides["methods"] = {"finetune": {"train": {"lr": 3.0e-5, "fp16": None}}}
    study = configuration(methods=["base", "prefix", "finetune", "prefix~lr=1"], overrides=overrides)
    assert study.notes("e2e") == [
        "overrides change base of bart_large, prefix~lr=1 of bart_large: beam 9 (preset: 5)",
        "overrides change prefix of bart_large: lr 0.01 (preset: 8e-05), beam 9 (preset: 5)",
        "overrides change finetune of bart_large: "
        "lr 3e-05 (preset: 5e-05), fp16 none (preset: true), beam 9 (preset: 5)",
    ]
    assert configuration().notes("e2e") == []
    assert study.study_notes("length", "e2e")[0].startswith(
        "overrides change prefix~prefix-length=1 of bart_large, pre"
    )


def test_few_examples_have_the_papers_values_for_tables_and_for_summaries():
    study = configuration(models=["gpt2_medium", "bart_large"])

    def values(task, model, method, *flags):
        arguments = study.flags("train", task, model, method)
        return [arguments[arguments.index(f"--{flag}") + 1] for flag in flags]

    flags = ("lr", "batch-size", "warmup-updates", "max-update")
    assert values("e2e@50-1", "gpt2_medium", "prefix_low", *flags, "prefix-length") == ["5e-05", "10", "0", "200", "6"]
    assert values("e2e@500-1", "gpt2_medium", "finetune_low", *flags) == ["5e-05", "10", "0", "400"]
    assert values("xsum@50-3", "bart_large", "prefix_low", *flags, "prefix-length") == ["5e-05", "5", "100", "300", "1"]
    assert values("xsum@200-3", "bart_large", "finetune_low", *flags) == ["5e-05", "6", "100", "102"]


@pytest.mark.parametrize(
    ("models", "task"), [(["bart_large", "gpt2_medium"], "e2e"), (["demo_bart", "demo_gpt2"], "demo_table")]
)
def test_every_shipped_study_can_be_planned(models, task):
    study = configuration(models=models, tasks=[task])
    for name in study.known("studies"):
        assert study.study_rows(name, task)


def test_a_study_leaves_out_sizes_that_the_task_has_not_and_says_where_validation_is_smaller():
    study = configuration(tasks=["webnlg", "scitldr"], studies=["data_efficiency"])
    sizes = {
        task: list(dict.fromkeys(row["x"] for row in study.study_rows("data_efficiency", task))) for task in study.tasks
    }
    assert sizes == {"webnlg": ["100", "500", "2000", "10000", "all"], "scitldr": ["100", "500", "all"]}
    validated = "10,000 examples: validated on all 2,258 that webnlg has, instead of 3,000"
    assert study.study_notes("data_efficiency", "webnlg") == [validated] == study.notes("webnlg@10000-1")
    assert study.study_notes("data_efficiency", "scitldr") == [
        "2,000 examples: left out, scitldr has 1,992 to train on",
        "10,000 examples: left out, scitldr has 1,992 to train on",
    ]
    assert study.study_notes("data_efficiency", "e2e") == []


STUDY = {
    "title": "T",
    "question": "Q",
    "methods": ["prefix~lr=1e-3~prefix-length=5", "prefix~lr=1e-3~prefix-length=10"],
}
STUDY["methods"] += ["prefix~lr=1e-2~prefix-length=5", "finetune"]


def planned_study(folder: Path, tasks=("e2e",), **changes) -> Configuration:
    """A configuration with a study of one's own, planned for some tasks; None takes a key out."""
    (folder / "studies").mkdir()
    values = {key: value for key, value in (STUDY | changes).items() if value is not None}
    (folder / "studies" / "own.yaml").write_text(yaml.safe_dump(values))
    return configuration(folder, studies={"own": list(tasks)})


def test_rows_on_an_axis_of_several_flags_can_be_told_apart(tmp_path):
    study = planned_study(tmp_path, x=["lr", "prefix-length"], compare=[["prefix", "finetune"]])
    assert [row["x"] for row in study.study_rows("own", "e2e")] == ["1e-3 / 5", "1e-3 / 10", "1e-2 / 5", None]


def test_methods_with_the_same_value_of_different_flags_are_at_different_places(tmp_path):
    study = planned_study(tmp_path, methods=["prefix~lr=5", "prefix~prefix-length=5"], x=["lr", "prefix-length"])
    assert [row["x"] for row in study.study_rows("own", "e2e")] == ["5 / -", "- / 5"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"compare": [["prefx", "finetune"]]}, "compare: no method of this study is 'prefx'"),
        ({"compare": [["finetune", "prefix"]]}, "compare: no method of this study is 'prefix'"),
        (
            {"x": ["lr"], "methods": ["prefix~lr=1", "prefix~lr=2", "finetune~lr=3", "finetune~lr=4"]}
            | {"compare": [["prefix", "finetune"]]},
            "compare: prefix and finetune have no value of lr in common",
        ),
        ({"x": ["prefix-lenght"]}, "x: no method of this study sets 'prefix-lenght'; did you mean 'prefix-length'?"),
        (
            {"x": ["lr", "prefix-length"], "methods": ["prefix~lr=1~prefix-length=2", "prefix~prefix-length=2~lr=1"]},
            "methods: prefix~lr=1~prefix-length=2 and prefix~prefix-length=2~lr=1 set the same flags",
        ),
        ({"compare": [["finetune", "finetune"]]}, "compare: 0: something stands twice"),
        ({"x": ["lr", "lr"]}, "x: something stands twice in"),
        ({"draws": 3}, "draws: only subsets are drawn"),
        ({"split": "train"}, "split: expected test or valid, found 'train'"),
        ({"score": "rouge1"}, "own.yaml, e2e: score: the metrics of e2e do not give 'rouge1'"),
        ({"score": "bleu:seen"}, "own.yaml, e2e: score: bleu of e2e is not split into 'seen'"),
        ({"models": ["gpt2"]}, "own.yaml, e2e: the study is for gpt2, and no such model is configured"),
        ({"methods": ["infix"]}, "own.yaml, e2e: nothing is left to run; infix of bart_large: left out"),
        ({"methods": ["prefix~lrr=1"]}, "fairseq-train has no flag --lrr"),
        (
            {"methods": ["prefix_low"], "x": ["size"], "sizes": [50, 300]},
            "e2e@300-1, bart_large, prefix_low: prefix_low has",
        ),
        ({"methods": ["prefix"], "x": ["size"], "sizes": [50000]}, "nothing is left to run; 50,000 examples: left out"),
        (
            {"points": [{"task": "e3e", "model": "gpt2_medium", "method": "prefix", "bleu": 1}]},
            "points: 0: task: no task is",
        ),
        (
            {"points": [{"task": "e2e", "model": "gpt2_medum", "method": "prefix", "bleu": 1}]},
            "points: 0: model: no model is",
        ),
        (
            {"points": [{"task": "e2e", "model": "gpt2_medium", "method": "prefx", "bleu": 1}]},
            "points: 0: method: no method",
        ),
        (
            {"points": [{"task": "e2e", "model": "gpt2_medium", "method": "prefix", "blue": 1}]},
            "no score is called 'blue'",
        ),
        (
            {"points": [{"task": "e2e", "model": "gpt2_medium", "method": "prefix", "bleu": "7"}]},
            "bleu: expected a number",
        ),
        (
            {"points": [{"task": "e2e", "model": "gpt2_medium", "method": "prefix", "bleu": 1, "x": 1}]},
            "x is for a study with",
        ),
        (
            {"x": ["lr"], "points": [{"task": "e2e", "model": "gpt2_medium", "method": "prefix", "bleu": 1}]},
            "x is missing",
        ),
    ],
)
def test_a_mistake_in_a_study_is_one_sentence_when_it_is_planned(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        planned_study(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_score_that_this_machine_cannot_compute_is_refused_when_it_is_planned(tmp_path, monkeypatch):
    import config

    monkeypatch.setattr(config, "unavailable", lambda metric, options: "needs Java" if metric == "meteor" else None)
    with pytest.raises(
        UserError, match="own.yaml, webnlg: score: meteor:seen cannot be computed on this machine; it needs"
    ):
        planned_study(tmp_path, tasks=["webnlg"], score="meteor:seen")


def test_the_paper_need_not_have_asked_what_a_study_asks(tmp_path):
    assert "paper" not in planned_study(tmp_path).study("own")


def test_one_name_alone_is_a_list_of_one():
    study = configuration(models="gpt2_medium", methods="prefix~lr=1e-4")
    assert (study.models, study.methods) == (["gpt2_medium"], ["prefix~lr=1e-4"])
    assert configuration(seeds=["1", "2"]).seeds == [1, 2] and configuration(seeds=3).seeds == [3]


def test_flags_are_sorted_and_written_as_the_command_line_has_them():
    flags = {"lr": 5e-05, "fp16": True, "cpu": False, "patience": None, "adam-betas": "(0.9, 0.98)", "unkpen": -1}
    assert arguments(flags) == ["--adam-betas", "(0.9, 0.98)", "--fp16", "--lr", "5e-05", "--unkpen=-1"]


def test_cleaned_e2e_extends_e2e_without_the_checksum_of_another_file():
    study = configuration()
    digests = {path: value["sha256"] for path, value in study.downloads().items() if "data/e2e_cleaned/" in path}
    assert [len(digest) for digest in digests.values()] == [0, 1, 1]
    assert study.task("e2e_cleaned")["metrics"] == study.task("e2e")["metrics"]
    flags = study.flags("train", "e2e_cleaned", "gpt2_medium", "prefix")
    assert (flag(flags, "max-update"), flag(flags, "prefix-length")) == ("16765", "5")


def test_an_overlay_can_give_a_task_other_files():
    change = {
        "reader": "jsonl",
        "options": {"source": "document", "target": "summary"},
        "inputs": {split: {"path": f"../{split}.jsonl"} for split in ("train", "valid", "test")},
    }
    study = configuration(overrides={"tasks": {"e2e": change}})
    assert study.task("e2e")["reader"] == "jsonl"
    assert study.task_inputs("e2e") == {split: f"../{split}.jsonl" for split in ("train", "valid", "test")}
    assert not any("data/e2e/" in path for path in study.downloads())


def test_options_belong_to_their_reader():
    inputs = {"test": {"path": "x.xml"}}
    for change, kept in (({"inputs": inputs}, True), ({"inputs": inputs, "reader": "dart"}, False)):
        task = configuration(overrides={"tasks": {"webnlg": change}}).task("webnlg")
        assert ("options" in task) is kept and task["inputs"] == inputs


def test_an_overlay_allows_partial_data():
    change = {"inputs": {"test": {"path": "test.csv"}}, "expected": None}
    study = configuration(overrides={"tasks": {"e2e": change}})
    assert study.task("e2e")["expected"] is None and study.task_inputs("e2e") == {"test": "test.csv"}
    assert configuration().task("e2e")["expected"] == {"train": 42061, "valid": 547, "test": 630}


# Extended presets -----------------------------------------------------------------------------------------------------

BASE = {
    "reader": "jsonl",
    "options": {"source": "text", "target": "short"},
    "inputs": {"train": {"file": "a/train.jsonl"}},
    "metrics": {"bleu": {}},
    "train": {"max-update": 1, "patience": 2},
    "methods": {"prefix": {"train": {"prefix-length": 3, "adam-eps": 4}}},
}


def write_tasks(folder, **presets):
    (folder / "tasks").mkdir()
    for name, values in presets.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(values))


def test_a_preset_extends_another_by_what_differs(tmp_path):
    child = {"extends": "old", "options": {"target": "long"}, "train": {"patience": None}}
    child |= {"methods": {"prefix": {"train": {"adam-eps": 5}}}}
    grandchild = {"extends": "new", "dataset": "other", "metrics": {"rouge": {}}}
    write_tasks(tmp_path, old=BASE, new=child, newer=grandchild)
    study = configuration(tmp_path, tasks=["newer"])
    assert study.task("new") == {
        **BASE,
        "dataset": "old",
        "options": {"source": "text", "target": "long"},
        "train": {"max-update": 1, "patience": None},
        "methods": {"prefix": {"train": {"prefix-length": 3, "adam-eps": 5}}},
    }
    assert study.task("newer")["metrics"] == {"bleu": {}, "rouge": {}}
    paths = {name: study.task_inputs(name)["train"] for name in ("old", "new", "newer")}
    old = "resources/data/old/a/train.jsonl"
    assert paths == {"old": old, "new": old, "newer": "resources/data/other/a/train.jsonl"}
    assert study.task("old") == {**BASE, "dataset": "old"}


@pytest.mark.parametrize(
    ("presets", "sentence"),
    [
        ({"mine": {"extends": "xsun"}}, "mine.yaml: extends: no task is called 'xsun'; did you mean 'xsum"),
        ({"mine": {"extends": ["xsum"]}}, "mine.yaml: extends: no task is called ['xsum']"),
        ({"mine": {"extends": "mine"}}, "mine.yaml: extends: a preset cannot extend itself (mine -> mine)"),
        (
            {"mine": {"extends": "a"}, "a": {"extends": "b"}, "b": {"extends": "mine"}},
            "b.yaml: extends: a preset cannot extend itself (mine -> a -> b -> mine)",
        ),
        ({"mine": {"extends": "a"}, "a": []}, "a.yaml: expected a task, found []"),
        ({"mine": {"extends": "a"}, "a": {"reader": "e2e"}}, "a.yaml: the key 'metrics' is missing"),
        ({"mine": {"extends": "xsum", "optoins": {}}}, "mine.yaml: unknown key 'optoins'; did you mean 'options'?"),
        ({"mine": {"extends": "xsum", "train": {"lrr": 1}}}, "mine.yaml: train: fairseq-train has no flag --lrr"),
        ({"mine": {"extends": "xsum", "expected": {"dev": 1}}}, "mine.yaml: expected: unknown key 'dev'"),
        (
            {"mine": {"extends": "xsum", "expected": {"train": -1}}},
            "mine.yaml: expected: train: expected a whole number",
        ),
    ],
)
def test_a_mistake_in_an_extended_preset_is_one_sentence(tmp_path, presets, sentence):
    write_tasks(tmp_path, **presets)
    with pytest.raises(UserError) as caught:
        configuration(tmp_path, tasks=["mine"])
    assert str(caught.value).startswith(f"configs/tasks/{sentence}")


def test_an_overlay_cannot_extend():
    with pytest.raises(UserError, match="mine.yaml: overrides: tasks: xsum: unknown key 'extends'"):
        configuration(overrides={"tasks": {"xsum": {"extends": "e2e"}}})


def test_the_extrapolation_splits_are_xsum_with_other_articles():
    study = configuration()
    for name, length in (("xsum_news_sport", "40"), ("xsum_within_news", "80")):
        assert study.task_inputs(name) == study.task_inputs("xsum")
        assert study.task(name)["options"]["topics"].keys() == {"train", "valid", "test"}
        flags = study.flags("train", name, "bart_large", "prefix")
        assert flags[flags.index("--prefix-length") + 1] == length


# Subsets --------------------------------------------------------------------------------------------------------------


def without_updates(flags: list[str]) -> list[str]:
    """Without the flags that say how long a training is, and their values."""
    found = iter(flags)
    return [flag for flag in found if flag not in ("--max-update", "--total-num-update") or not next(found)]


def updates(task: str, method: str, model: str = "bart_large", **changes) -> tuple[str | None, str | None]:
    """max-update and warmup-updates of a training."""
    flags = configuration(**changes).flags("train", task, model, method)
    assert value_of(flags, "total-num-update") == value_of(flags, "max-update")
    return value_of(flags, "max-update"), value_of(flags, "warmup-updates")


@pytest.mark.parametrize(
    ("task", "method", "expected"),
    [
        ("e2e", "prefix", ("21035", "0")),  # 5 epochs of 42,061 pairs
        ("e2e@42061-1", "prefix", ("21035", "0")),
        ("e2e@10000-1", "prefix", ("5001", "0")),
        ("e2e@2000-1", "prefix", ("1000", "0")),
        ("e2e@100-1", "prefix", ("200", "0")),  # the paper's fewest, not 10 updates
        ("e2e", "finetune", ("21035", "500")),
        ("e2e@2000-1", "finetune", ("1000", "24")),
        ("e2e@100-1", "finetune", ("200", "5")),
        ("webnlg@1805-1", "adapter_small", ("3610", "0")),  # 36,050 of 18,025 pairs
        ("xsum@20000-1", "finetune", ("1470", "49")),  # in batches of tokens
        ("xsum_news_sport@720-1", "prefix", ("300", "0")),  # 15 epochs in batches of 36
    ],
)
def test_a_subset_is_trained_for_as_many_epochs_as_its_task(task, method, expected):
    assert updates(task, method) == expected


def test_a_number_that_is_meant_for_a_subset_is_taken_as_it_is():
    section = {"train": {"max-update": 21035, "warmup-updates": 70}}
    for overrides in (
        {"tasks": {"@300": section}},
        {"methods": {"finetune": {"tasks": {"e2e@300": section}}}},
        section,
    ):
        for method in ("finetune", "finetune_low"):
            if "tasks" in overrides or method == "finetune":
                assert updates("e2e@300-1", method, overrides=overrides) == ("21035", "70")
    assert updates("e2e@300-1", "finetune_low~max-update=250") == ("250", "0")


def test_a_task_may_say_the_updates_of_its_subsets(tmp_path):
    few = {"tasks": {"@": {"train": {"max-update": 2000}}, "own@40": {"train": {"max-update": 60}}}}
    write_tasks(tmp_path, own={"extends": "e2e", **few})
    study = configuration(tmp_path, tasks=["own@50-1", "own@40-1"])
    found = [value_of(study.flags("train", task, "bart_large", "prefix"), "max-update") for task in study.tasks]
    assert found == ["2000", "60"]


def test_a_number_of_a_method_that_extends_another_is_for_any_size(tmp_path):
    (tmp_path / "methods").mkdir()
    for name, base in (("mine", "finetune"), ("few", "prefix_low")):
        values = {"extends": base, "train": {"max-update": 321}}
        (tmp_path / "methods" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    study = configuration(tmp_path, tasks=["e2e", "e2e@50-1", "e2e@300-1"], methods=["mine", "few"])
    for task, method in itertools.product(study.tasks, study.methods):
        assert value_of(study.flags("train", task, "bart_large", method), "max-update") == "321"


def test_a_variant_says_the_number_of_updates_whatever_the_overrides_say():
    section = {"train": {"max-update": 21035}}
    assert updates("e2e@300-1", "finetune~max-update=250", overrides=section)[0] == "250"


@pytest.mark.parametrize(
    ("task", "method", "sizes"),
    [("e2e@300-1", "prefix_low", "50, 100, 200, 500"), ("xsum@1000-1", "finetune_low", "50, 100, 200, 500")],
)
def test_a_method_for_some_sizes_is_refused_for_others(task, method, sizes):
    size = task.partition("@")[2].partition("-")[0]
    expected = f"{task}, bart_large, {method}: {method} has max-update for {sizes} examples, not for {size}; set it for"
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        configuration(tasks=[task], methods=[method])
    assert f'overrides: {{tasks: {{"@{size}": {{train: {{max-update: N}}}}}}}}' in str(caught.value)
    configuration(tasks=[task], methods=[method], overrides={"tasks": {f"@{size}": {"train": {"max-update": 300}}}})


def test_a_method_for_some_sizes_is_noticed_on_a_whole_task(tmp_path):
    note = "prefix_low has max-update for 50, 100, 200, 500 examples; on all of e2e it gets the task's"
    study = planned_study(tmp_path, methods=["prefix_low", "prefix"], x=["size"], sizes=[50, "all"])
    assert study.study_notes("own", "e2e") == [note] and study.study_notes("low_data", "e2e") == []
    study = configuration(methods=["prefix", "prefix_low"])
    assert study.notes("e2e") == [note] and study.notes("e2e@50-1") == []


def test_a_task_that_does_not_say_its_pairs_is_not_trained_on_a_subset_for_hundreds_of_epochs(tmp_path):
    preset = {"reader": "jsonl", "options": {"source": "a", "target": "b"}, "inputs": {"train": {"path": "t"}}}
    preset |= {"metrics": {"bleu": {}}, "train": {"batch-size": 16, "max-update": 2000}}
    write_tasks(tmp_path, mine=preset, other={**preset, "pairs": {"train": 5000}}, child={"extends": "other"})
    write = (tmp_path / "tasks" / "new.yaml").write_text
    write(yaml.safe_dump({"extends": "other", "inputs": {"train": {"path": "other"}}}))
    sentence = (
        "mine@50-1, bart_large, prefix: max-update 2000 is for all of mine, and would be 640 epochs of 50 examples"
    )
    with pytest.raises(UserError, match=sentence):
        configuration(tmp_path, tasks=["mine@50-1"])
    with pytest.raises(UserError, match="new@50-1, bart_large, prefix: max-update 2000 is for all of new"):
        configuration(tmp_path, tasks=["new@50-1"])
    study = configuration(tmp_path, tasks=["mine@500-1", "other@1000-1", "child@1000-1"])
    found = [value_of(study.flags("train", task, "bart_large", "prefix"), "max-update") for task in study.tasks]
    assert found == ["2000", "400", "400"]
    few = configuration(tmp_path, tasks=["mine@4-1"], overrides={"train": {"max-update": 9}})
    assert value_of(few.flags("train", "mine@4-1", "bart_large", "prefix"), "max-update") == "9"


def test_a_subset_is_not_larger_than_its_task():
    with pytest.raises(UserError, match="mine.yaml: scitldr@2000-1: scitldr has only 1,992 pairs to train on"):
        configuration(tasks=["scitldr@2000-1"])
    other = {"tasks": {"scitldr": {"inputs": {"train": {"path": "mine.jsonl"}}}}}
    section = {"tasks": {"@2000": {"train": {"max-update": 9}}}}
    configuration(tasks=["scitldr@2000-1"], overrides={"tasks": {**other["tasks"], **section["tasks"]}})


def test_a_subset_is_its_task_with_overrides_for_either_name():
    overrides = {"tasks": {"e2e": {"train": {"lr": 1, "patience": 1}}, "e2e@50-1": {"train": {"patience": 2}}}}
    overrides |= {"methods": {"prefix": {"tasks": {"e2e@50-1": {"train": {"adam-eps": 3}}}}}}
    study = configuration(tasks=["e2e@50-1", "e2e@50-2"], overrides=overrides)
    assert study.task("e2e@50-1")["dataset"] == "e2e" and study.task("e2e@50-1")["metrics"]
    flags = {task: study.flags("train", task, "bart_large", "prefix") for task in ("e2e", "e2e@50-1", "e2e@50-2")}
    assert without_updates(flags["e2e"]) == without_updates(flags["e2e@50-2"]) != without_updates(flags["e2e@50-1"])
    for flag, values in {"--lr": ("1", "1"), "--patience": ("1", "2")}.items():
        assert tuple(flags[task][flags[task].index(flag) + 1] for task in ("e2e", "e2e@50-1")) == values
    official = list(configuration().task("e2e")["metrics"])
    metrics = {"e2e": {"metrics": {"chrf": {}}}, "e2e@50-1": {"metrics": {"ter": {}, "chrf": None}}}
    study = configuration(overrides={"tasks": metrics})
    assert list(study.task("e2e@50-2")["metrics"]) == [*official, "chrf"]
    assert list(study.task("e2e@50-1")["metrics"]) == [*official, "ter"]
    metrics = {"@": {"metrics": {"chrf": {}}}, "@50": {"metrics": {"ter": {}}}, "e2e@50": {"metrics": {"chrf": None}}}
    study = configuration(overrides={"tasks": metrics})
    assert list(study.task("e2e@50-2")["metrics"]) == [*official, "ter"]
    assert list(study.task("e2e@60-2")["metrics"]) == [*official, "chrf"]
    for name in ("e2e@50", "@50", "@"):
        with pytest.raises(UserError, match=f"overrides: tasks: {name}: inputs cannot be changed for a subset"):
            configuration(overrides={"tasks": {name: {"inputs": {"train": {"path": "x"}}}}})
    assert "3" == flags["e2e@50-1"][flags["e2e@50-1"].index("--adam-eps") + 1]


@pytest.mark.parametrize(
    "name", ["e2e@", "e2e@50", "e2e@0-1", "e2e@050-1", "e2e@50-01", "e2e@50-1-2", "e2e@-50-1", "@50-1"]
)
def test_a_malformed_subset_is_one_sentence(name):
    with pytest.raises(
        UserError, match="mine.yaml: tasks: 0: expected a name made of .* TASK@SIZE-SEED, such as e2e@50-1"
    ):
        configuration(tasks=[name])


def test_an_overlay_is_merged_into_options_metrics_and_expected():
    """A topic named for one split leaves those of the others, or training would take in what it should not see."""
    changes = {
        "xsum_news_sport": {"options": {"topics": {"test": ["sport/football"]}}},
        "webnlg": {"expected": {"train": 3}, "metrics": {"bleu": {"protocol": None, "lowercase": True}, "ter": None}},
    }
    study = configuration(overrides={"tasks": changes})
    topics = study.task("xsum_news_sport")["options"]["topics"]
    assert topics == {**configuration().task("xsum_news_sport")["options"]["topics"], "test": ["sport/football"]}
    webnlg = study.task("webnlg")
    assert webnlg["expected"] == {"train": 3, "valid": 871, "test": 1862}
    assert webnlg["metrics"] == {"bleu": {"lowercase": True}, "meteor": {"protocol": "webnlg"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"protocl": "e2e"}, "unknown option 'protocl' for bleu"), ({"protocol": "e2ee"}, "bleu has no protocol 'e2ee'")],
)
def test_a_mistake_in_a_metric_is_seen_before_anything_runs(options, message):
    with pytest.raises(UserError, match=f"mine.yaml: metrics: {message}"):
        configuration(tasks=["e2e"], overrides={"tasks": {"e2e": {"metrics": {"bleu": options}}}})


def test_a_subset_of_no_task_is_one_sentence():
    with pytest.raises(UserError, match="mine.yaml: tasks: no task is called 'e3e@50-1'; there are: aeslc, "):
        configuration(tasks=["e3e@50-1"])
    with pytest.raises(UserError, match="overrides: tasks: no task is called 'e3e@50-1'"):
        configuration(overrides={"tasks": {"e3e@50-1": {}}})


@pytest.mark.parametrize("change", [{"expected": None}, {"reader": "jsonl"}, {"inputs": {"train": {"path": "x"}}}])
def test_the_examples_of_a_subset_are_those_of_its_task(change):
    with pytest.raises(UserError, match=f"tasks: e2e@5-1: {next(iter(change))} cannot be changed for a subset, whose"):
        configuration(overrides={"tasks": {"e2e@5-1": change}})


def test_truncation_is_what_training_gets():
    study = configuration(overrides={"tasks": {"dart": {"models": {"bart_tiny": {"data": {"max-source-tokens": 9}}}}}})
    assert study.truncation("xsum", "bart_large") == {"max-source-tokens": 512, "max-target-tokens": 60}
    assert study.truncation("xsum", "text_bart") == {"max-source-tokens": 254, "max-target-tokens": 60}
    assert study.truncation("dart", "text_bart") == {"max-source-tokens": 9, "max-target-tokens": 0}
    assert study.truncation("dart@5-1", "bart_large") == TRUNCATION


def value_of(flags: list[str], flag: str) -> str | None:
    return flags[flags.index(f"--{flag}") + 1] if f"--{flag}" in flags else None


@pytest.mark.parametrize(
    ("resources", "batch", "flags", "shared"),
    [
        ({}, {"batch-size": 12, "update-freq": 3}, ("12", "3"), {"gpus": 1, "nodes": 1}),
        ({"gpus": 4}, {"batch-size": 12}, ("3", None), {"gpus": 4, "nodes": 1}),
        ({"gpus": 2, "nodes": 3}, {"batch-size": 12}, ("2", None), {"gpus": 2, "nodes": 3}),
        ({"gpus": 3}, {"batch-size": 5, "update-freq": 6}, ("5", "2"), {"gpus": 3, "nodes": 1}),
        ({"gpus": 4}, {"batch-size": 6, "update-freq": 2}, ("3", "1"), {"gpus": 4, "nodes": 1}),
        ({"nodes": 2}, {"batch-size": None, "max-tokens": 100, "update-freq": 2}, (None, "1"), {"gpus": 1, "nodes": 2}),
    ],
)
def test_a_batch_stays_the_same_on_any_number_of_gpus(resources, batch, flags, shared):
    """batch-size times update-freq times processes is what the flags say for one."""
    study = configuration(overrides={"resources": resources, "train": batch})
    run = ("xsum", "bart_large", "prefix")
    assert study.resources(*run) == shared
    found = study.flags("train", *run)
    assert (value_of(found, "batch-size"), value_of(found, "update-freq")) == flags
    alone = configuration(overrides={"train": batch})
    assert study.flags("generate", *run) == alone.flags("generate", *run)


@pytest.mark.parametrize("batch", [{"batch-size": 14}, {"batch-size": None, "max-tokens": 4096}, {"max-tokens": 4096}])
def test_a_batch_that_cannot_be_shared_is_one_sentence(batch):
    with pytest.raises(UserError, match="xsum, bart_large, prefix: 4 GPUs cannot make equal shares of a batch"):
        configuration(overrides={"resources": {"gpus": 4}, "train": {"batch-size": 16} | batch})


def test_resources_come_in_the_layers_of_flags():
    overrides = {"resources": {"gpus": 2}, "models": {"large": {"resources": {"gpus": 7}}, "bart_base": {}}}
    overrides["methods"] = {"finetune": {"resources": {"nodes": 2}}}
    study = configuration(overrides=overrides)
    assert study.resources("xsum", "bart_large", "finetune") == {"gpus": 7, "nodes": 2}
    assert study.resources("xsum", "bart_base", "prefix") == {"gpus": 2, "nodes": 1}


def test_an_untrained_method_runs_once_whatever_the_seeds():
    study = configuration(methods=["base", "prefix"], seeds=[5, 6])
    assert list(study.runs()) == [("bart_large", "base", 0), ("bart_large", "prefix", 5), ("bart_large", "prefix", 6)]


def test_flags_known_here_are_those_of_fairseq():
    """After a change of fairseq or the plugin: python tests/fairseq_flags.py > workflow/schemas/flags.yaml."""
    pytest.importorskip("fairseq")
    import fairseq_flags

    from fairseq_prefix.toolkit.task import MAX_SOURCE_TOKENS, ConditionalGenerationConfig

    defaults = {
        "max-source-tokens": MAX_SOURCE_TOKENS,
        "max-target-tokens": ConditionalGenerationConfig().max_target_tokens,
    }
    assert defaults == TRUNCATION
    assert fairseq_flags.text() == (SCHEMAS / "flags.yaml").read_text()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"modles": []}, "mine.yaml: unknown key 'modles'; did you mean 'models'?"),
        ({"tasks": ["xsumm"]}, "mine.yaml: tasks: no task is called 'xsumm'; did you mean 'xsum'?"),
        ({"methods": ["lora"]}, "mine.yaml: methods: no method is called 'lora'; there are: adapter, "),
        ({"tasks": {"xsum": 1}}, "mine.yaml: tasks: expected a list of names, found {'xsum': 1}"),
        ({"tasks": []}, "mine.yaml: tasks: must not be empty"),
        ({"tasks": ["../xsum"]}, "mine.yaml: tasks: 0: expected a name made of letters"),
        ({"tasks": ["xsum; rm -rf ."]}, "mine.yaml: tasks: 0: expected a name made of letters"),
        ({"seeds": [1, 1]}, "mine.yaml: seeds: something stands twice in [1, 1]"),
        ({"seeds": ["one"]}, "mine.yaml: seeds: 0: expected a whole number from 0 to 4294967295, found 'one'"),
        ({"seeds": [-1]}, "mine.yaml: seeds: 0: expected a whole number from 0 to 4294967295, found -1"),
        ({"mirror": ["$(reboot)"]}, "mine.yaml: mirror: 0: expected a path without quotes"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_sentence(change, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        configuration(**change)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        ({"trian": {}}, "overrides: unknown key 'trian'; did you mean 'train'?"),
        ({"train": {"lr": [1]}}, "overrides: train: lr: expected a number, a text, true"),
        (
            {"train": {"max-updates": 3}},
            "overrides: train: fairseq-train has no flag --max-updates; did you mean 'max-update'?",
        ),
        ({"train": {"beam": 3}}, "overrides: train: fairseq-train has no flag --beam"),
        (
            {"train": {"base-dropout": True}},
            "overrides: train: base-dropout needs a value, not true (YAML reads on, off",
        ),
        ({"generate": {"fp16": "yes"}}, "overrides: generate: fp16 is a switch: write true or false, not 'yes'"),
        ({"train": {"save-dir": "x"}}, "overrides: train: save-dir is set by the workflow itself; leave it out"),
        ({"data": {"lr": 1}}, "overrides: data: fairseq-generate has no flag --lr"),
        ({"train": {"Lr": 1}}, "overrides: train: expected a flag's name in small letters"),
        ({"train": {"prefix_length": 5}}, "found 'prefix_length'; did you mean 'prefix-length'?"),
        ({"train": {"learning-rate": 5}}, "fairseq-train has no flag --learning-rate; did you mean 'lr'?"),
        ({"lr": 5}, "overrides: unknown key 'lr'; it is a flag of fairseq: write it under train"),
        ({"train": {"beam": 5}}, "has no flag --beam; fairseq-generate has it: write it under generate"),
        ({"train": {"wd": 0.1}}, "overrides: train: wd is another name of weight-decay; write weight-decay"),
        ({"train": {"optimizer": "sgd"}}, "xsum, bart_large, prefix: fairseq-train accepts adam-betas with optimizer"),
        (
            {"train": {"adapter-dim": 5}},
            "accepts adapter-dim with arch adapter_bart, adapter_gpt2 or adapter_mbart only, not with",
        ),
        ({"train": {"max-update": 0}}, "xsum, bart_large, prefix: lr-scheduler polynomial_decay needs max-update"),
        ({"tasks": {"dart": {"reader": "jsonlines"}}}, "reader: no reader is called 'jsonlines'; did you mean 'jsonl'"),
        ({"tasks": {"e3e": {}}}, "overrides: tasks: no task is called 'e3e'; did you mean 'e2e'?"),
        ({"models": {"bart_larg": {}}}, "overrides: models: no model is called 'bart_larg'; did you mean 'bart_large"),
        (
            {"tasks": {"e2e": {"methods": {"prefix": {"train": {"lrr": 1}}}}}},
            "overrides: tasks: e2e: methods: prefix: train: fairseq-train has no flag --lrr; did you mean 'lr'?",
        ),
        (
            {"tasks": {"xsum": {"reader": "jsonlines"}}},
            "reader: no reader is called 'jsonlines'; did you mean 'jsonl'?",
        ),
        (
            {"tasks": {"xsum": {"metrics": {"rogue": {}}}}},
            "metrics: no metric is called 'rogue'; did you mean 'rouge'?",
        ),
        ({"tasks": {"xsum": {"inputs": {"train": {}}}}}, "inputs: train: give either file"),
        ({"tasks": {"xsum": {"inputs": {"a/b": {"path": "x"}}}}}, "overrides: tasks: xsum: inputs: expected a name"),
        ({"tasks": {"xsum": {"dataset": ".."}}}, "overrides: tasks: xsum: dataset: expected a name"),
        ({"train": {"max-update": None}}, "xsum, bart_large, prefix: lr-scheduler polynomial_decay needs max-update"),
    ],
)
def test_a_mistake_in_the_overrides_is_one_sentence(overrides, sentence):
    with pytest.raises(UserError) as caught:
        configuration(overrides=overrides)
    assert str(caught.value).startswith("mine.yaml: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command, flag, value, sentence",
    [
        ("train", "prefix-length", -5, "expected a whole number above 0, got -5"),
        ("train", "batch-size", "sixteen", "expected a whole number above 0, got 'sixteen'"),
        ("train", "batch-size", 0, "expected a whole number above 0, got 0"),
        ("train", "max-tokens", 4096.0, "expected a whole number above 0, got 4096.0"),
        ("train", "warmup-updates", -1, "expected a whole number, 0 or above, got -1"),
        ("train", "dropout", 1.5, "expected a number from 0 to 1, got 1.5"),
        ("train", "label-smoothing", "some", "expected a number from 0 to 1, got 'some'"),
        ("train", "weight-decay", -0.1, "expected a number, 0 or above, got -0.1"),
        ("train", "lr", float("nan"), "expected a number, 0 or above, or a list of them in quotes, got nan"),
        ("train", "lr", "[1e-3, x]", "expected a number, 0 or above, or a list of them in quotes, got '.1e-3, x]'"),
        ("train", "update-freq", "1,0", "expected a whole number above 0, or a list of them in quotes, got '1,0'"),
        ("train", "lr-scheduler", "polinomial", "expected cosine, fixed, .*; did you mean 'polynomial_decay'"),
        ("train", "base-dropout", "of", "expected off or on, got 'of'; did you mean 'off'"),
        ("train", "task", "denoising", "expected conditional_generation, .* or translation, got 'denoising'"),
        ("train", "prefix-sites", "encodr", "expected encoder, decoder, cross, or several of them, got 'encodr'"),
        ("train", "adam-betas", "(0.9, 1.5)", "expected two numbers from 0 to below 1"),
        ("train", "save-interval", 0, "expected a whole number above 0, got 0"),
        ("train", "batch-size-valid", -1, "expected a whole number above 0, got -1"),
        ("generate", "beam", 2.5, "expected a whole number above 0, got 2.5"),
        ("generate", "temperature", 0, "expected a number above 0, got 0"),
        ("generate", "sampling-topp", 1.5, "expected a number up to 1, got 1.5"),
        ("data", "max-source-tokens", -1, "expected a whole number, 0 or above, got -1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_when_planning(command, flag, value, sentence):
    with pytest.raises(UserError, match=f"^mine.yaml: overrides: {command}: {flag}: {sentence}"):
        configuration(overrides={command: {flag: value}})


@pytest.mark.parametrize(
    "command, flag, value, given",
    [
        ("train", "lr", "5e-5", "5e-5"),
        ("train", "lr", "[1e-3, 1e-4]", "[1e-3, 1e-4]"),
        ("train", "batch-size", "16", "16"),
        ("train", "patience", -1, "-1"),
        ("train", "prefix-sites", "encoder, cross", "encoder, cross"),
        ("generate", "lenpen", -0.5, "-0.5"),
        ("generate", "sampling-topp", 0.9, "0.9"),
        ("generate", "temperature", 0.7, "0.7"),
        ("train", "log-interval", "null", None),  # as `--config` on a command line hands over all texts
        ("train", "fp16", "false", None),
    ],
)
def test_a_value_that_can_be_meant_reaches_the_command(command, flag, value, given):
    flags = configuration(overrides={command: {flag: value}}).flags(command, "xsum", "bart_large", "prefix")
    found = [part for part in flags if part.partition("=")[0] == f"--{flag}"]
    if given is None:
        assert not found
    else:
        assert found == [f"--{flag}={given}"] or flags[flags.index(f"--{flag}") + 1] == given


@pytest.mark.parametrize(
    "command, flag, value, reason",
    [
        ("generate", "nbest", 2, "is not supported: the workflow scores one hypothesis of each example"),
        ("generate", "patience", 3, "has no effect on generation; write it under train"),
        ("generate", "lr", 3, "is a flag of fairseq-train; write it under train"),
        ("generate", "iter-decode-max-iter", 3, "is for models that the plugin does not have"),
        ("generate", "score-reference", True, "would score the references"),
        ("generate", "quiet", True, "would change or hide the subwords"),
        ("generate", "sacrebleu", True, "has no effect here: the scores come from the task's metrics"),
        ("generate", "print-alignment", "hard", "would print what the workflow does not read"),
        ("data", "skip-invalid-size-inputs-valid-test", True, "would drop examples"),
        ("train", "finetune-from-model", "x.pt", "would start from a checkpoint that the workflow does not track"),
        ("train", "seed", 5, "is set for each run: list the seeds under seeds"),
        (
            "train",
            "distributed-world-size",
            2,
            "is set from the GPUs of a training: set gpus and nodes",
        ),
        ("train", "no-save", True, "would hide the checkpoints from the workflow"),
        ("train", "reset-optimizer", True, "would make a resumed training differ"),
        ("train", "tensorboard-logdir", "x", "is set by the workflow itself"),
    ],
)
def test_a_flag_whose_effect_the_workflow_cannot_use_is_refused_with_the_reason(command, flag, value, reason):
    with pytest.raises(UserError, match=f"^mine.yaml: overrides: {command}: {flag} {reason}"):
        configuration(overrides={command: {flag: value}})


def test_a_tilde_stands_for_the_home_folder_in_all_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    change = {"inputs": {"train": {"path": "~/train.csv"}}, "expected": None}
    study = configuration(mirror=["~/mirror"], overrides={"tasks": {"e2e": change}, "generate": {"lm-path": "~/lm.pt"}})
    assert study.mirror == ["/home/ada/mirror"] and study.task_inputs("e2e") == {"train": "/home/ada/train.csv"}
    assert flag(study.flags("generate", "e2e", "bart_large", "prefix"), "lm-path") == "/home/ada/lm.pt"


def test_a_broken_preset_stops_only_what_needs_it(tmp_path):
    """Three are unfinished, one has a name that none may have, and one gives a file of e2e's another address."""
    clash = {"dataset": "e2e", "reader": "e2e", "metrics": {"bleu": {}}}
    clash |= {"inputs": {"train": {"file": "trainset.csv", "url": "https://127.0.0.1/x"}}}
    for kind, name, text in (
        ("tasks", "mine", "reader: e2e\n"),
        ("models", "mine", "architecture: bart_base\n"),
        ("methods", "mine", "train: [\n"),
        ("tasks", "my copy", "reader: e2e\n"),
        ("tasks", "clash", yaml.safe_dump(clash)),
    ):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.yaml").write_text(text)
    study = configuration(tmp_path, tasks=["e2e"])
    assert list(study.runs()) and study.downloads()["data/e2e/trainset.csv"]["sha256"]
    assert "mine" in study.known("methods") and "mine" not in study.methods_where(trained=True)
    assert [line.split(":")[0] for line in study.broken()] == [
        *["configs/tasks/my copy.yaml", "clash", "configs/tasks/mine.yaml", "configs/models/mine.yaml"],
        "configs/methods/mine.yaml, line 2",
    ]
    for task in ("mine", "clash"):
        with pytest.raises(UserError, match="the key 'metrics' is missing|another url or sha256 in e2e"):
            study.check_runs(task, [("bart_large", "prefix")])
    with pytest.raises(UserError, match="configs/models/mine.yaml: the key 'vocabulary' is missing"):
        configuration(tmp_path, models=["mine"])
    with pytest.raises(UserError, match="e2e: data/e2e/trainset.csv has another url or sha256 in clash"):
        configuration(tmp_path, tasks=["clash", "e2e"], overrides={"train": {"max-update": 1}}).downloads()


@pytest.mark.parametrize(
    "kind, text, sentence",
    [
        ("methods", "architecture: prefix\ntrained: yes\n", "the key 'exported' is missing"),
        ("methods", "architecture: perfix\ntrained: true\nexported: true\n", "architecture: expected prefix, full"),
        ("methods", "architecture: full\ntrained: true\nexported: true\n", "only a trained prefix can be exported"),
        ("methods", "trained: true\ntrained: false\n", "line 2: not valid YAML (the key 'trained' stands twice)"),
        ("methods", "trained: [true\n", "not valid YAML"),
        ("methods", "trained: !!python/object/apply:os.system [reboot]\n", "not valid YAML"),
        ("methods", "", "expected a method, found None"),
        (
            "models",
            "architecture: bart_huge\nvocabulary: gpt2\nbase: {archive: {path: a}}\n",
            "the plugin has no 'bart_huge'",
        ),
        (
            "models",
            "architecture: bart_base\nvocabulary: gpt2\nbase: {}\n",
            "exactly one of archive, files and pretrained",
        ),
        (
            "models",
            "architecture: mbart_base\nvocabulary: gpt2\nbase: {archive: {path: a}}\n",
            "vocabulary: expected sentencepiece for mbart_base, got gpt2",
        ),
        (
            "models",
            "architecture: mbart_base\nvocabulary: sentencepiece\nbase: {files: {config.json: {path: a}}}\n",
            "base: files: spm.model and vocabulary: sentencepiece go together",
        ),
        (
            "models",
            (CONFIGS / "models" / "demo_bart.yaml").read_text().replace("sentencepiece", "gpt2"),
            "vocabulary: expected sentencepiece for a base that is pretrained here, got gpt2",
        ),
        (
            "models",
            (CONFIGS / "models" / "demo_bart.yaml").read_text().replace("bart_tiny", "mbart_tiny"),
            "base: mbart_tiny cannot be pretrained here; give archive or files",
        ),
        ("tasks", "reader: e2e\nmetrics: {bleu: {}}\n", "give either inputs or demo"),
        (
            "tasks",
            "reader: e2e\nmetrics: {bleu: {}}\ninputs: {a: {file: x, url: 'ftp://x'}}\n",
            "inputs: a: url: expected",
        ),
        ("tasks", "reader: e2e\nmetrics: {bleu: {}}\ninputs: {a: {file: ../x}}\n", "inputs: a: file: expected a name"),
        ("tasks", "reader: e2e\nmetrics: {bleu: {}}\ninputs: {a: {file: /x}}\n", "inputs: a: file: expected a name"),
        (
            "tasks",
            "reader: e2e\nmetrics: {bleu: {}}\ninputs: {a: {file: x/../y}}\n",
            "inputs: a: file: expected a name",
        ),
        ("tasks", "reader: e2e\nmetrics: {bleu: {}}\ninputs: {a: {file: x//y}}\n", "inputs: a: file: expected a name"),
    ],
)
def test_a_mistake_in_a_preset_names_its_file(tmp_path, kind, text, sentence):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        configuration(tmp_path, **{kind: ["mine"]})
    assert str(caught.value).startswith(f"configs/{kind}/mine.yaml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "architecture, pretrained, sentence",
    [
        ("gpt2_tiny", {"text": {}, "noise": {}}, "give either noise (denoising) or text (language modelling)"),
        ("gpt2_tiny", {}, "give either noise (denoising) or text (language modelling)"),
        ("bart_tiny", {"text": {}}, "text is for a language model; bart_tiny is none"),
        ("gpt2_tiny", {"text": {}, "train": {"task": "conditional_lm"}}, "train: task is language_modeling here"),
        ("gpt2_tiny", {"noise": {}, "train": {"task": "language_modeling"}}, "train: task is conditional_lm here"),
    ],
)
def test_a_base_is_pretrained_as_its_family_can_be(tmp_path, architecture, pretrained, sentence):
    pretrained = {"demo": {"kind": "documents", "seed": 1}, "vocabulary": {}, "train": {}, "seed": 1} | pretrained
    values = {"architecture": architecture, "vocabulary": "sentencepiece", "base": {"pretrained": pretrained}}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=re.escape(f"configs/models/mine.yaml: base: pretrained: {sentence}")):
        configuration(tmp_path, models=["mine"])


@pytest.mark.parametrize("name", ["gpt2", "tiny", "gpt2_medium", "gpt2_spaced"])
def test_a_model_is_not_called_as_a_group_or_a_vocabulary_is(tmp_path, name):
    """Its text would be taken for GPT-2's own, and sections for the group would be the model's."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{name}.yaml").write_text((CONFIGS / "models" / "demo_gpt2.yaml").read_text())
    with pytest.raises(UserError, match=f"models/{name}.yaml: {name} is the name of a group of models or of a voc"):
        configuration(tmp_path, models=[name])


def test_a_base_is_pretrained_by_its_familys_task():
    study = configuration()
    for model, task in (("demo_bart", "conditional_generation"), ("demo_gpt2", "conditional_lm")):
        flags = study.pretraining_flags(model)
        assert flags[flags.index("--task") + 1] == task


def test_the_schema_itself_is_valid():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(load_yaml(REPOSITORY / "workflow" / "schemas" / "config.schema.yaml"))
    check(SHIPPED, "config", "shipped")


if __name__ == "__main__":
    print(commands(), end="")
