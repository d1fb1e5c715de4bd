"""What a pickle would build, without building it: nothing that it names is imported or called.

A checkpoint of PyTorch is a zip file of raw storages and one pickle that says which tensors they are.
The pickle's stack machine is run on inert values: a call stays a `Call`, a class stays a `Named`.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from laconic.coding.safetensors import BITS
from laconic.errors import CorruptFile

#: Names of torch's typed storages, and of its dtypes, as dtypes of the safetensors format.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
DTYPES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


class Storage(NamedTuple):
    """What a checkpoint says of one of its storages.

    Attributes:
        dtype: as in safetensors; `U8` where it is not known.
        name: where its first tensor stands, such as `state.0.exp_avg`.
        shape: of that tensor if it is all of the storage, in order; otherwise of one dimension.
    """

    dtype: str
    name: str
    shape: tuple[int, ...]


class Named(NamedTuple):
    """A class or function that a pickle names."""

    module: str
    name: str


class Persistent(NamedTuple):
    """What is kept outside of the pickle."""

    id: Any


@dataclass(eq=False)
class Call:
    """What a call would return; `pairs` and `items` are what was put into it afterwards.

    Attributes:
        function: a `Named`, in what is no forgery; None for a plain dictionary, list or set.
        args: of the call.
        pairs: keys and values.
        items: of a list or set.
    """

    function: Any = None
    args: Any = ()
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)


def read_storages(pickle: bytes) -> dict[str, Storage]:
    """The storages that a checkpoint's pickle names, by their keys.

    Raises:
        CorruptFile: it is no pickle, or does what checkpoints do not do.
    """
    found: dict[str, Storage] = {}
    for path, value in _walk(read_pickle(pickle)):
        storage = _storage(path, value)
        if storage is not None:
            found.setdefault(*storage)
    return found


def read_pickle(pickle: bytes) -> Any:
    """The value that a pickle describes, of plain and inert parts.

    Raises:
        CorruptFile: see `read_storages`.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            step = _STEPS.get(opcode.name)
            if step is not None:
                step(machine, argument)
            elif opcode.name in _LITERALS:
                machine.push(argument)
            elif opcode.name not in _NOTHING:
                raise CorruptFile(f"pickle: {opcode.name} has no place in a checkpoint")
        return machine.stack[-1]
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CorruptFile(f"pickle: it cannot be read: {error!r}") from error


def _storage(path: str, value: Any) -> tuple[str, Storage] | None:
    """(key, storage) of a tensor that would be rebuilt."""
    if not (isinstance(value, Call) and isinstance(value.function, Named)):
        return None
    if not value.function.name.startswith("_rebuild_tensor"):
        return None
    try:
        persistent, offset, shape, stride = value.args[:4]
        what, storage, key, _, count = persistent.id[:5]
        dtype = STORAGES.get(storage.name)
        if dtype is None:  # untyped, counted in bytes: the dtype is among the arguments
            named = [a.name for a in value.args[4:] if isinstance(a, Named) and a.name in DTYPES]
            dtype = DTYPES[named[0]] if named else "U8"
            count = count * 8 // BITS[dtype]
        whole = tuple(shape) if _is_whole(offset, shape, stride, count) else (count,)
        if what != "storage" or not all(type(n) is int for n in (count, *whole)):
            return None
    except (ValueError, IndexError, TypeError, AttributeError):
        return None
    return str(key), Storage(dtype, path, whole)


def _is_whole(offset: Any, shape: Any, stride: Any, count: Any) -> bool:
    """Whether a tensor is all of its storage's `count` elements, in order."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride)):
        if size != 1 and step != expected:
            return False
        expected *= size
    return bool(offset == 0 and expected == count)


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, part) of everything in `value`, once, outer parts first."""
    seen: set[int] = set()
    pending = [("", value)]
    while pending:
        path, part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield path, part
        inside: list[tuple[Any, Any]] = []
        if isinstance(part, Call):
            inside = [*enumerate(part.items), *part.pairs]
            if isinstance(part.args, tuple):
                inside += [("", argument) for argument in part.args]
        elif isinstance(part, tuple) and not isinstance(part, Named | Persistent):
            inside = [*enumerate(part)]
        for key, child in reversed(inside):
            if isinstance(child, Call | tuple):
                step = str(key) if isinstance(key, str | int) else ""
                pending.append((".".join(s for s in (path, step) if s), child))


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def popped(self) -> list[Any]:
        """What lies above the last mark."""
        start = self.marks.pop()
        above = self.stack[start:]
        del self.stack[start:]
        return above

    def top(self) -> Call:
        """The container that is being filled."""
        if not isinstance(self.stack[-1], Call):
            raise TypeError("something is put into what is no container")
        return self.stack[-1]

    def put_pairs(self, flat: list[Any]) -> None:
        self.top().pairs += zip(flat[::2], flat[1::2], strict=True)

    def put_items(self, items: list[Any]) -> None:
        self.top().items += items

    def call(self) -> None:
        args = self.pop()
        self.push(Call(self.pop(), args))

    def tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError("the stack is empty")
        parts = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.push(parts)

    def stack_global(self) -> None:
        name = self.pop()
        self.push(Named(self.pop(), name))

    def set_one(self) -> None:
        value = self.pop()
        self.put_pairs([self.pop(), value])

    def set_state(self) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Call):  # an object's attributes, such as of a whole model
            self.stack[-1].pairs.append(("", state))

    def pair_up(self) -> None:
        flat = self.popped()
        self.push(Call())
        self.put_pairs(flat)


#: Values that opcodes carry with them.
_LITERALS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "SHORT_BINUNICODE",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "BINBYTES8",
        "SHORT_BINBYTES",
    ]
)
_NOTHING = frozenset(("PROTO", "FRAME", "STOP"))

_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push(Call())),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.popped(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "DICT": lambda m, _: m.pair_up(),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(Call(items=m.popped()))),
    "TUPLE": lambda m, _: m.push(tuple(m.popped())),
    "TUPLE1": lambda m, _: m.tuple(1),
    "TUPLE2": lambda m, _: m.tuple(2),
    "TUPLE3": lambda m, _: m.tuple(3),
    "APPEND": lambda m, _: m.put_items([m.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.put_items(m.popped())),
    "SETITEM": lambda m, _: m.set_one(),
    "SETITEMS": lambda m, _: m.put_pairs(m.popped()),
    "GLOBAL": lambda m, names: m.push(Named(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call()),
    "BUILD": lambda m, _: m.set_state(),
    "BINPERSID": lambda m, _: m.push(Persistent(m.pop())),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda m, at: m.memo.__setitem__(at, m.stack[-1])
    ),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.push(m.memo[at])),
}
