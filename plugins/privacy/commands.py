"""The commands' words → whose wish it is, and what is done."""

from loguru import logger

from bot import forgetting
from bot.commands import Call, Who
from bot.errors import ArchiveError
from bot.forgetting import Forgotten
from bot.privacy import Privacy
from bot.twin import Twin
from plugins.privacy import texts


def register(twin: Twin, privacy: Privacy) -> None:
    """Register the commands: everybody for themselves, the owners for any number."""

    async def opt_out(call: Call) -> str:
        person, refusal = _whom(call, "optout")
        if refusal is not None:
            return refusal
        try:
            if not privacy.opt_out(person, _by(call, person), call.time):
                return texts.ALREADY_OUT.format(whose=_whose(call, person))
        except ArchiveError as e:
            return _not_now(e)
        more = f"\n{texts.OPTED_OUT_PERSON}" if person in twin.imitated() else ""
        return (texts.OPTED_OUT + more).format(whose=_whose(call, person))

    async def opt_in(call: Call) -> str:
        person, refusal = _whom(call, "optin")
        if refusal is not None:
            return refusal
        if person != call.sender_id and twin.archive.optouts.out_by(person) == "self":
            return texts.NOT_YOURS
        try:
            done = privacy.opt_in(person, call.time)
        except ArchiveError as e:
            return _not_now(e)
        return (texts.OPTED_IN if done else texts.NOT_OUT).format(whose=_whose(call, person))

    async def forget_me(call: Call) -> str:
        person, refusal = _whom(call, "forgetme")
        if refusal is not None:
            return refusal
        whose = _whose(call, person)

        async def answered(answer: Call) -> str:
            if answer.rest != texts.CONFIRM:
                return texts.CANCELLED
            try:
                found = await privacy.forget(person, _by(call, person), answer.time)
            except ArchiveError as e:
                return _not_now(e)
            return await _told(twin, call, found, whose)

        twin.commands.ask(call, (texts.CONFIRM, texts.CANCEL), answered, always=True)
        return (texts.ASK_PERSON if person in twin.imitated() else "").format(whose=whose) + texts.ASK.format(
            whose=whose
        )

    for name, handler in (("optout", opt_out), ("optin", opt_in), ("forgetme", forget_me)):
        twin.commands.add(name, Who.EVERYONE, handler, always=True)


def _whom(call: Call, name: str) -> tuple[str, str | None]:
    """Whose wish a call is, and why not if it may not be."""
    if not call.args:
        return call.sender_id, None
    if len(call.args) > 1 or not (call.args[0].isascii() and call.args[0].isdecimal()):
        # Words behind the command are no reason to go on learning from somebody.
        return call.sender_id, None if call.who is not Who.SUPERUSER else texts.USAGE.format(name=name)
    if call.who is not Who.SUPERUSER and call.args[0] != call.sender_id:
        return call.sender_id, texts.ONLY_YOURSELF.format(name=name)
    return call.args[0], None


def _by(call: Call, person: str) -> str:
    return "self" if person == call.sender_id else "owner"


def _whose(call: Call, person: str) -> str:
    """What a person is called in an answer: never by the number, for answers are stored."""
    return texts.YOURS if person == call.sender_id else texts.THEIRS


def _not_now(error: ArchiveError) -> str:
    logger.warning("a wish was not fulfilled: {}", error)
    return texts.NOT_NOW


async def _told(twin: Twin, call: Call, found: Forgotten, whose: str) -> str:
    """What went and what cannot, to whoever asked; and to the owners, without a number, if it was not one of them."""
    n = len(forgetting.left(twin.settings)["versions"])
    if call.who is not Who.SUPERUSER:
        await twin.tell_owner(
            texts.OWNER_TOLD.format(
                messages=found.messages, private=found.private, mentions=found.mentions, files=found.files, n=n
            )
        )
    file = texts.REWRITTEN if found.compacted else texts.TO_REWRITE
    return texts.FORGOTTEN.format(
        messages=found.messages, private=found.private, mentions=found.mentions, corrections=found.corrections,
        stickers=found.stickers, whose=whose, file=file, versions=texts.VERSIONS.format(n=n) if n else "",
    )  # fmt: skip
