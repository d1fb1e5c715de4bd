"""Unsigned LEB128 integers: seven bits a byte, low first, the top bit says that more follows."""

from laconic.errors import CorruptFile, UsageError

LARGEST = 2**63 - 1  # so that whatever was read fits a signed 64-bit integer


def put(out: bytearray, value: int) -> None:
    """Appends `value`, in 0..2^63 - 1, to `out`."""
    if not 0 <= value <= LARGEST:
        raise UsageError(f"an integer must be in 0..2^63 - 1 to be stored, found {value}")
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class Reader:
    """Walks through bytes; every read past the end or over a limit raises `CorruptFile`.

    Example:
        >>> out = bytearray()
        >>> put(out, 300)
        >>> Reader(out, "example").varint()
        300
    """

    def __init__(self, data: bytes | bytearray | memoryview, what: str) -> None:
        self.data = memoryview(data).cast("B")
        self.what = what
        self.position = 0

    def varint(self, limit: int = LARGEST) -> int:
        """The next integer; at most `limit`."""
        value = shift = 0
        while True:
            if self.position >= len(self.data) or shift > 63:
                raise CorruptFile(f"{self.what}: an integer runs past byte {self.position}")
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise CorruptFile(f"{self.what}: found {value} where at most {limit} is possible")
        return value

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, not copied."""
        if count < 0 or count > len(self.data) - self.position:
            raise CorruptFile(
                f"{self.what}: {count} bytes expected at byte {self.position}, "
                f"{len(self.data) - self.position} are left (truncated?)"
            )
        part = self.data[self.position : self.position + count]
        self.position += count
        return part

    def rest(self) -> memoryview:
        """Everything that is left."""
        return self.take(len(self.data) - self.position)

    def expect_end(self) -> None:
        """Raises unless everything has been read."""
        if self.position != len(self.data):
            raise CorruptFile(f"{self.what}: {len(self.data) - self.position} bytes too many")
