"""/twin, /why, /memory and /about."""

import time
from datetime import tzinfo
from statistics import median

from bot.archive import Decision
from bot.commands import Call, Who
from bot.decision import in_words
from bot.hours import in_hours
from bot.message import Origin, Scene
from bot.scenes import BIAS_KIND, COMMANDS_KIND, QUIET_KIND
from bot.twin import Twin, now
from plugins.chat import texts

BIAS_MAX = 20.0
"""Log-odds: beyond, it always or never speaks anyway."""


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
            case ("bias", shift):
                return _bias(twin, call, shift)
            case ("quiet", hours):
                return _quiet(twin, call, hours)
            case ("commands", "on" | "off" as answered):
                twin.presence.scenes.type(call.scene, COMMANDS_KIND, answered, call.time)
                return texts.COMMANDS_ON if answered == "on" else texts.COMMANDS_OFF
            case _:
                return texts.TWIN_USAGE

    async def memory(call: Call) -> str:
        if call.args != ("clear",):
            return texts.MEMORY_USAGE
        twin.memory.clear(call.scene, call.time)
        return texts.MEMORY_CLEARED

    async def why(call: Call) -> str:
        if call.quoted is not None:
            return _why_of(twin, call.scene, call.quoted)
        newest = twin.archive.decisions(call.scene)
        scenes = twin.presence.scenes
        gate = "off" if not scenes.is_on(call.scene) else "held" if scenes.is_held(call.scene) else ""
        told = explain(newest[0], twin.settings.zone) if newest else texts.WHY_NONE
        return texts.WHY_NOW.get(gate, "") + told

    async def about(call: Call) -> str:
        persona = twin.persona_of(call.scene)
        return texts.ABOUT.format(
            persona=persona.spec.display_name,
            model=texts.ABOUT_TRAINED if persona.version else texts.ABOUT_UNTRAINED,
            where=texts.ABOUT_HERE if twin.settings.stays_here else texts.ABOUT_SENT,
            version=persona.version.name if persona.version else texts.BASE_VERSION,
            commands=" ".join(f"/{name}" for name in twin.commands.names()),
        )

    twin.commands.add("twin", Who.GROUP_ADMIN, switch)
    twin.commands.add("memory", Who.GROUP_ADMIN, memory)
    twin.commands.add("why", Who.GROUP_ADMIN, why, private_for_everyone=True)
    twin.commands.add("about", Who.EVERYONE, about)


def _why_of(twin: Twin, scene: Scene, message_id: str) -> str:
    """Why a message was answered as it was; where nothing was decided on it, what the twin was doing there."""
    found = twin.archive.decision_on(scene, message_id)
    if found is not None:
        return explain(found, twin.settings.zone)
    about = twin.archive.get(scene, message_id)
    if about is None or about.origin is not Origin.HUMAN:
        return texts.WHY_NONE_ON_IT
    return texts.WHY_WAS.get(twin.presence.scenes.state_at(scene, about.time), texts.WHY_NONE_ON_IT)


def _bias(twin: Twin, call: Call, shift: str) -> str:
    try:
        value = float(shift)
    except ValueError:
        return texts.TWIN_USAGE
    if not abs(value) <= BIAS_MAX:
        return texts.TWIN_USAGE
    twin.presence.scenes.type(call.scene, BIAS_KIND, str(value), call.time)
    return texts.BIAS.format(bias=value)


def _quiet(twin: Twin, call: Call, hours: str) -> str:
    wanted = "" if hours == "off" else hours
    try:
        in_hours(wanted, call.time.time())
    except ValueError:
        return texts.TWIN_USAGE
    twin.presence.scenes.type(call.scene, QUIET_KIND, wanted, call.time)
    return texts.QUIET.format(hours=wanted) if wanted else texts.QUIET_OFF


def _status(twin: Twin, call: Call) -> str:
    persona, scenes, zone = twin.persona_of(call.scene), twin.presence.scenes, twin.settings.zone
    midnight = now().astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    today = twin.archive.decisions_since(midnight, call.scene)
    took = [sum(d.why["took_ms"].values()) for d in today if d.outcome == "spoke" and d.why.get("took_ms")]
    next_night = twin.next_night()
    hours = (now() - twin.started).total_seconds() / 3600
    return texts.STATUS.format(
        state=texts.STATE_ON if scenes.is_on(call.scene) else texts.STATE_OFF,
        persona=persona.spec.display_name,
        version=persona.version.name if persona.version else texts.BASE_VERSION,
        hours=hours,
        odd=twin.odd.total(),
        decisions=len(today),
        replies=sum(d.outcome == "spoke" for d in today),
        took=f"{median(took) / 1000:.1f} 秒" if took else "—",
        left=twin.presence.budget.left(call.account, call.scene, time.monotonic()),
        bias=scenes.bias(call.scene),
        quiet=scenes.quiet_hours(call.scene) or "无",
        commands=texts.FOR_ALL if scenes.commands(call.scene) else texts.FOR_OWNERS,
        night=next_night.astimezone(zone).strftime("%m-%d %H:%M") if next_night else "—",
    )


def explain(decision: Decision, zone: tzinfo) -> str:
    """A decision in words: what was done or what stopped it, the probabilities and every term of them, what it took.

    Probabilities are there where it was looked whether to speak: not where the persona spoke first, or nobody looked.
    """
    why = decision.why
    outcome = texts.OUTCOMES.get(decision.outcome) or texts.OUTCOME_FAILED.format(how=decision.outcome)
    looked = "tokens" in why
    version = f" {decision.version or texts.BASE_VERSION}" if looked or decision.version else ""
    told = texts.WHY_OUTCOME.format(
        time=decision.time.astimezone(zone).strftime("%m-%d %H:%M:%S"), persona=decision.persona, version=version,
        outcome=outcome + texts.OPENINGS.get(why.get("opening", ""), ""),
    )  # fmt: skip
    if looked and not why.get("opening"):
        p_silent, p_speak = why.get("p_silent"), why["p_speak"]
        told += texts.WHY_ODDS.format(
            p_silent="—" if p_silent is None else f"{p_silent:.0%}", p_quiet=1 - p_speak, p_speak=p_speak,
            draw=why["draw"], terms=in_words(why["terms"]),
        )  # fmt: skip
    if looked:
        took = "，".join(f"{texts.TOOK.get(k, k)} {ms} 毫秒" for k, ms in why.get("took_ms", {}).items())
        told += texts.WHY_COST.format(tokens=why["tokens"], took=took or "—")
    return told
