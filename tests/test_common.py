"""The shared helpers: whole files or none, and damaged input named with file and line."""

import gzip
import os
import signal
import tarfile

import pytest
from common import (
    UserError,
    atomic_open,
    open_tar,
    read_json,
    read_jsonl,
    read_lines,
    run_main,
    single_line,
    worker_pool,
)
from conftest import archive


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/below: cannot be written"), atomic_open(tmp_path / "file" / "below"):
        pass


def test_atomic_open_leaves_nothing_on_failure(tmp_path):
    (tmp_path / "kept.txt").write_text("before")
    with pytest.raises(RuntimeError), atomic_open(tmp_path / "kept.txt") as file:
        file.write("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "before"


def test_atomic_open_writes_utf8_with_unix_line_ends(tmp_path):
    with atomic_open(tmp_path / "new" / "file.txt") as file:
        file.write("é\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_read_lines_takes_off_mark_and_line_ends(tmp_path, name):
    data = b"\xef\xbb\xbfone\r\ntwo\x0bstill two\nthree"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list(read_lines(tmp_path / name)) == [(1, "one"), (2, "two\x0bstill two"), (3, "three")]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"good\nb\xe9d\n", "line 2: not UTF-8 .byte 2"), (b"good\ngood\nb\0d\n", "line 3: holds a NUL byte")],
)
def test_read_lines_names_the_bad_line(tmp_path, data, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(read_lines(path))


def test_read_lines_refuses_truncated_gzip_and_missing_files(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"line\n" * 1000)[:-12])
    with pytest.raises(UserError, match="cut.gz: truncated or damaged"):
        list(read_lines(tmp_path / "cut.gz"))
    with pytest.raises(UserError, match="absent.txt: cannot be read"):
        list(read_lines(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("text", "message"), [('{"a": 1}\n{"a": \n', "line 2: not JSON"), ("[1]\n", "line 1: expected a JSON object")]
)
def test_read_jsonl_names_the_bad_line(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_read_json_refuses_what_is_not_json(tmp_path):
    (tmp_path / "value.json").write_text('{"a": 1')
    with pytest.raises(UserError, match="value.json: not JSON"):
        read_json(tmp_path / "value.json")


def test_single_line_makes_one_space_of_each_run_of_breaks():
    assert single_line(" a\r\n\tb\u2028c\x0bd  e\n") == "a b c d  e"
    assert single_line("a\x0c\x1c\x1d\x1e\x85\u2029b \n \t c\x1fd\t") == "a b     c\x1fd"


def test_run_main_shows_one_line_instead_of_a_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script", "argument"])

    def main(argv):
        raise UserError(f"bad {argv[0]}")

    with pytest.raises(SystemExit, match="^error: bad argument$"):
        run_main(main)


@pytest.mark.parametrize("suffix", ["", "gz", "bz2", "xz"])
def test_open_tar_streams_every_compression(tmp_path, suffix):
    path = archive(tmp_path / "a.tar", [("d/one", b"1"), ("d/two", b"22")], f"w:{suffix}")
    with open_tar(path) as members:
        assert [(name, file.read()) for name, _, file in members] == [("d/one", b"1"), ("d/two", b"22")]


def unsafe(kind: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo({"parent": "d/../../evil", "absolute": "/evil"}.get(kind, "evil"))
    info.type = {"symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(kind, info.type)
    info.linkname = "elsewhere"
    return info


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "link", "device"])
def test_open_tar_refuses_unsafe_members_by_name(tmp_path, kind):
    path = archive(tmp_path / "a.tar.gz", [("good", b"1"), (unsafe(kind), b"")])
    with pytest.raises(UserError, match="member '.*evil'"), open_tar(path) as members:
        list(members)


def test_open_tar_notices_any_truncation(tmp_path):
    path = archive(tmp_path / "a.tar.gz", [("one", bytes(range(256)) * 50), ("two", b"2")])
    whole = path.read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or damaged archive"), open_tar(path) as members:
            for _, _, file in members:
                file.read()


def test_open_tar_names_a_missing_archive(tmp_path):
    with pytest.raises(UserError, match="absent.tar: cannot be read"), open_tar(tmp_path / "absent.tar"):
        pass


# Workers --------------------------------------------------------------------------------------------------------------


def slow_square(number):
    if number == 3:
        raise UserError("the number 3")
    if number == 10:  # the first one is the last to be ready
        sum(range(1_000_000))
    return number * number


def kill_oneself(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_keep_the_order_and_are_only_a_little_ahead(workers):
    asked = []
    with worker_pool(workers) as call:
        results = call(slow_square, (asked.append(number) or number for number in range(10, 200)))
        assert next(results) == 100
        assert len(asked) <= 4 * workers
        assert [100, *results] == [number * number for number in range(10, 200)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_of_workers_and_items_wins(workers):
    def items(stop):
        yield from range(stop)
        raise UserError("no more items")

    for stop, message in ((3, "no more items"), (5, "the number 3")):
        results = []
        with pytest.raises(UserError, match=message), worker_pool(workers) as call:
            results.extend(call(slow_square, items(stop)))
        assert results == [0, 1, 4]


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(UserError, match="a worker process was killed"), worker_pool(2) as call:
        list(call(kill_oneself, range(3)))
