"""/不像 and /该闭嘴: the owner says what was wrong with an answer; what is kept becomes training pairs."""

from bot import corrections
from bot.commands import Call, Who
from bot.corrections import How
from bot.twin import Twin
from plugins.chat import texts

UNLIKE, HUSH = "不像", "该闭嘴"
_SHOWN = 20
"""Characters of an answer that are shown again, so that it is seen which one was meant."""


def register(twin: Twin) -> None:
    """Register both commands; they are the owners' alone."""

    async def unlike(call: Call) -> str:
        return _corrected(twin, call, How.UNLIKE, corrections.bubbles_of(call.rest) or None)

    async def hush(call: Call) -> str:
        return texts.HUSH_USAGE if call.args else _corrected(twin, call, How.HUSH, ())

    twin.commands.add(UNLIKE, Who.SUPERUSER, unlike)
    twin.commands.add(HUSH, Who.SUPERUSER, hush)


def _corrected(twin: Twin, call: Call, how: How, wanted: tuple[str, ...] | None) -> str:
    bubble = corrections.answered(twin.archive, call.scene, call.quoted)
    kept = bubble and corrections.correct(
        twin.archive, bubble, how, wanted, by=call.sender_id, told=call.id,
        persona=twin.presence.scenes.persona(call.scene), now=call.time,
    )  # fmt: skip
    if not kept:
        return texts.NOTHING_TO_CORRECT
    text = {How.UNLIKE: texts.CORRECTED_WANTED if wanted else texts.CORRECTED, How.HUSH: texts.CORRECTED_HUSH}[how]
    return text.format(said=_short(kept.rejected), wanted=_short(kept.wanted or ()))


def _short(bubbles: tuple[str, ...]) -> str:
    whole = " ".join(bubbles)
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}…"
