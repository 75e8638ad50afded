"""What is set for a scene: by a command typed there, else for it in bot.toml, else for all.

What was typed is in the archive's scene log, so that it outlives a restart. Whether the twin is on is told apart from
the rest: labels depend on it, moment by moment.
"""

from datetime import UTC, datetime

from bot.archive import Archive
from bot.config import PerScene, Settings
from bot.hours import in_hours
from bot.message import Scene

STATE_KIND, PERSONA_KIND, BIAS_KIND, QUIET_KIND, COMMANDS_KIND = "state", "persona", "bias", "quiet", "commands"
"""Scene-log kinds: what the twin does there (on, off, held, or on by default); who answers; shift; quiet hours; whether
commands are answered."""
EVERYWHERE = Scene("group", "*")
"""No scene: what is typed for all of them is kept under it."""
_DEFAULT = "default"
_UNSET = PerScene()


class Scenes:
    """The settings of every scene.

    Args:
        settings: `[chat]`, superusers, the time zone.
        archive: where what was typed is kept.
    """

    def __init__(self, settings: Settings, archive: Archive) -> None:
        self._settings = settings
        self._chat = settings.chat
        self._archive = archive
        self._states: dict[Scene, tuple[str, datetime] | None] = {}

    # -- on, off, held ----------------------------------------------------------------------------

    def is_on(self, scene: Scene) -> bool:
        """Whether the scene is answered; a default is written down when it is first asked for, and when it changes."""
        state = self._state(scene)
        if state is not None and state[0] != _DEFAULT:
            return state[0] != "off"
        owners = scene.private and scene.id in self._settings.onebot.superusers
        on = owners or str(scene) in self._chat.scenes
        if on != (state is not None):
            self._be(scene, _DEFAULT if on else "off", datetime.now(UTC))
        return on

    def all_on(self) -> list[Scene]:
        """Every scene that is answered."""
        owners = (Scene("private", owner) for owner in self._settings.onebot.superusers)
        in_file = (Scene.parse(name) for name in self._chat.scenes)
        known = {*(scene for scene, *_ in self._archive.noted(STATE_KIND)), *owners, *in_file}
        return sorted((scene for scene in known if self.is_on(scene)), key=str)

    def switch(self, scene: Scene, on: bool, now: datetime) -> None:
        """Turn the twin on or off in a scene."""
        self._be(scene, "on" if on else "off", now)

    def hold(self, scene: Scene) -> None:
        """The person spoke there themselves: keep quiet for `hold_s`, where the twin is on."""
        if self.is_on(scene):
            self._be(scene, "held", datetime.now(UTC))

    def is_held(self, scene: Scene) -> bool:
        """Whether the person spoke there themselves a while ago; the end of the hold is written down when noticed."""
        state = self._state(scene)
        if state is None or state[0] != "held":
            return False
        now = datetime.now(UTC)
        if 0 <= (now - state[1]).total_seconds() < self._chat.hold_s:  # below 0 where the clock was put back
            return True
        log = self._archive.timeline(scene, STATE_KIND)
        before = next((value for _, value in reversed(log) if value != "held"), "on")
        self._be(scene, before, now)
        return False

    def state_at(self, scene: Scene, time: datetime) -> str:
        """What the twin did there at a moment: `on`, `off`, `held` or `default` (on)."""
        log = self._archive.timeline(scene, STATE_KIND)
        return next((value for since, value in reversed(log) if since <= time), "off")

    def forget(self, scene: Scene) -> None:
        """Ask the archive anew what the twin does there."""
        self._states.pop(scene, None)

    def _state(self, scene: Scene) -> tuple[str, datetime] | None:
        """What the twin does there, and since when; asked of the archive once, for it is needed at every message."""
        if scene not in self._states:
            self._states[scene] = self._archive.latest(scene, STATE_KIND)
        return self._states[scene]

    def _be(self, scene: Scene, state: str, now: datetime) -> None:
        self._states[scene] = (state, now)
        self._archive.note(scene, STATE_KIND, state, now)

    # -- the rest ---------------------------------------------------------------------------------

    def persona(self, scene: Scene) -> str:
        """Folder name of the persona that answers there: what was typed last, there or for all scenes, goes first."""
        logs = (self._archive.latest(place, PERSONA_KIND) for place in (EVERYWHERE, scene))
        typed = max((found for found in logs if found is not None), key=lambda found: found[1], default=None)
        return typed[0] if typed else self._in_file(scene).persona or self._chat.persona

    def bias(self, scene: Scene) -> float:
        """Log-odds added to speaking there."""
        typed = self._typed(scene, BIAS_KIND)
        return self._in_file(scene).bias if typed is None else float(typed)

    def quiet_hours(self, scene: Scene) -> str:
        """Hours in which nothing is said there, `23:30-07:00`; empty: none."""
        typed = self._typed(scene, QUIET_KIND)
        if typed is not None:
            return typed
        in_file = self._in_file(scene).quiet_hours
        return self._chat.quiet_hours if in_file is None else in_file

    def is_quiet(self, scene: Scene, now: datetime) -> bool:
        """Whether it is a quiet hour there."""
        return in_hours(self.quiet_hours(scene), now.astimezone(self._settings.zone).time())

    def commands(self, scene: Scene) -> bool:
        """Whether commands are answered there for others than the owners."""
        typed = self._typed(scene, COMMANDS_KIND)
        return self._in_file(scene).commands if typed is None else typed == "on"

    def type(self, scene: Scene, kind: str, value: str, now: datetime) -> None:
        """Keep what was typed in a scene."""
        self._archive.note(scene, kind, value, now)

    def _typed(self, scene: Scene, kind: str) -> str | None:
        found = self._archive.latest(scene, kind)
        return found[0] if found else None

    def _in_file(self, scene: Scene) -> PerScene:
        return self._chat.per_scene.get(str(scene), _UNSET)
