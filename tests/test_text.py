"""One text has the same tokens and the same answer whichever way it comes in: odd texts, a random prefix, and
vocabularies that hide no difference (byte BPE, and SentencePiece that normalises nothing).
"""

import contextlib
import io
import json
import re
import shutil
from argparse import Namespace

import bpe
import prepare
import pytest
import sentencepiece
import test_api
from common import UserError, single_line
from fairseq import options
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.models.bart import BARTHubInterface
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import interactive as fairseq_interactive

from fairseq_prefix.errors import UsageError
from fairseq_prefix.methods import initialise

ODD = [
    "the cat\nsat",
    "the cat\r\nsat on\r\rthe mat\n",
    "\n\n the cat \n\n sat",
    "the\tcat\t\tsat",
    "the\x0bcat\x0csat",
    "the\x1ccat\x1dsat\x1eon",
    "the\x1fcat\x01\x7f",
    "the\x85cat",
    "the\u2028cat\u2029sat",
    "the\u00a0cat\u3000sat",
    "the  cat   sat",
    "  the cat  ",
    "\u00a0the cat\u2003",
    "\ufeffthe cat",
    " \ufeff\ufeff the cat",
    "the\ufeffcat\ufeff",
    "\u200bthe\u200bcat\u200b",
    "the cat 🎉🏽 日本 on",
    "e\u0301 cafe\u0301 café",
    "<s> the </s> <mask> <unk> <pad> cat",
    "<mask>",
    "a <<unk>> b",
    "madeupword0000",
    "<|endoftext|> the",
    "▁the▁cat ⁇",
    "the @@ cat@@ #fairseq:overwrite",
    "65 66",
    "cat",
    "the cat sat on the mat, " * 4,  # longer than what the prefix reads
]
REFUSED = {"": "is empty", " \n\t\u2028 ": "is empty", "\ufeff": "is empty", "the\0cat": "holds a NUL character"}
pytestmark = pytest.mark.usefixtures("hooks")
FLAGS = {"beam": 2, "max_len_b": 8, "min_len": 1}
KINDS = ("bart-bytes", "gpt2-bytes", "bart-spm")


def test_a_clean_text_is_what_every_reader_of_lines_takes_for_one_line():
    """Cleaning it again, as a second stage does, changes nothing."""
    for sign in map(chr, [*range(0x3100), 0xFEFF, 0xFFFD, 0x1F3FD, 0x10FFFF]):  # every white space among them
        for text in (f"a{sign}b", f" {sign}a{sign} ", f"{sign} \ufeff{sign}a"):
            line = single_line(text)
            assert line.splitlines() in ([line], []) and "\t" not in line and single_line(line) == line == line.strip()
            if not sign.isspace() and sign != "\ufeff":
                assert line.count(sign) == text.count(sign), "nothing else is lost"
    assert single_line("\ufeff the\ufeffcat\ufeff") == "the\ufeffcat\ufeff"
    assert single_line("\u200bthe  cat\u00a0sat\u200b") == "\u200bthe  cat\u00a0sat\u200b"


@pytest.fixture(scope="module")
def plain_spm(tmp_path_factory):
    """A sentencepiece model that changes nothing in a text before it encodes it."""
    path = tmp_path_factory.mktemp("plain") / "spm.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat", "<s> café, 12 + 3 < 4 and/or 5 > 4 <unk>"] * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=60,
            character_coverage=1.0,
            hard_vocab_limit=False,
            control_symbols=["<mask>"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return path


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory, plain_spm, byte_bpe):
    """A base, its prefixes, and what the workflow's own files hold for the odd texts."""
    made = test_api.World(tmp_path_factory.mktemp(request.param), request.param, plain_spm, byte_bpe)
    made.hypotheses = made.workflow("short", ODD, **FLAGS)
    folder = next(made.folder.glob("workflow.short.*"))
    longest = test_api.PREFIXES[made.family]["short"][0]
    made.tokens = [line.split()[:longest] for line in (folder / "test.source").read_text(encoding="utf-8").splitlines()]
    made.bin, made.checkpoint = folder / "bin", folder / "imported.pt"
    made.api = made.load("short")
    made.hub = hub(made)
    assert len({*made.hypotheses}) > len(ODD) / 3, "too few different answers to show a difference"
    return made


