"""How long GPT-2 takes to read its source and write one token, beside stock fairseq, which reads it token by token.

Run by `make bench-prompt`. All are GPT-2 small with the same random weights, in fp32 and one thread, and take turns;
what counts is the ratio of the medians. Stock fairseq has no prefix; ours is timed with one of ten tokens, and without.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import tiny
import torch
from conftest import SCRIPTS
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.sequence_generator import SequenceGenerator

sys.path.insert(0, str(SCRIPTS))

from table import aligned  # noqa: E402

WORDS, ROWS, ROUNDS = 5000, 4, 3
SOURCES, BEAMS = (64, 256), (1, 5)


def build_models(task) -> dict:
    """name -> GPT-2 small: fairseq's own, and ours with and without a prefix."""
    with tempfile.TemporaryDirectory() as folder:
        base = tiny.save_base(Path(folder), symbols=task.target_dictionary, arch="full_gpt2_small")
        ours = {
            f"ours, P = {length}": tiny.build(
                "prefix_gpt2_small", task, base_model=str(base), prefix_length=length, prefix_reparam="flat"
            )
            for length in (0, 10)
        }
        stock = TransformerLanguageModel.build_model(tiny.make_args("full_gpt2_small"), task)
        stock.load_state_dict(torch.load(base / "model.pt")["model"], strict=False)
    return {name: model.eval() for name, model in {"stock fairseq": stock, **ours}.items()}


def read_and_write_one(task, model, source: torch.Tensor, beam: int) -> float:
    """Seconds of the processor."""
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.full((len(source),), source.size(1))}}
    started = time.process_time()
    if type(model) is TransformerLanguageModel:  # stock fairseq
        search = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=source.size(1) + 1)
        separator = torch.full((len(source), 1), task.target_dictionary.eos())
        forced = torch.cat([source[:, 1:], separator], dim=1)
        search.generate([model], sample, prefix_tokens=forced, bos_token=int(source[0, 0]))
    else:
        search = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=1)
        search.generate([model], sample)
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    task = tiny.make_lm_task(tiny.dictionary(mask=False, words=WORDS), max_source_tokens=max(SOURCES))
    models = build_models(task)
    table = [["source", "beam", *models, "stock / ours, P = 10"]]
    for length in SOURCES:
        source = torch.randint(tiny.SPECIALS, WORDS, (ROWS, length))
        source[:, 0] = tiny.SPECIALS  # stock fairseq's search begins all rows alike
        for beam in BEAMS:
            times = {name: [] for name in models}
            for _ in range(ROUNDS):
                for name, model in models.items():
                    times[name].append(read_and_write_one(task, model, source, beam))
            medians = {name: statistics.median(values) for name, values in times.items()}
            ratio = medians["stock fairseq"] / medians["ours, P = 10"]
            table.append([str(length), str(beam), *(f"{value:.2f} s" for value in medians.values()), f"{ratio:.1f}"])
    print(
        f"GPT-2 small, {ROWS} sources, one token written; torch {torch.__version__}, one thread, median of {ROUNDS}\n"
    )
    print("\n".join(aligned(table, left=0)))


if __name__ == "__main__":
    main()
