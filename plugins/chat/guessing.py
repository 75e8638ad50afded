"""/blind: the owner is shown a real answer and the twin's, and picks the real one."""

from bot import blind
from bot.blind import CHOICES, BlindTest
from bot.commands import Call, Who
from bot.errors import PersonaError
from bot.twin import Twin
from plugins.chat import texts

_STOP = "0"


def register(twin: Twin) -> None:
    """Register the command; it is the owners' alone, in private, for it shows what the person wrote to others."""

    async def begin(call: Call) -> str:
        if not call.scene.private or call.scene.id != call.sender_id:
            return texts.BLIND_PRIVATE
        persona = twin.persona_of(call.scene)
        test = blind.newest(twin.settings.data, persona.name, persona.version.name if persona.version else None)
        return _asked(twin, call, test) if test else texts.BLIND_NONE.format(persona=persona.name)

    twin.commands.add("blind", Who.SUPERUSER, begin)


def _asked(twin: Twin, call: Call, test: BlindTest) -> str:
    """The next pair, in words; its answer is waited for."""
    number = test.next
    assert number is not None

    async def picked(answer: Call) -> str:
        if answer.rest == _STOP:
            return f"{texts.BLIND_STOPPED}{_score(test) if test.score['n'] else ''}"
        now = test.picked(number, CHOICES.index(answer.rest))
        try:
            blind.take(twin.settings.data, twin.personas, now, answer.time)
        except PersonaError as e:
            return str(e)
        trial = now.trials[number]
        told = texts.BLIND_RIGHT if trial.picked == trial.real else texts.BLIND_WRONG
        if now.next is None:
            return f"{told}\n{texts.BLIND_DONE}{_score(now)}"
        return f"{told}\n{_asked(twin, answer, now)}"

    twin.commands.ask(call, (*CHOICES, _STOP), picked)
    trial = test.trials[number]
    first, second = trial.options
    return texts.BLIND_ASK.format(
        number=number + 1, total=len(test.trials), context="\n".join(trial.context), first=first, second=second
    )


def _score(test: BlindTest) -> str:
    return texts.BLIND_SCORE.format(**test.score)
