"""Rows of QQ NT's message tables, from whatever file holds them, in one shape.

Numbers are the columns' own names (`c2c_msg_table` and `group_msg_table` have the same ones); older databases lack
some, exports may, so an absent column is None.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

TABLES = {"group_msg_table": "group", "c2c_msg_table": "private", "c2c_temp_msg_table": "private"}
"""Kind of scene by table."""


Row: TypeAlias = tuple[Any, ...]
"""A message as stored: the values of `COLUMNS`, then anything. Types are the file's; whoever reads one checks it."""
COLUMNS = {
    "40001": "id, unique",
    "40003": "running number of a group",
    "40005": "running number in a private chat, of 16 bits",
    "40010": "1 private, 2 group, 99 and 100 temporary; others are no chats between people",
    "40011": "message type",
    "40012": "its sub-type",
    "40013": "1 or 2 for messages of the account itself",
    "40020": "sender's NT uid",
    "40021": "the other side's NT uid, or the group's number",
    "40027": "conversation; of a group its number",
    "40030": "the other side's QQ number, or the group's",
    "40033": "sender's QQ number",
    "40041": "2 when sent",
    "40050": "unix seconds",
    "40090": "sender's name in the group",
    "40093": "sender's own name",
    "40800": "elements (bytes)",
    "40850": "the quoted message's 40003 in groups, its 40005 in private chats",
    "40900": "quoted and forwarded messages (bytes)",
}
"""Columns in the order of `Row`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table's rows.

    Args:
        place: what to call it in a message to the owner.
        kind: `group` or `private`; None where every row has to tell.
        rows: in the order of ids, or the file's.
    """

    place: str
    kind: str | None
    rows: Iterator[Row]


@dataclass(frozen=True, slots=True)
class History:
    """Everything of one file.

    Args:
        tables: of messages.
        uins: QQ number by NT uid.
        nicks: people's own names by QQ number.
        cards: their names in a group, by (group, QQ number); empty ones are left out.
        groups: names by group number.
    """

    tables: Iterator[Table]
    uins: dict[str, str] = field(default_factory=dict)
    nicks: dict[str, str] = field(default_factory=dict)
    cards: dict[tuple[str, str], str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


def number(value: Any) -> int:
    """A number from 0 to 2^64 - 1 as stored (SQLite has those from 2^63 as negative ones); 0 if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
        return 0
    return value if value >= 0 else value + (1 << 64)
