"""/train: now, status, cancel."""

from bot.commands import Call, Who
from bot.twin import Twin
from plugins.retrain import texts
from plugins.retrain.nights import Nights


def register(twin: Twin, nights: Nights) -> None:
    """Register this plugin's command; it is the owners' alone."""

    async def train(call: Call) -> str:
        match call.args:
            case ("now",):
                persona = twin.persona_of(call.scene)
                return nights.start(persona.name, force=True) or texts.STARTED.format(persona=persona.spec.display_name)
            case ("status",) | ():
                return nights.status()
            case ("cancel",):
                return texts.CANCELLED if await nights.cancel() else texts.NOTHING
            case _:
                return texts.USAGE

    twin.commands.add("train", Who.SUPERUSER, train)
