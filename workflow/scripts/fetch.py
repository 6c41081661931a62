"""Fetch one file: from a mirror directory where it has it, otherwise by download.

Compute nodes and closed clusters have no internet, so a mirror comes first; for X.tar.gz it may have the folder X. A
download continues where an interrupted one stopped; the file takes its final name only when its size, and its SHA-256
where one is known, are right.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from common import DAMAGED, UserError, atomic_path, progress, run_main, sha256_file

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 4  # per address; each continues where the one before broke off


class Interrupted(Exception):
    """A download that broke off and may be continued."""


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    mirrors = [*args.mirror, *mirrors_from_environment()]
    fetch(args.output, args.url, args.sha256, mirrors, args.mirror_path)
    size, digest = args.output.stat().st_size, sha256_file(args.output)
    print(f"{args.output}: {size} bytes, sha256 {digest}", file=sys.stderr)


def mirrors_from_environment() -> list[Path]:
    return [Path(os.path.expanduser(part)) for part in os.environ.get("PREFIX_MIRROR", "").split(os.pathsep) if part]


def fetch(output: Path, urls: list[str], sha256: str | None, mirrors: list[Path], mirror_path: str) -> None:
    """Put the file at `output`, or raise a `UserError` that says where it was looked for and how to supply it."""
    if copy_from_mirror(output, mirrors, mirror_path, sha256):
        return
    failures = []
    for url in urls:
        try:
            download(url, output, sha256)
            return
        except (Interrupted, OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address
            failures.append(f"{url} ({getattr(error, 'reason', None) or error})")
    looked = ", ".join(str(mirror / mirror_path) for mirror in mirrors) or "no mirror directory was given"
    download_failed = f"not to be downloaded from {'; '.join(failures)}" if failures else "no address of it is known"
    raise UserError(
        f"{output.name} is missing: not in a mirror (looked for: {looked}) and {download_failed}. "
        f"Put it at DIRECTORY/{mirror_path} and name DIRECTORY as `mirror:` in the configuration or in the environment "
        "variable PREFIX_MIRROR"
    )


def copy_from_mirror(output: Path, mirrors: list[Path], mirror_path: str, sha256: str | None) -> bool:
    """Copy from the first mirror that has the file: plain, as .gz, or as a folder to pack; whether there was one."""
    for mirror in mirrors:
        plain, packed = mirror / mirror_path, mirror / f"{mirror_path}.gz"
        source = plain if plain.is_file() else packed
        if not source.is_file():
            folder = mirror / mirror_path.removesuffix(".tar.gz")
            if mirror_path.endswith(".tar.gz") and folder.is_dir():
                with atomic_path(output) as temporary:
                    pack(folder, temporary)
                    check_sha256(temporary, sha256, f"{folder}, packed")
                return True
            continue
        with atomic_path(output) as temporary:
            try:
                with (open if source == plain else gzip.open)(source, "rb") as reader, open(temporary, "wb") as writer:
                    size = source.stat().st_size if source == plain else None
                    with progress(None, output.name, total=size, unit="B", unit_scale=True) as bar:
                        while chunk := reader.read(CHUNK):
                            writer.write(chunk)
                            bar.update(len(chunk))
            except DAMAGED as error:
                raise UserError(f"{source}: truncated or damaged ({error}); replace it in the mirror") from None
            check_sha256(temporary, sha256, str(source))
        return True
    return False


def pack(folder: Path, archive: Path) -> None:
    """Pack the files of a folder as .tar.gz: the same files give the same bytes, whoever owns them and since when."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.parts)
    if not files:
        raise UserError(f"{folder}: no files in this folder; put the files of {folder.name}.tar.gz there")
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        progress(files, folder.name, unit=" files") as bar,
    ):
        for path in bar:
            member = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            member.size = path.stat().st_size
            with open(path, "rb") as file:
                tar.addfile(member, file)


