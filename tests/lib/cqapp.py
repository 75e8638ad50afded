"""An aiocqhttp application, run as a child: `python cqapp.py PORT TOKEN`. The SDK of OneBot's author, used as it says.

What it understood is printed as JSON lines; words are answered in the same chat, in two bubbles for "两句".
"""

import json
import sys
from typing import Any

from aiocqhttp import CQHttp, Event, MessageSegment


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def main(port: int, token: str) -> None:
    """Serve until killed."""
    bot = CQHttp(access_token=token, message_class=None)

    @bot.on_message
    async def _(event: Event) -> None:
        words = "".join(s["data"]["text"] for s in event.message if s["type"] == "text")
        tell(event=event.name, user=event.user_id, self=event.self_id, words=words, id=event.message_id)
        target = {"group_id": event.group_id} if event.group_id else {"user_id": event.user_id}
        action = "send_group_msg" if event.group_id else "send_private_msg"
        for text in ("一", "二") if words == "两句" else (f"你说{words}",):
            sent = await bot.call_action(
                action, self_id=event.self_id, **target, message=[MessageSegment.text(text), MessageSegment.face(14)]
            )
            tell(sent=sent["message_id"])
        if words == "谁":
            tell(who=await bot.get_login_info(self_id=event.self_id))

    @bot.on_notice
    async def _(event: Event) -> None:
        tell(event=event.name, user=event.user_id)

    @bot.on_meta_event
    async def _(event: Event) -> None:
        tell(event=event.name)

    bot.run(host="127.0.0.1", port=port, debug=False, use_reloader=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