def hub(world):
    """fairseq's interface for torch.hub."""
    return type(world.api._model).from_pretrained(
        str(world.checkpoint.parent), world.checkpoint.name, str(world.bin), batch_size=4, **bpe_options(world)
    )


def subwords(world, tokens):
    """Pieces of token ids, without the symbols that the task adds."""
    return [piece for piece in map(world.symbols.__getitem__, tokens) if piece not in ("<s>", "</s>", "<pad>")]


def bpe_options(world):
    """fairseq's options that name the vocabulary."""
    if (world.base / "spm.model").exists():
        return {"bpe": "sentencepiece", "sentencepiece_model": str(world.base / "spm.model")}
    return {
        "bpe": "gpt2",
        "gpt2_encoder_json": str(world.base / "encoder.json"),
        "gpt2_vocab_bpe": str(world.base / "vocab.bpe"),
    }


def command_line(given):
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_the_api_answers_as_the_workflow(world):
    model = world.api
    encoded = [model._encode(1, text, model._uses["short"]).tolist() for text in ODD]
    assert [subwords(world, tokens) for tokens in encoded] == world.tokens
    assert model.generate(ODD, "short", **FLAGS) == world.hypotheses


def test_the_command_answers_as_the_workflow(world):
    texts = [text.replace("\n", "\r") for text in ODD]  # a line ends at a line feed alone
    lines = "".join(f"short\t{text}\n" for text in texts).encode()
    assert test_api.run(world, lines, "short", **FLAGS) == world.hypotheses


def interactive(world, text, tmp_path, **given):
    """(pieces, text) of each line, by fairseq-interactive."""
    (tmp_path / "lines").write_bytes(text.encode())
    task = "conditional_lm" if world.family == "gpt2" else "conditional_generation"
    arguments = [str(world.bin), "--path", str(world.checkpoint), "--task", task, "--input", str(tmp_path / "lines")]
    longest = test_api.PREFIXES[world.family]["short"][0]
    flags = {"max_source_tokens": longest, "buffer_size": 8, "batch_size": 4, **FLAGS, **given}
    args = options.parse_args_and_arch(options.get_interactive_generation_parser(), arguments + command_line(flags))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        fairseq_interactive.main(args)
    lines = output.getvalue().split("\n")
    sources, found = ([line.split("\t", 1)[1] for line in lines if line.startswith(kind)] for kind in ("S-", "D-"))
    return [line.split() for line in sources], [line.split("\t", 1)[1] for line in found]


def test_fairseq_interactive_answers_as_the_workflow(world, tmp_path):
    rows = [row for row, text in enumerate(ODD) if not re.search("[\r\n]", text)]  # which end lines there
    text = "".join(f"{ODD[row]}\n" for row in rows)
    pieces, found = interactive(world, text, tmp_path, **bpe_options(world))
    assert pieces == [world.tokens[row] for row in rows]
    assert found == [world.hypotheses[row] for row in rows]


def test_fairseq_generate_decodes_as_the_workflow(world):
    """The lines of its output that are text: sources, references and hypotheses."""
    longest = test_api.PREFIXES[world.family]["short"][0]
    task = "conditional_lm" if world.family == "gpt2" else "conditional_generation"
    arguments = [str(world.bin), "--path", str(world.checkpoint), "--task", task, "--gen-subset", "test"]
    flags = {"max_source_tokens": longest, "batch_size": 4, **FLAGS, **bpe_options(world)}
    args = options.parse_args_and_arch(options.get_generation_parser(), arguments + command_line(flags))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        fairseq_generate.main(args)
    found = dict(line.split("\t", 1) for line in output.getvalue().split("\n") if re.match(r"[STD]-\d+\t", line))
    rows = range(len(ODD))
    assert [found[f"D-{row}"].split("\t", 1)[1] for row in rows] == world.hypotheses
    assert [found[f"S-{row}"] for row in rows] == [world.hub.bpe.decode(" ".join(pieces)) for pieces in world.tokens]
    assert {found[f"T-{row}"] for row in rows} == {"the"}


def test_a_reference_s_unknown_symbol_is_decoded_as_a_hypothesis_s(world):
    """fairseq writes it as `<<unk>>` there."""
    assert world.hub.bpe.decode("<<unk>>") == world.hub.bpe.decode("<unk>") != ""