def check_sha256(path: Path, sha256: str | None, origin: str) -> None:
    if sha256 and (found := sha256_file(path)) != sha256.lower():
        raise UserError(f"{origin}: wrong checksum: SHA-256 {found} where {sha256.lower()} is expected")


def download(url: str, output: Path, sha256: str | None) -> None:
    """Download to `output`, by way of `{output}.part`, which a later call continues.

    Raises:
        Interrupted, OSError: it did not work; what arrived is kept for the next attempt.
        UserError: the complete file has the wrong checksum.
    """
    part, tag = Path(f"{output}.part"), Path(f"{output}.part.tag")
    output.parent.mkdir(parents=True, exist_ok=True)
    continued = part.exists()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            receive(url, part, tag)
            break
        except Interrupted:
            if attempt == ATTEMPTS:
                raise
    try:
        check_sha256(part, sha256, url)
    except UserError:
        part.unlink()
        tag.unlink(missing_ok=True)
        if not continued:
            raise
        # What an earlier run left may have been the beginning of another file.
        return download(url, output, sha256)
    with atomic_path(output) as temporary:
        shutil.move(part, temporary)
    tag.unlink(missing_ok=True)


def receive(url: str, part: Path, tag: Path) -> None:
    """Append to `part` what it lacks of `url`; `tag` holds the address and version that `part` is a beginning of."""
    check_scheme(url, ("http", "https", "file"))
    headers = {"User-Agent": "fairseq-prefix", "Accept-Encoding": "identity"}
    known_url, _, version = tag.read_text(errors="replace").partition("\n") if tag.exists() else ("", "", "")
    have = part.stat().st_size if part.exists() and known_url == url and version else 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        opener = urllib.request.build_opener(_Redirect)
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what we have: start afresh rather than trust it
            part.unlink()
            raise Interrupted("the server has nothing to add to what was downloaded before") from None
        raise
    with response:
        begin, total = content_range(response)
        if begin != have:
            have = 0  # the server sends the whole file: it knows no ranges, or the file has changed
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        with open(part, "r+b" if have else "wb") as file:
            tag.write_text(f"{url}\n{'' if version.startswith('W/') else version}")
            file.seek(have)
            with progress(None, part.stem, total=total, initial=have, unit="B", unit_scale=True) as bar:
                try:
                    while chunk := response.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
                except (OSError, http.client.HTTPException) as error:
                    raise Interrupted(f"broke off ({error})") from None
    if total is not None and part.stat().st_size != total:
        raise Interrupted(f"broke off at {part.stat().st_size} of {total} bytes")


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows a server to the web alone, where urllib would go to FTP servers, too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_scheme(newurl, ("http", "https"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_scheme(url: str, allowed: tuple[str, ...]) -> None:
    if urllib.parse.urlsplit(url).scheme not in allowed:
        raise UserError(f"{url}: only {', '.join(allowed[:-1])} and {allowed[-1]} addresses can be fetched")


def content_range(response) -> tuple[int, int | None]:
    """(first byte, size of the whole file or None) that a response announces."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and found:
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length") or ""
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="where the file is put")
    parser.add_argument(
        "--url", nargs="*", action="extend", default=[], help="addresses, tried in turn; none: mirrors only"
    )
    parser.add_argument("--sha256", type=checksum, metavar="HEX", help="the checksum, where it is known")
    parser.add_argument(
        "--mirror",
        nargs="*",
        action="extend",
        default=[],
        type=Path,
        metavar="DIR",
        help="directories looked at first, then those in the environment variable PREFIX_MIRROR",
    )
    parser.add_argument(
        "--mirror-path",
        required=True,
        metavar="REL",
        help="the file's path below a mirror directory; in its place REL.gz, or for X.tar.gz the folder X",
    )
    return parser.parse_args(argv)


def checksum(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a SHA-256 (64 hexadecimal digits)")
    return text


if __name__ == "__main__":
    run_main(main)
