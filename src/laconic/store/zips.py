"""Zip files of tensors, as PyTorch and numpy write them: members that are not compressed lie in the file as they are."""

import math
import struct
import zipfile
from typing import BinaryIO, NamedTuple

from laconic.coding.safetensors import BITS, Placed
from laconic.errors import CorruptFile
from laconic.store.arrays import read_array
from laconic.store.pickles import Storage, read_storages

HEADER = struct.Struct(
    "<4s22xHH"
)  # of a member: its magic, the lengths of its name and extra field
MAX_PICKLE = 64 << 20


class Member(NamedTuple):
    """A file in the zip file that is not compressed: its first byte and its bytes."""

    start: int
    size: int


def read_zip(file: BinaryIO, size: int) -> tuple[str, dict[str, Placed]]:
    """The kind of file, and where its tensors lie.

    Raises:
        CorruptFile: no zip file, or neither a checkpoint of PyTorch nor arrays of numpy.
    """
    members = _members(file)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) == 1:
        return "torch", _torch(file, members, pickles[0])
    arrays = {name: member for name, member in members.items() if name.endswith(".npy")}
    found = {}
    for name, member in arrays.items():
        try:
            found[name.removesuffix(".npy")] = read_array(file, *member)
        except CorruptFile:  # of objects: bytes as any others
            continue
    if not found:
        raise CorruptFile("zip file: no tensors in it")
    return "npz", found


def _members(file: BinaryIO) -> dict[str, Member]:
    """The members that lie in the file as they are."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = [i for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
        raise CorruptFile(f"zip file: it cannot be read: {error}") from error
    members = {}
    for info in infos:
        file.seek(max(0, info.header_offset))  # negative where the directory is cut
        head = file.read(HEADER.size)
        if info.header_offset < 0 or len(head) < HEADER.size:
            raise CorruptFile(f"zip file: member {info.filename!r} is not there")
        magic, name, extra = HEADER.unpack(head)
        if magic != b"PK\3\4" or info.filename in members:
            raise CorruptFile(f"zip file: member {info.filename!r} is damaged")
        start = info.header_offset + HEADER.size + name + extra
        members[info.filename] = Member(start, info.file_size)
    return members


def _torch(file: BinaryIO, members: dict[str, Member], pickle: str) -> dict[str, Placed]:
    start, size = members[pickle]
    if size > MAX_PICKLE:
        raise CorruptFile(f"zip file: a pickle of {size} bytes")
    file.seek(start)
    try:
        storages = read_storages(file.read(size))
    except CorruptFile:  # of a kind that is not known here: bytes without names
        storages = {}
    folder = pickle.removesuffix("data.pkl") + "data/"
    found: dict[str, Placed] = {}
    for name, member in members.items():
        if name.startswith(folder):
            storage = storages.get(name.removeprefix(folder))
            label = name if storage is None or storage.name in found else storage.name or name
            found[label] = _placed(storage, member)
    return found


def _placed(storage: Storage | None, member: Member) -> Placed:
    """The storage as what the pickle says it is, if that fits its bytes."""
    if storage and math.prod(storage.shape) * BITS[storage.dtype] == 8 * member.size:
        return Placed(storage.dtype, storage.shape, *member)
    return Placed("U8", (member.size,), *member)
