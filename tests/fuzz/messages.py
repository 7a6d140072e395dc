"""Protobuf messages of any type, with odd values in any of their fields."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

INTEGERS = (0, 1, 2, 3, 5, 17, 64, 255, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "a", "xylophone", "\0", "é🙂", "[IMG]</s>", "0" * 64, "x" * 5000, "127.0.0.1:1", "{}")
BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


class Messages:
    """The same seed makes the same messages."""

    def __init__(self, seed: int, blobs: Sequence[bytes] = (b"", b"x")) -> None:
        self._rng = random.Random(seed)
        self._blobs = blobs

    def payload(self, message: Message) -> bytes:
        """As it is, mutated, or noise."""
        rng = self._rng
        if rng.random() < 0.05:
            return rng.randbytes(rng.choice((0, 1, 10, 1000)))
        mutated = type(message)()
        mutated.CopyFrom(message)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            self.mutate(mutated)
        data = mutated.SerializeToString()
        return self._noise(data) if data and rng.random() < 0.15 else data

    def mutate(self, message: Message) -> None:
        rng = self._rng
        inner = [child for child in _children(message) if rng.random() < 0.5]
        if inner:
            self.mutate(rng.choice(inner))
            return
        fields: Sequence[Any] = message.DESCRIPTOR.fields
        if not fields:
            return
        field = rng.choice(fields)
        if rng.random() < 0.25:
            message.ClearField(field.name)
        elif _is_map(field):
            entries = getattr(message, field.name)
            of_entry = field.message_type.fields_by_name
            entries[self._scalar(of_entry["key"])] = self._scalar(of_entry["value"])
        elif field.is_repeated:
            self._extend(getattr(message, field.name), field)
        elif field.message_type is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            self.mutate(child)
        else:
            setattr(message, field.name, self._scalar(field))

    def _extend(self, values: Any, field: FieldDescriptor) -> None:
        rng = self._rng
        if values and rng.random() < 0.3:
            del values[rng.randrange(len(values))]
        elif values and rng.random() < 0.3:
            values.extend([values[rng.randrange(len(values))]] * rng.choice((1, 2, 70)))
        elif field.message_type is not None:
            self.mutate(values.add())
        else:
            values.extend(self._scalar(field) for _ in range(rng.choice((1, 3, 70))))

    def _scalar(self, field: FieldDescriptor) -> Any:
        rng = self._rng
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.choice(self._blobs)
            case FieldDescriptor.CPPTYPE_STRING:
                return rng.choice(TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return rng.choice(FLOATS)
            case _:
                least, most = BOUNDS[field.cpp_type]
                return max(least, min(most, rng.choice(INTEGERS) * rng.choice((1, 1, -1))))

    def _noise(self, data: bytes) -> bytes:
        rng, noisy = self._rng, bytearray(data)
        for _ in range(rng.randint(1, 6)):
            noisy[rng.randrange(min(len(noisy), 200))] = rng.getrandbits(8)
        return bytes(noisy[: rng.randrange(len(noisy))] if rng.random() < 0.3 else noisy)


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _children(message: Message) -> list[Message]:
    found: list[Message] = []
    for field, value in message.ListFields():
        if field.message_type is not None and not _is_map(field):
            found += value if field.is_repeated else [value]
    return found
