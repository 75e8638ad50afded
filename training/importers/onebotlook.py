"""onebot://HOST:PORT[/group/ID|/private/ID] → what an import of it would bring, by the newest page of each scene.

A dry run asks for no more than that: QQ's servers answer every page, and the account is a person's.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, tzinfo
from typing import Any

from bot.archive import Archive
from bot.backfill import PAUSE_S, Backfill, Filled
from bot.errors import ImportFault
from bot.message import Scene
from training import speakers
from training.importers.onebotlive import calling, left_out, parsed
from training.speakers import many

LOOKED_INTO = 20
"""Scenes of which a page is asked for: with the pauses between, that many seconds."""
_PEOPLE_TOLD = 8
_FOREVER = datetime.max.replace(tzinfo=UTC)


async def look(
    url: str, token: str, progress: Callable[[int, int], None], zone: tzinfo, pause_s: float = PAUSE_S
) -> dict[str, Any]:
    """What the client is, who is logged in, and what the newest page of every scene holds; stored nowhere.

    Args:
        url: as in the module's first line.
        token: of the client's WebSocket server; empty for none.
        progress: called with scenes looked into and their number.
        zone: for the times.
        pause_s: seconds before every page but the first.

    Raises:
        ImportFault: the address is none, the client is not there, refuses the token, or goes.
    """
    host, scene = parsed(url)
    with closing(Archive("sqlite://")) as passing:  # in memory
        async with calling(host, token) as call:
            backfill = Backfill(call, passing, pause_s)
            login = await backfill.login()
            names = {scene: ""} if scene else await backfill.scenes()
            looked = list(names)[:LOOKED_INTO]
            found = dict[Scene, Filled | ImportFault]()
            for number, place in enumerate(looked, 1):
                found[place] = await _newest(backfill, place)
                progress(number, len(looked))
        stored = {summary.scene: summary for summary in passing.scenes()}
        scenes = dict[str, Any]()
        for place, filled in found.items():
            there = stored.get(place)
            called = names[place] or (passing.name_of(place.id) if place.private else there and there.name) or ""
            times = (there.first, there.last) if there else ()
            scenes[str(place)] = {
                "name": called, "messages": there.messages if there else 0,
                "span": [t.astimezone(zone).isoformat(timespec="seconds") for t in times], **_left(filled),
            }  # fmt: skip
        kinds = [place.kind for place in names]
        return {
            "client": login.title, "me": login.account, "my_name": login.name,
            "groups": kinds.count("group"), "friends": kinds.count("private"), "scenes": scenes,
            "people": {who: {"name": name, "messages": n} for who, name, n in passing.people(_PEOPLE_TOLD)},
        }  # fmt: skip


async def _newest(backfill: Backfill, scene: Scene) -> Filled | ImportFault:
    """A scene's newest page, or why there is none."""
    try:
        return await backfill.catch_up(scene, since=_FOREVER, until=_FOREVER)  # one page: all of it is older
    except ImportFault as e:
        if isinstance(e.__cause__, ConnectionError):
            raise
        return e


def _left(found: Filled | ImportFault) -> dict[str, Any]:
    if isinstance(found, ImportFault):
        return {"skipped": {}, "fault": str(found)}
    return {"skipped": {why: {"count": n, "places": found.places[why]} for why, n in found.skipped.most_common()}}


def in_words(shown: Mapping[str, Any], url: str) -> str:
    """What `look` gives as a person reads it."""
    scenes = shown["scenes"]
    kinds = (many(n, what) for n, what in ((shown["groups"], "group"), (shown["friends"], "friend")) if n)
    lines = [
        f"{url}: {shown['client'] or 'a client that does not say its name'}; you are "
        f"{' '.join(filter(None, (shown['me'], shown['my_name']))) or 'not told'}; "
        f"{' and '.join(kinds) or 'neither groups nor friends'}",
        "  a dry run asks for the newest page of a chat; an import goes on from there to the oldest message that the "
        "client still knows",
    ]
    for scene, one in scenes.items():
        span = f", {' – '.join(one['span'])}" if one["span"] else ""
        name = " ".join(filter(None, (scene.replace(":", " "), one["name"])))
        lines += [f"  {name}: {many(one['messages'], 'message')}{span}", *left_out(one["skipped"], "    ")]
        if "fault" in one:
            lines.append(f"    not read: {one['fault']}")
    if more := shown["groups"] + shown["friends"] - len(scenes):
        lines.append(f"  and {many(more, 'more chat')}, not looked into")
    people = speakers.in_words((who, one["name"], one["messages"]) for who, one in shown["people"].items())
    return "\n".join([*lines, f"  people there: {people or 'nobody'}"])
