"""What a compressed block says of its pieces: the tables, and kind, table and length of each.

A directory is: count of frequency tables, the tables, (kind byte, table, length) per chunk and
plane, then the sets of context tables that the entries name, if any.
"""

from typing import NamedTuple

import numpy as np

from laconic.coding import huffman, rans, varint
from laconic.coding.contexts import ContextTables
from laconic.coding.planes import Layout
from laconic.coding.sharing import MOST
from laconic.coding.tables import Tables
from laconic.coding.zstd import unzstd
from laconic.errors import CorruptFile

RAW, HUFFMAN, CONSTANT, RANS, ZSTD, CONTEXT = range(6)
KINDS = ("raw", "huffman", "constant", "rans", "zstd", "context")
CODERS = {HUFFMAN: huffman, RANS: rans}
LEAST = 4  # bytes that a piece takes: three in the directory and one of payload


class Entry(NamedTuple):
    """One piece: its kind, the number of its table (or set of context tables), its bytes."""

    kind: int
    table: int
    length: int


class Directory(NamedTuple):
    """The entries, chunk by chunk and plane by plane, and the tables that they name.

    Example:
        >>> entries = [Entry(RAW, 0, 5000), Entry(CONSTANT, 0, 1)]
        >>> stored = Directory(entries, [], []).to_bytes()
        >>> reader = varint.Reader(stored + bytes(5000), "example")
        >>> read_directory(reader, Layout(2, True), 10_000, 1 << 19).entries == entries
        True
    """

    entries: list[Entry]
    tables: list[Tables]
    sets: list[ContextTables]

    def to_bytes(self) -> bytes:
        """Only what is in use is stored, in the order of its first use."""
        used: dict[int, int] = {}
        used_sets: dict[int, int] = {}
        out = bytearray()
        for kind, table, length in self.entries:
            numbers = used_sets if kind == CONTEXT else used
            named = kind == CONTEXT or kind in CODERS
            out.append(kind)
            varint.put(out, numbers.setdefault(table, len(numbers)) if named else 0)
            varint.put(out, length)
        head = bytearray()
        varint.put(head, len(used))
        for table in used:
            head += self.tables[table].to_bytes()
        return bytes(head + out) + b"".join(self.sets[number].to_bytes() for number in used_sets)

    def restore(self, number: int, payload: np.ndarray, top: np.ndarray, out: np.ndarray) -> None:
        """Decodes piece `number` into `out` (n,); `top` (n,) is the top plane of its chunk."""
        kind, table, _ = self.entries[number]
        if kind in CODERS:
            CODERS[kind].decode(payload, out.size, 0, self.tables[table], out)
        elif kind == CONTEXT:
            self.sets[table].decode(payload, top, out)
        elif kind == ZSTD:
            out[:] = unzstd(payload, out.size, "compressed block")
        elif payload.size == (1 if kind == CONSTANT else out.size):
            out[:] = payload
        else:
            raise CorruptFile(f"compressed block: a {KINDS[kind]} piece has an impossible size")


def read_directory(reader: varint.Reader, layout: Layout, whole: int, chunk: int) -> Directory:
    """Tables and entries for `whole` bytes in chunks; nothing large is allocated for their sake.

    Raises:
        CorruptFile: what is stored cannot be true, or the payloads cannot hold the sizes.
    """
    pieces = -(-whole // chunk) * layout.itemsize
    if LEAST * pieces > len(reader.data):
        raise CorruptFile(f"{reader.what}: {whole} bytes cannot come from so short a file")
    tables = [Tables.read(reader, 1) for _ in range(reader.varint(min(pieces, MOST)))]
    entries = []
    count = contexts = 0
    for number in range(pieces):
        entry = Entry(reader.take(1)[0], reader.varint(), reader.varint())
        start, plane = number // layout.itemsize * chunk, number % layout.itemsize
        symbols = (min(whole, start + chunk) - start) // layout.itemsize
        least = {RAW: symbols, HUFFMAN: -(-symbols // 8), CONSTANT: 1, CONTEXT: 5 * symbols // 8}
        if entry.kind >= len(KINDS) or entry.length < least.get(entry.kind, 4):
            raise CorruptFile(f"{reader.what}: piece {number} cannot hold {symbols} symbols")
        if entry.kind == CONTEXT:
            if not layout.rotate or plane != layout.itemsize - 2:
                raise CorruptFile(f"{reader.what}: piece {number} has no context")
            count = max(count, entry.table + 1)
        elif entry.table >= (len(tables) if entry.kind in CODERS else 1):
            raise CorruptFile(f"{reader.what}: piece {number} names a table that is not there")
        entries.append(entry)
    sets: list[ContextTables] = []
    while len(sets) < count:
        sets.append(ContextTables.read(reader))
        contexts += len(sets[-1].contexts) + 1
        if contexts > 2 * MOST:
            raise CorruptFile(f"{reader.what}: more context tables than a decoder should make")
    return Directory(entries, tables, sets)
