"""/twin, /why, /memory and /about."""

from datetime import tzinfo

from bot.archive import Decision
from bot.commands import Call, Who
from bot.decision import TERMS
from bot.twin import Twin
from plugins.chat import texts


def register(twin: Twin) -> None:
    """Register this plugin's commands."""

    async def switch(call: Call) -> str:
        match call.args:
            case ("on",) | ("off",):
                on = call.args == ("on",)
                twin.presence.switch(call.scene, on, call.time)
                return texts.ON if on else texts.OFF
            case ("status",) | ():
                return _status(twin, call)
            case _:
                return texts.TWIN_USAGE

    async def memory(call: Call) -> str:
        if call.args != ("clear",):
            return texts.MEMORY_USAGE
        twin.memory.clear(call.scene, call.time)
        return texts.MEMORY_CLEARED

    async def why(call: Call) -> str:
        found = twin.archive.decisions(call.scene)
        return explain(found[0], twin.settings.zone) if found else texts.WHY_NONE

    async def about(call: Call) -> str:
        persona = twin.persona_of(call.scene)
        version = persona.version.name if persona.version else texts.BASE_VERSION
        names = " ".join(f"/{name}" for name in twin.commands.names())
        return texts.ABOUT.format(persona=persona.spec.display_name, version=version, commands=names)

    twin.commands.add("twin", Who.GROUP_ADMIN, switch)
    twin.commands.add("memory", Who.GROUP_ADMIN, memory)
    twin.commands.add("why", Who.GROUP_ADMIN, why, private_for_everyone=True)
    twin.commands.add("about", Who.EVERYONE, about)


def _status(twin: Twin, call: Call) -> str:
    persona = twin.persona_of(call.scene)
    return texts.STATUS.format(
        state=texts.STATE_ON if twin.presence.is_on(call.scene) else texts.STATE_OFF,
        persona=persona.spec.display_name,
        version=persona.version.name if persona.version else texts.BASE_VERSION,
    )


def explain(decision: Decision, zone: tzinfo) -> str:
    """A decision in words: what was done, the probability, and every term of it, largest first."""
    why = decision.why
    outcome = texts.OUTCOMES.get(decision.outcome) or texts.OUTCOME_FAILED.format(how=decision.outcome)
    terms = sorted(why.get("terms", {}).items(), key=lambda term: -abs(term[1]))
    p_silent = why.get("p_silent")
    return texts.WHY.format(
        time=decision.time.astimezone(zone).strftime("%m-%d %H:%M:%S"),
        persona=decision.persona,
        version=decision.version or texts.BASE_VERSION,
        outcome=outcome,
        p_speak=why.get("p_speak", 0.0),
        draw=why.get("draw", 0.0),
        p_silent="—" if p_silent is None else f"{p_silent:.0%}",
        terms="，".join(f"{TERMS.get(name, name)} {value:+.1f}" for name, value in terms),
    )