def test_fairseq_s_hub_answers_as_the_workflow(world):
    found = GeneratorHubInterface(world.hub.cfg, world.hub.task, world.hub.models)
    encoded = [found.encode(text) for text in ODD]
    longest = test_api.PREFIXES[world.family]["short"][0]
    assert [subwords(world, tokens)[:longest] for tokens in encoded] == world.tokens
    assert found.translate(ODD, **FLAGS) == found.sample(ODD, **FLAGS) == world.hypotheses


def test_fairseq_s_own_interface_for_bart_answers_as_the_workflow(world):
    """It adds `<s>` by itself, and searches batches that are padded already."""
    assert isinstance(world.hub, BARTHubInterface) is (world.family == "bart")
    assert world.hub.sample(ODD, **FLAGS) == world.hypotheses


def test_the_words_that_a_prefix_begins_with_are_encoded_like_any_text(world):
    longest = test_api.PREFIXES[world.family]["short"][0]
    for text, pieces in zip(ODD, world.tokens, strict=True):
        args = Namespace(prefix_init_text=text, **bpe_options(world))
        try:
            found = initialise.encode(text, args, world.hub.task)
        except UsageError:
            assert "<unk>" in world.hub.bpe.encode(text).split()
        else:
            assert subwords(world, found)[:longest] == pieces


def test_a_text_that_is_no_text_is_refused_by_every_way_in(world, tmp_path):
    for text, message in REFUSED.items():
        with pytest.raises(UserError, match=f"line 1: the source {message}"):
            prepare.checked_text(text, "source", "line 1")
        with pytest.raises(UsageError, match=f"text 2 {message}"):
            world.api.generate(["cat", text], "short")
        with pytest.raises(UsageError, match=f"the text .* {message}"):
            world.hub.encode(text)
    with pytest.raises(UsageError, match="the text 'the.*cat' holds a NUL"):
        interactive(world, "cat\nthe\0cat\n", tmp_path, **bpe_options(world))


def test_fairseq_interactive_refuses_text_where_it_reads_subwords(world, tmp_path):
    """Without --bpe fairseq would look words up in the dictionary, and every one would be `<unk>`."""
    with pytest.raises(
        UsageError, match="has the piece 'bridge', which is not in .* name the base's vocabulary with --bpe"
    ):
        interactive(world, "bridge\n", tmp_path)
    with pytest.raises(UsageError, match="has the piece '</s>'"):
        interactive(world, "</s>\n", tmp_path)
    pieces, found = interactive(world, " ".join(world.tokens[ODD.index("cat")]), tmp_path)
    assert pieces == [world.tokens[ODD.index("cat")]] and len(found) == 1


def test_an_option_that_gives_other_tokens_or_texts_is_refused(world, tmp_path):
    names = bpe_options(world)
    for given, message in (
        ({**names, "post_process": "sentencepiece"}, "--post-process .* gives other texts"),
        ({"post_process": "sentencepiece"}, "--post-process .* gives other texts"),
        ({**names, "post_process": "letter"}, "--post-process .* gives other texts"),
        ({**names, **dict.fromkeys([name for name in names if name != "bpe"], "nowhere")}, "nowhere cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            interactive(world, "cat\n", tmp_path, **given)


def test_hugging_face_s_names_of_a_byte_bpe_are_read_alike(world, tmp_path):
    """`--bpe hf_byte_bpe`, also where the numbers of vocab.json are those of a BART's dictionary."""
    if (world.base / "spm.model").exists():
        pytest.skip("no byte BPE")
    shutil.copy(world.base / "vocab.bpe", tmp_path / "merges.txt")
    tokens = json.loads((world.base / "encoder.json").read_text())
    indices = {token: world.symbols.index(str(number)) for token, number in tokens.items()}
    for content in (tokens, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **indices}):
        (tmp_path / "vocab.json").write_text(json.dumps(content))
        names = {"bpe_vocab": f"{tmp_path}/vocab.json", "bpe_merges": f"{tmp_path}/merges.txt"}
        found = world.hub.task.build_bpe(Namespace(bpe="hf_byte_bpe", **names))
        assert [found.encode(text) for text in ODD] == [world.hub.bpe.encode(text) for text in ODD]
    with pytest.raises(UserError, match="vocab.json .*its numbers are indices of a BART's dict.txt"):
        options_of = {"encoder_json": tmp_path / "vocab.json", "vocab_bpe": tmp_path / "merges.txt"}
        bpe.from_arguments(Namespace(spm=None, leading_space=False, **options_of))
