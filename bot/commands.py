"""Commands typed in QQ: one registry, so that one NoneBot matcher serves them all (each idle matcher costs 1 ms).

`/persona switch 小满` → the handler registered as `persona`, with the words after it.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from bot.message import Message, Scene


class Who(IntEnum):
    """Who may run a command, and who somebody is; each may do what the smaller ones may."""

    EVERYONE = 0
    GROUP_ADMIN = 1
    """Admins and the owner of the group it is typed in."""
    SUPERUSER = 2


@dataclass(frozen=True, slots=True)
class Call:
    """One command as typed.

    Args:
        scene: where.
        sender_id: by whom.
        who: what they are.
        account: the bot's QQ number.
        time: when, by QQ's clock: what is said before and after it can be told apart.
        args: the words after the command's name.
        quoted: id of the message it quotes, or None.
        id: the message's own.
        rest: the same words as they were typed, line breaks as `↵`.
    """

    scene: Scene
    sender_id: str
    who: Who
    account: str
    time: datetime
    args: tuple[str, ...]
    quoted: str | None = None
    id: str = ""
    rest: str = ""


Handler = Callable[[Call], Awaitable[str]]
ANSWER_WITHIN_S = 1800.0
"""Seconds in which the answer to a question of ours is one; later it is talk."""


@dataclass(frozen=True, slots=True)
class _Command:
    who: Who
    handler: Handler
    private_for_everyone: bool
    always: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """A question that was put to somebody: what answers it, until when, and who takes the answer."""

    choices: frozenset[str]
    until: datetime
    handler: Handler
    always: bool


class Commands:
    """The registry.

    Args:
        prefix: what a command begins with.
        superusers: QQ numbers of the owners.
    """

    def __init__(self, prefix: str, superusers: tuple[str, ...]) -> None:
        self._prefix = prefix
        self._superusers = superusers
        self._commands: dict[str, _Command] = {}
        self._questions: dict[tuple[Scene, str], _Question] = {}
        self._mention = re.compile(rf"@[^↵]{{1,40}}?\s*(?={re.escape(prefix)})")

    def add(
        self, name: str, who: Who, handler: Handler, *, private_for_everyone: bool = False, always: bool = False
    ) -> None:
        """Register a command.

        Args:
            name: its first word.
            who: who may run it.
            handler: gives the answer; an empty answer sends nothing.
            private_for_everyone: in private chats everyone may.
            always: also where commands are switched off, and however late it comes: what somebody wants of what is
                kept of them is not the owner's to switch off.
        """
        self._commands[name] = _Command(who, handler, private_for_everyone, always)

    def ask(self, call: Call, choices: Collection[str], handler: Handler, *, always: bool = False) -> None:
        """Let the next message of whoever typed a command be its answer, if it is one of the choices.

        Args:
            call: the command; the answer is given there, and handed on with the choice as `rest`.
            choices: whole messages that are answers; anything else is talk, and the question stands.
            handler: takes the answer.
            always: as of the command that asks.
        """
        until = call.time + timedelta(seconds=ANSWER_WITHIN_S)
        self._questions[call.scene, call.sender_id] = _Question(frozenset(choices), until, handler, always)

    def names(self) -> list[str]:
        """The commands' names, sorted."""
        return sorted(self._commands)

    def is_command(self, message: Message) -> bool:
        """Whether a message is for us: a command (known name; other bots may share the prefix), or an answer."""
        return self._question(message) is not None or self._split(message) is not None

    def name_of(self, message: Message) -> str | None:
        """The command that a message is, without its prefix."""
        found = self._split(message)
        return found[0] if found is not None else None

    def is_always(self, message: Message) -> bool:
        """Whether it is to be obeyed wherever and whenever it comes, as its command or question says."""
        question, found = self._question(message), self._split(message)
        if question is not None:
            return question.always
        return found is not None and self._commands[found[0]].always

    def who_is(self, sender_id: str, role: str) -> Who:
        """What somebody is, from their number and their role in the group (`owner`, `admin`, `member`)."""
        if sender_id in self._superusers:
            return Who.SUPERUSER
        return Who.GROUP_ADMIN if role in ("owner", "admin") else Who.EVERYONE

    async def run(self, message: Message, role: str, account: str) -> str | None:
        """Run what was typed; None when it is no command or not theirs to run (then nothing is answered)."""
        scene, sender_id = message.scene, message.sender_id
        question = self._question(message)
        if question is not None:
            del self._questions[scene, sender_id]
            who, choice = self.who_is(sender_id, role), message.text.strip()
            return await question.handler(
                Call(scene, sender_id, who, account, message.time, (choice,), None, message.id, choice)
            )
        found = self._split(message)
        if found is None:
            return None
        name, rest = found
        command = self._commands[name]
        # What is typed on the bot's own account was typed by its owner.
        who = Who.SUPERUSER if sender_id == account else self.who_is(sender_id, role)
        if scene.private and who is Who.GROUP_ADMIN:
            who = Who.EVERYONE
        if who < command.who and not (scene.private and command.private_for_everyone):
            return None
        args = tuple(rest.replace("↵", " ").split())
        return await command.handler(
            Call(scene, sender_id, who, account, message.time, args, message.reply_to, message.id, rest)
        )

    def _question(self, message: Message) -> _Question | None:
        """The question a message answers."""
        found = self._questions.get((message.scene, message.sender_id))
        if found is None or message.time > found.until or message.text.strip() not in found.choices:
            return None
        return found

    def _split(self, message: Message) -> tuple[str, str] | None:
        """A command's name and what is typed behind it."""
        text = message.text
        if message.reply_to is not None:  # in groups QQ mentions whom it quotes, in front of what is typed
            text = self._mention.sub("", text, count=1) if self._mention.match(text) else text
        if not text.startswith(self._prefix):
            return None
        name, *rest = re.split(r"[\s↵]+", text[len(self._prefix) :].strip(), maxsplit=1)
        return (name, "".join(rest)) if name in self._commands else None
