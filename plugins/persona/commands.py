"""The persona command's words → what is done."""

from bot.commands import Call, Who
from bot.errors import PersonaError
from bot.persona import Persona
from bot.scenes import EVERYWHERE
from bot.twin import Twin, now
from plugins.persona import texts


def register(twin: Twin) -> None:
    """Register this plugin's command."""

    async def persona(call: Call) -> str:
        try:
            return _run(twin, call)
        except PersonaError as e:
            return texts.NOT_POSSIBLE.format(why=e)

    twin.commands.add("persona", Who.GROUP_ADMIN, persona)


def _run(twin: Twin, call: Call) -> str:
    match call.args:
        case ("list",) | ():
            return _list(twin, call)
        case ("switch", wanted):
            chosen = twin.switch_persona(call.scene, wanted, now())
            return texts.SWITCHED.format(display=chosen.spec.display_name, version=_version(chosen))
        case ("switch", wanted, place) if place in texts.EVERYWHERE:
            if call.who is not Who.SUPERUSER:
                return texts.OWNER_ONLY_EVERYWHERE
            chosen = twin.switch_persona(EVERYWHERE, wanted, now())
            return texts.SWITCHED_EVERYWHERE.format(display=chosen.spec.display_name, version=_version(chosen))
        case ("info",):
            return _info(twin, twin.persona_of(call.scene))
        case ("info", wanted):
            return _info(twin, twin.personas.find(wanted))
        case ("rollback", *rest) if len(rest) <= 1:
            if call.who is not Who.SUPERUSER:
                return texts.OWNER_ONLY
            serving = twin.persona_of(call.scene)
            version = twin.personas.rollback(serving.name, rest[0] if rest else None)
            return texts.ROLLED_BACK.format(display=serving.spec.display_name, version=version.name)
        case _:
            return texts.USAGE


def _list(twin: Twin, call: Call) -> str:
    here = twin.persona_of(call.scene).name
    rows = []
    for name in twin.personas.names():
        persona = twin.personas.load(name)
        mark = "→" if name == here else "·"
        rows.append(
            texts.ROW.format(mark=mark, display=persona.spec.display_name, name=name, version=_version(persona))
        )
    return texts.LIST.format(rows="\n".join(rows)) if rows else texts.NONE


def _info(twin: Twin, persona: Persona) -> str:
    loss = persona.version.manifest.metrics.get("loss") if persona.version else None
    return texts.INFO.format(
        display=persona.spec.display_name, name=persona.name, version=_version(persona),
        count=len(twin.personas.versions(persona.name)), people="、".join(persona.spec.people) or "—",
        loss="—" if loss is None else f"{loss['value']:.3f}",
    )  # fmt: skip


def _version(persona: Persona) -> str:
    if persona.version is None:
        return texts.BASE_VERSION
    name = persona.version.name
    return texts.MERGED_VERSION.format(name=name) if persona.version.manifest.merged else name
