"""Protobuf bytes of QQ NT's message columns → elements, whatever the bytes are.

A body is `repeated Element element = 40800`; an element is flat, its kind in field 45002 (numbers and meanings:
QQBackup/QQDecrypt's page on nt_msg.db; a public 37-byte sample is among the tests). The schema is built here from a
table, for protobuf's C decoder: a text body takes it 3.5 µs, a loop in Python 6.4, one of seven elements 10 and 64.

Nothing is raised. A field of another wire type reads as absent; strings are bytes until they are wanted, so invalid
UTF-8 harms nobody; what is inside a field is decoded only when asked for, so nothing recurses; a body that breaks off
gives what stood before the break.
"""

from functools import cache
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

Element: TypeAlias = Any
"""A decoded message with the fields of `_NUMBERS`, `_BYTES` and `_LISTS`: 0, `b""` or nothing where absent."""
_NUMBERS = {
    "kind": 45002, "sub_kind": 45003, "at_kind": 45102, "at_uin": 45103, "face": 47601, "pack": 80810,
    "seq": 47402, "sender": 47403, "time": 47404, "purse": 48412,
}  # fmt: skip
_BYTES = {
    "text": 45101, "at_uid": 45105, "name": 45402, "spoken": 45923, "face_text": 47602, "result": 47607,
    "quoted": 47423, "quoted_text": 47413, "card": 47901, "emoji_key": 80824, "emoji_text": 80900, "emoji_id": 80903,
    "markdown": 48701, "flash": 48705, "forward": 48602, "bubble": 52138, "tip": 48271,
}  # fmt: skip
_LISTS = {"summary": 45815}
_VARINT_BITS = 70


@cache
def _messages() -> tuple[Any, Any, Any, Any]:
    """Classes: an element, a body, a body of undecoded elements, a column of cached rows."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="qqtwin/ntqq.proto", package="qqtwin", syntax="proto2")
    element = file.message_type.add(name="Element")
    for table, kind, label in (
        (_NUMBERS, field.TYPE_UINT64, field.LABEL_OPTIONAL),
        (_BYTES, field.TYPE_BYTES, field.LABEL_OPTIONAL),
        (_LISTS, field.TYPE_BYTES, field.LABEL_REPEATED),
    ):
        for name, number in table.items():
            element.field.add(name=name, number=number, type=kind, label=label)
    body, raw, column = (file.message_type.add(name=name) for name in ("Body", "RawBody", "Cache"))
    body.field.add(
        name="elements", number=40800, type=field.TYPE_MESSAGE, type_name=".qqtwin.Element", label=field.LABEL_REPEATED
    )
    raw.field.add(name="elements", number=40800, type=field.TYPE_BYTES, label=field.LABEL_REPEATED)
    column.field.add(name="rows", number=40900, type=field.TYPE_BYTES, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kinds = [pool.FindMessageTypeByName(f"qqtwin.{name}") for name in ("Element", "Body", "RawBody", "Cache")]
    first, second, third, fourth = (message_factory.GetMessageClass(kind) for kind in kinds)
    return first, second, third, fourth


def elements(body: bytes) -> list[Element]:
    """The elements of a body in display order; of a bare element, that one; none of what is neither."""
    element, whole, raw, _ = _messages()
    try:
        found = list(whole.FromString(body).elements)
    except DecodeError:
        found = [_mended(element, part) for part in _mended(raw, body).elements] + _last(element, body)
    if not found and body:
        bare = _mended(element, body)
        return [bare] if bare.kind else []
    return found


def cached(column: bytes) -> list[list[Element]]:
    """The elements of each message in a 40900 column."""
    cache_column = _messages()[3]
    return [elements(row) for row in _mended(cache_column, column).rows]


def said(value: bytes) -> str:
    """A field as text, invalid UTF-8 replaced."""
    return value.decode("utf-8", "replace")


def _last(element: Any, body: bytes) -> list[Element]:
    """The element a body breaks off in, as far as it goes."""
    rest = body[sound(body) :]
    try:
        tag, start = _varint(rest, 0)
        _, start = _varint(rest, start)
    except (IndexError, ValueError):
        return []
    found = _mended(element, rest[start:]) if tag == 40800 << 3 | 2 else None
    return [found] if found is not None and found.kind else []


def _mended(kind: Any, data: bytes) -> Any:
    """A message, of broken bytes its whole fields before the break."""
    try:
        return kind.FromString(data)
    except DecodeError:
        pass
    try:
        return kind.FromString(data[: sound(data)])
    except DecodeError:
        return kind()


def sound(data: bytes) -> int:
    """How many of the bytes are whole fields, from the beginning."""
    i = 0
    while True:
        try:
            tag, end = _varint(data, i)
            wire = tag & 7
            if not 8 <= tag < 1 << 32:
                return i
            if wire == 0:
                _, end = _varint(data, end)
            elif wire == 2:
                size, end = _varint(data, end)
                end += size
            elif wire in (1, 5):
                end += 8 if wire == 1 else 4
            else:
                return i
        except (IndexError, ValueError):
            return i
        if end > len(data):
            return i
        i = end


def _varint(data: bytes, i: int) -> tuple[int, int]:
    """A varint of at most ten bytes and where it ends; ValueError when it is longer, IndexError when it breaks off."""
    value = shift = 0
    while shift < _VARINT_BITS:
        byte = data[i]
        i += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, i
        shift += 7
    raise ValueError("varint")
