"""A PNG without its text: Pillow refuses a picture for the sake of a long text beside it."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
SHORT, ALTOGETHER = 2**16, 2**20  # bytes of plain text that are kept: of one chunk, and in all
LARGEST_PROFILE = 2**24  # bytes; those of large look-up tables have about one and a half million


def without_text(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without packed and long texts, and its colour profile, which is taken out as well.

    Nothing else is looked at, so that what is damaged stays damaged.
    """
    kept, place, room, profile = [SIGNATURE], len(SIGNATURE), ALTOGETHER, None
    while place + 12 <= len(data):  # length, kind, content, checksum
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        content, end = data[place + 8 : place + 8 + min(length, SHORT)], place + 12 + length
        if kind == b"iCCP":
            profile = _unpacked(data[place + 8 : place + 8 + length])
        elif kind not in TEXTS or (length < min(SHORT, room) and not _is_packed(kind, content)):
            kept.append(data[place:end])
            room -= length if kind in TEXTS else 0
        place = end
    return b"".join([*kept, data[place:]]), profile


def _is_packed(kind: bytes, content: bytes) -> bool:
    """iTXt says so after its keyword."""
    _, _, rest = content.partition(b"\0")
    return kind == b"zTXt" or (kind == b"iTXt" and rest[:1] != b"\0")


def _unpacked(content: bytes) -> bytes | None:
    """The profile in an iCCP chunk: a name, a byte for the method, and the packed profile."""
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(content.partition(b"\0")[2][1:], LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if unpacking.eof else None
