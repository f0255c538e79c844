"""Images in tar shards, as webdataset writes them. A plain local tar is read in place, others from a spool."""

from __future__ import annotations

import bz2
import gzip
import lzma
import posixpath
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ImageError
from ...files.locations import Location, is_remote, open_location
from ..decode import AVIF_SUFFIXES, HEIF_SUFFIXES, SUFFIXES, say_how_to_read
from ..source import ImageSource
from .blobs import OpenBlob, Spool
from .samples import choose_images, find_parts

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_SHARD_BYTES, MAX_LINKS, MAX_PART_BYTES = 2**37, 8, 2**20
_BLOCK = 2**22
# Offset and length of a member's bytes.
Place = tuple[int, int]


def open_tar(location: Location) -> ImageSource:
    """The images of a tar and of those concatenated to it, in their order: one for each sample of a webdataset.

    Raises:
        ImageError: If it cannot be read, is cut off, or holds no image.
    """
    return _open(location)[0]


def open_samples(location: Location, part: str) -> tuple[ImageSource, list[str]]:
    """As `open_tar`, with what a part such as `.cls` or `.txt` says of each image.

    Raises:
        ImageError: Also if an image has no such part, or it is no text.
    """
    return _open(location, part)


def _open(location: Location, part: str = "") -> tuple[ImageSource, list[str]]:
    try:
        if location.path.lower().endswith(".tar") and not is_remote(location.path):
            with Path(location.path).open("rb") as stream:
                return _index(stream, Path(location.path), location, part)
        spool = Spool()
        with open_location(location.path) as stream:
            _copy(_decompressed(stream, location.path), spool, location)
        spool.file.flush()
        spool.file.seek(0)
        return _index(spool.file, spool, location, part)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise ImageError(f"cannot read {location.path}: {error}. Fetch it again.") from None


def _index(stream: Any, file: Path | Spool, location: Location, part: str) -> tuple[ImageSource, list[str]]:
    places, links, pictures = {}, {}, []
    size = file.end if isinstance(file, Spool) else location.size
    for member in _members(stream, location):
        # `tar` run on `.` writes names with `./` before them.
        name = member.name.removeprefix("./")
        # A sparse member's bytes are not where its header says.
        if member.isreg() and not member.issparse():
            if member.offset_data + member.size > size:
                raise ImageError(f"cannot read {location.path}: it is cut off in {member.name}. Fetch it again.")
            place = member.offset_data, member.size
            places[name] = place
            pictures.append((name, place))
        elif member.islnk() or member.issym():
            links[name] = _target(name, member)
            pictures.append((name, None))
    found = [(name, place or _follow(name, links, places)) for name, place in pictures if _is_picture(name)]
    source = _source([(name, place) for name, place in found if place], file, location)
    members = [(name, place) for name, place in pictures if place]
    return source, _read_parts(stream, source, members, part, location) if part else []


def _read_parts(
    stream: Any, source: ImageSource, members: Sequence[tuple[str, Place]], part: str, location: Location
) -> list[str]:
    """What lies beside each image under a suffix."""
    # By place and not by name: concatenated tars may hold a name twice.
    positions = {place: position for position, (_, place) in enumerate(members)}
    beside, opener = find_parts([name for name, _ in members], part), source.open
    assert isinstance(opener, OpenBlob)
    found = []
    for name, place in zip(source.names, opener.places, strict=True):
        position = beside.get(positions[place])
        if position is None:
            raise ImageError(f"cannot read {location.path}: {name} has no {part} beside it. Add it, or leave it out.")
        inner, (offset, length) = members[position]
        if length > MAX_PART_BYTES:
            raise ImageError(f"cannot read {location.path}: {inner} has {length} bytes, at most {MAX_PART_BYTES}.")
        stream.seek(offset)
        found.append(_decode(stream.read(length), inner, location))
    return found


def _decode(content: bytes, name: str, location: Location) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImageError(f"cannot read {location.path}: {name} is no text in UTF-8. Write it anew.") from None


