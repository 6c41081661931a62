"""Fetching: mirror first, resumable and verified downloads, and a failure that says how to supply the file."""

import gzip
import hashlib
import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from common import UserError, open_tar
from fetch import main

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.delenv("PREFIX_MIRROR", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    """A loopback server of DATA; its attributes say how it misbehaves, `requests` which ranges it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            httpd.requests.append(asked)
            if httpd.location:
                self.send_response(302)
                self.send_header("Location", httpd.location)
                return self.end_headers()
            if httpd.status:
                return self.send_error(httpd.status)
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            if not httpd.ranges or self.headers.get("If-Range") != httpd.tag:
                begin = 0
            if begin >= len(httpd.data):
                return self.send_error(416)
            self.send_response(206 if begin else 200)
            self.send_header("ETag", httpd.tag)
            self.send_header("Content-Length", str(len(httpd.data) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(httpd.data) - 1}/{len(httpd.data)}")
            self.end_headers()
            limit = httpd.limits.pop(0) if httpd.limits else None
            self.wfile.write(httpd.data[begin:][:limit])

        def log_message(self, *arguments):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.data, httpd.tag, httpd.ranges, httpd.status, httpd.limits, httpd.requests = DATA, '"v1"', True, None, [], []
    httpd.location = None
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/file.bin"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fetch(output, url, *more):
    main(["--output", str(output), "--url", url, "--mirror-path", "set/file.bin", *more])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_with_checksum(server, tmp_path):
    fetch(tmp_path / "new" / "file.bin", server.url, "--sha256", SHA256.upper())
    assert (tmp_path / "new" / "file.bin").read_bytes() == DATA
    assert names(tmp_path / "new") == ["file.bin"]


def test_interrupted_download_continues(server, tmp_path):
    server.limits = [1000, 2000]
    fetch(tmp_path / "file.bin", server.url, "--sha256", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.requests == [None, "bytes=1000-", "bytes=3000-"]


def test_truncated_download_leaves_no_output_and_continues_next_time(server, tmp_path):
    server.limits = [100] * 4
    with pytest.raises(UserError, match="broke off at 400 of 10240 bytes"):
        fetch(tmp_path / "file.bin", server.url)
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.tag"]
    fetch(tmp_path / "file.bin", server.url)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.requests[-1] == "bytes=400-"
    assert names(tmp_path) == ["file.bin"]


def test_file_that_changed_on_the_server_starts_afresh(server, tmp_path):
    server.limits = [100] * 4
    with pytest.raises(UserError):
        fetch(tmp_path / "file.bin", server.url)
    server.data, server.tag = DATA[::-1], '"v2"'
    fetch(tmp_path / "file.bin", server.url)
    assert (tmp_path / "file.bin").read_bytes() == DATA[::-1]


def test_server_without_ranges(server, tmp_path):
    server.ranges, server.limits = False, [1000]
    fetch(tmp_path / "file.bin", server.url, "--sha256", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_complete_part_of_a_killed_run(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA)
    (tmp_path / "file.bin.part.tag").write_text(f'{server.url}\n"v1"')
    fetch(tmp_path / "file.bin", server.url, "--sha256", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_part_of_another_file_is_thrown_away(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"other" * 10)
    (tmp_path / "file.bin.part.tag").write_text(f'{server.url}\n"v1"')
    fetch(tmp_path / "file.bin", server.url, "--sha256", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(UserError, match=f"wrong checksum: SHA-256 {SHA256} where {'0' * 64} is expected"):
        fetch(tmp_path / "file.bin", server.url, "--sha256", "0" * 64)
    assert names(tmp_path) == []


def test_second_address_is_tried(server, tmp_path):
    fetch(tmp_path / "file.bin", (tmp_path / "absent").as_uri(), "--url", server.url)
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_file_address(tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    fetch(tmp_path / "out" / "file.bin", (tmp_path / "source").as_uri(), "--sha256", SHA256)
    assert (tmp_path / "out" / "file.bin").read_bytes() == DATA


def test_failure_says_what_is_missing_and_how_to_supply_it(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "file.bin", server.url, "--mirror", str(tmp_path / "mirror"))
    for part in ("file.bin is missing", str(tmp_path / "mirror/set/file.bin"), "Not Found", "DIRECTORY/set/file.bin"):
        assert part in str(error.value)
    assert "`mirror:` in the configuration" in str(error.value) and "PREFIX_MIRROR" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []


def test_only_fetchable_schemes(tmp_path):
    with pytest.raises(UserError, match="only http, https and file"):
        fetch(tmp_path / "file.bin", "ftp://127.0.0.1/file.bin")


def test_a_server_that_sends_elsewhere_than_to_the_web_is_not_followed(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.1)
        server.location = f"ftp://127.0.0.1:{other.getsockname()[1]}/file.bin"
        with pytest.raises(UserError, match="ftp://.*: only http and https addresses can be fetched"):
            fetch(tmp_path / "file.bin", server.url)
        with pytest.raises(TimeoutError):
            other.accept()  # nobody has called


# Mirrors --------------------------------------------------------------------------------------------------------------


def mirror(folder, name, data):
    (folder / "set").mkdir(parents=True)
    (folder / "set" / name).write_bytes(data)
    return folder


def test_mirror_comes_before_the_network(server, tmp_path):
    fetch(tmp_path / "out", server.url, "--mirror", str(mirror(tmp_path / "m", "file.bin", DATA)), "--sha256", SHA256)
    assert (tmp_path / "out").read_bytes() == DATA
    assert server.requests == []


def test_mirror_in_the_environment_and_compressed(server, tmp_path, monkeypatch):
    packed = mirror(tmp_path / "m", "file.bin.gz", gzip.compress(DATA))
    monkeypatch.setenv("PREFIX_MIRROR", f"{tmp_path / 'absent'}:{packed}")
    fetch(tmp_path / "out", server.url, "--sha256", SHA256)
    assert (tmp_path / "out").read_bytes() == DATA
    assert server.requests == []


def test_a_mirror_in_the_environment_may_be_below_the_home_folder(server, tmp_path, monkeypatch):
    mirror(tmp_path / "m", "file.bin", DATA)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFIX_MIRROR", "~/absent:~/m")
    fetch(tmp_path / "out", server.url)
    assert (tmp_path / "out").read_bytes() == DATA and server.requests == []


def test_first_mirror_that_has_the_file_wins(tmp_path):
    first, second = mirror(tmp_path / "1", "file.bin", b"first"), mirror(tmp_path / "2", "file.bin", b"second")
    fetch(tmp_path / "out", "file:///absent", "--mirror", str(tmp_path / "0"), str(first), str(second))
    assert (tmp_path / "out").read_bytes() == b"first"


def packed(mirror_folder, output):
    main(["--output", str(output), "--mirror-path", "set/train.tar.gz", "--mirror", str(mirror_folder)])
    return output.read_bytes()


def test_a_folder_in_the_mirror_is_packed_to_the_same_bytes_everywhere(tmp_path):
    files = {"b/2.xml": b"two", "a/10.xml": b"ten", "a/9.xml": b"nine"}
    for name, order in (("one", list(files)), ("two", list(files)[::-1])):
        for number, file in enumerate(order):
            path = tmp_path / name / "set" / "train" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[file])
            path.chmod(0o600 + number)
            os.utime(path, (number, number))
    data = packed(tmp_path / "one", tmp_path / "x")
    assert data == packed(tmp_path / "two", tmp_path / "y")
    assert data[4:8] == bytes(4)  # the time in gzip's own header
    with open_tar(tmp_path / "x") as members:
        found = [(name, file.read(), member.mtime, member.uid) for name, member, file in members]
    assert found == [(f"train/{name}", files[name], 0, 0) for name in ("a/10.xml", "a/9.xml", "b/2.xml")]


def test_an_archive_in_the_mirror_comes_before_a_folder(tmp_path):
    (mirror(tmp_path / "m", "train.tar.gz", DATA) / "set" / "train").mkdir()
    assert packed(tmp_path / "m", tmp_path / "out") == DATA


def test_an_empty_folder_in_the_mirror_is_named(tmp_path):
    (tmp_path / "m" / "set" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="set/train: no files in this folder"):
        packed(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_taken_for_an_archive_only(tmp_path):
    (tmp_path / "m" / "set" / "file.bin").mkdir(parents=True)
    with pytest.raises(UserError, match="o is missing: .* and no address of it is known. Put it at"):
        main(["--output", str(tmp_path / "o"), "--mirror-path", "set/file.bin", "--mirror", str(tmp_path / "m")])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("file.bin", b"other", "wrong checksum"), ("file.bin.gz", gzip.compress(DATA)[:-9], "truncated or damaged")],
)
def test_bad_mirror_file_is_named_and_leaves_nothing(tmp_path, name, data, message):
    folder = mirror(tmp_path / "m", name, data)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        fetch(tmp_path / "out" / "file.bin", "file:///absent", "--mirror", str(folder), "--sha256", SHA256)
    assert names(tmp_path / "out") == []
