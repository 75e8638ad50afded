"""The night, by schedule and by `/train`; a child process, so a failed run cannot take the bot down."""

from nonebot import get_driver
from nonebot.plugin import PluginMetadata

from plugins.retrain import commands
from plugins.retrain.nights import Nights
from plugins.retrain.probation import Probation
from plugins.retrain.schedule import Schedule

__plugin_meta__ = PluginMetadata("retrain", "Retrains the persona every night", "/train now|status|cancel")

_driver = get_driver()
_twin = _driver.config.twin
nights = Nights(_twin, _driver.config.config_path)
schedule = Schedule(_twin, nights)
probation = Probation(_twin)
_twin.next_night = schedule.next_night
commands.register(_twin, nights)
_driver.on_startup(schedule.start)
_driver.on_startup(probation.start)
_driver.on_shutdown(schedule.stop)
_driver.on_shutdown(probation.stop)
_driver.on_shutdown(nights.close)
