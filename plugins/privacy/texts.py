"""What this plugin says in QQ."""

OPTED_OUT = (
    "好。从现在起，{whose}在任何群和私聊里说的话我都不记、不看、不学，也不回；表情包也不收。"
    "以前记下的还留着，但不再看、不再学。要全部删掉发 /forgetme，反悔发 /optin。"
)
OPTED_OUT_PERSON = (
    "注意：我模仿的就是{whose}。从现在起夜训没有{whose}的话可学，一般不会再出新版本；"
    "现在的版本照旧在别处说话，要它闭嘴用 /twin off。"
)
ALREADY_OUT = "{whose}说的话本来就没在记、没在学。"
OPTED_IN = "好，从现在起{whose}说的话又会被记下、可能被学。之前没记的补不回来，删掉的也不会回来。"
NOT_OUT = "{whose}没有退出过，不用 /optin。"
NOT_YOURS = "是本人自己退出的，只有本人能 /optin。"
YOURS, THEIRS = "你", "这个号"
ONLY_YOURSELF = "只能替自己决定：/{name} 后面不用写号码。"
USAGE = "用法：/{name}（主人可以写一个 QQ 号）"
ASK = (
    "确定要我忘掉{whose}吗？会删：{whose}说过的所有话和原始记录、名字、别人话里的 @、和{whose}的整个私聊（两边都删）、"
    "发的表情包、相关的纠正；以后导入旧记录也不会带回来，之后也不再记（/optin 才恢复）。删了找不回来。\n"
    "删不掉的：已经训练好的模型里学到的、主人自己做的备份。\n"
    "回「确认」就删，回「取消」不删，30 分钟内有效。"
)
ASK_PERSON = "注意：我模仿的就是{whose}，删了以后就没有可学的了。\n"
CONFIRM, CANCEL = "确认", "取消"
CANCELLED = "好，什么都没删。"
FORGOTTEN = (
    "忘掉了：{messages} 条话和命令，私聊两边共 {private} 条，别人话里的 {mentions} 处 @ 和引用，{corrections} 条纠正，"
    "{stickers} 个表情包。{file}；{whose}的号码只留一个哈希，用来认出再来的旧记录。\n"
    "删不掉的：{versions}主人自己做的备份和导出；别人自己打的字里提到{whose}的内容是别人的话。"
)
REWRITTEN = "数据库文件已重写"
TO_REWRITE = "数据库里已清零，等别的程序（夜训、导入）读完就整个重写"
VERSIONS = "已经训练好的 {n} 个模型版本里学到的（主人重新夜训、删掉旧版本后才没有）；"
NOT_NOW = "现在存不进去，什么都没改（或没改完）。过几分钟再发一次。"
OWNER_TOLD = (
    "有人用了 /forgetme：删了 {messages} 条话、私聊 {private} 条、{mentions} 处 @ 和引用、"
    "{files} 个含聊天片段的文件（盲测题、样例）。已训练的 {n} 个版本里可能还有："
    '下一次夜训从头学（[training] start = "fresh"，可以马上 /train now；正在跑的先 /train cancel）就不含了，'
    "之后删掉 data/personas 里的旧版本和 data/runs 里的旧训练；自己做的备份也请处理。"
)