def _source(found: Sequence[tuple[str, Place]], file: Path | Spool, location: Location) -> ImageSource:
    """One image for each sample; what else is a picture is said."""
    unread = Counter(suffix for name, _ in found if (suffix := _suffix(name)) not in SUFFIXES)
    read = [(name, place) for name, place in found if _suffix(name) in SUFFIXES]
    chosen = choose_images([name for name, _ in read])
    _say_passed_over([name for name, _ in read], chosen, unread, location)
    if not chosen:
        raise ImageError(
            f"cannot read images from {location.path}: it holds none. Looked for {', '.join(sorted(SUFFIXES))}."
        )
    names = tuple(f"{location.name}/{read[position][0]}" for position in chosen)
    places = tuple(read[position][1] for position in chosen)
    stamps = tuple(str(length) for _, length in places)
    return ImageSource(names, OpenBlob(file, names, places), stamps=stamps)


def _say_passed_over(names: Sequence[str], chosen: Sequence[int], unread: Counter[str], location: Location) -> None:
    parts = sorted(set(range(len(names))) - set(chosen))
    said = (
        [f"{len(parts)} pictures that are parts of samples with an image, such as {names[parts[0]]}"] if parts else []
    )
    said += [f"{count} {suffix}" for suffix, count in sorted(unread.items())]
    if said:
        ways = "; ".join(["", *say_how_to_read(unread)])
        warnings.warn(f"in {location.path} passed over {', '.join(said)}{ways}", stacklevel=2)


def _members(stream: Any, location: Location) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, and of those that were written behind it.

    Raises:
        ImageError: If it ends otherwise than a tar does, or is damaged: `tarfile` stops at a bad header without a word.
    """
    at, last = 0, "its beginning"
    while at is not None:
        stream.seek(at)
        # Uncompressed only: images are read later from where they lie.
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                last = member.name
                yield member
            end = tar.offset
        stream.seek(end)
        mark = stream.read(tarfile.BLOCKSIZE)
        if mark != bytes(tarfile.BLOCKSIZE):
            what = "is cut off" if len(mark) < tarfile.BLOCKSIZE else f"has no header at byte {end}, where one belongs,"
            raise ImageError(f"cannot read {location.path}: it {what} after {last}. Fetch it again.")
        at = _skip_zeros(stream, end)


def _skip_zeros(stream: Any, start: int) -> int | None:
    """Where the first block that is not empty begins, from `start` on; None at the end of the file."""
    stream.seek(start)
    at = start
    while content := stream.read(_BLOCK):
        rest = content.lstrip(b"\0")
        at += len(content) - len(rest)
        if rest:
            return at - (at - start) % tarfile.BLOCKSIZE
    return None


def _target(name: str, link: tarfile.TarInfo) -> str:
    """The member that a link stands for: hard links name it from the top, others from where they are."""
    if link.islnk():
        return link.linkname.removeprefix("./")
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link.linkname))


def _follow(name: str, links: Mapping[str, str], places: Mapping[str, Place]) -> Place | None:
    """Where the bytes of a link lie, if they are in the tar."""
    # Not without end: some lead to each other.
    for _ in range(MAX_LINKS):
        name = links.get(name, name)
    return places.get(name)


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _is_picture(name: str) -> bool:
    known = SUFFIXES | HEIF_SUFFIXES | AVIF_SUFFIXES
    return _suffix(name) in known and not posixpath.basename(name).startswith(".")


def _decompressed(stream: Any, path: str) -> Any:
    lower = path.lower()
    opened = stream
    if lower.endswith((".gz", ".tgz")):
        opened = gzip.GzipFile(fileobj=stream)
    elif lower.endswith(".bz2"):
        opened = bz2.BZ2File(stream)
    elif lower.endswith(".xz"):
        opened = lzma.LZMAFile(stream)  # noqa: SIM115
    return opened


def _copy(stream: Any, spool: Spool, location: Location) -> None:
    while content := stream.read(_BLOCK):
        spool.append(content)
        # Counted after unpacking: a small file may grow without end.
        if spool.end > MAX_SHARD_BYTES:
            raise ImageError(f"cannot read {location.path}: unpacked it is larger than {MAX_SHARD_BYTES} bytes.")
