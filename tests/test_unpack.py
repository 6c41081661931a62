"""Unpacking: only what is asked for, whole or not at all, and never where the archive says."""

import tarfile

import pytest
from common import UserError
from conftest import archive
from unpack import main

MEMBERS = [("bart.base/model.pt", b"weights"), ("bart.base/dict.txt", b"words"), ("bart.base/NOTE", b"note")]


def unpack(path, *members, more=()):
    main(["--archive", str(path), *(part for pair in members for part in ("--member", pair)), *more])


def test_only_the_named_members(tmp_path):
    path = archive(tmp_path / "a.tar.gz", MEMBERS)
    unpack(path, f"model.pt={tmp_path}/out/m", f"bart.base/dict.txt={tmp_path}/out/d")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {"m": b"weights", "d": b"words"}


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("members", "names", "message"),
    [
        (MEMBERS, ["model.pt", "absent.pt"], "no member absent.pt"),
        ([*MEMBERS, ("other/model.pt", b"")], ["model.pt"], "model.pt fits both bart.base/model.pt and other/model.pt"),
        ([*MEMBERS, ("../evil", b"")], ["model.pt"], "'../evil' lies outside"),
        ([*MEMBERS, (link("bart.base/link", "/etc"), b"")], ["model.pt"], "'bart.base/link' is a link"),
        (MEMBERS, ["odel.pt"], "no member odel.pt"),
    ],
)
def test_refusals_name_the_member_and_leave_nothing(tmp_path, members, names, message):
    path = archive(tmp_path / "a.tar.gz", members)
    with pytest.raises(UserError, match=message):
        unpack(path, *(f"{name}={tmp_path}/out/{name}" for name in names))
    assert list((tmp_path / "out").iterdir()) == []


def test_size_cap(tmp_path):
    path = archive(tmp_path / "a.tar.gz", MEMBERS)
    with pytest.raises(UserError, match="member bart.base/model.pt has 7 bytes, over 6 allowed"):
        unpack(path, f"model.pt={tmp_path}/out/m", more=("--max-bytes", "6"))
    assert list((tmp_path / "out").iterdir()) == []


def test_truncated_archive_leaves_nothing_even_of_members_that_were_whole(tmp_path):
    path = archive(tmp_path / "a.tar.gz", MEMBERS)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="a.tar.gz: truncated or damaged archive"):
        unpack(path, f"model.pt={tmp_path}/out/m")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_archive(tmp_path):
    (tmp_path / "page.tar.gz").write_text("<html>Not found</html>")
    with pytest.raises(UserError, match="page.tar.gz: truncated or damaged archive"):
        unpack(tmp_path / "page.tar.gz", f"model.pt={tmp_path}/out/m")
