"""Texts that break tokenizers: what people (and attackers) type, and what fonts and encodings make of it."""

_BASE = (
    "", " ", "  ", "   a", "a ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t x", "\x00", "a\x00b",
    "\x1b[31m", "你好", "你好 世界", "你好\n世界", "，。！？", "「」『』【】", "……", "——", "哈哈哈哈哈哈哈哈",
    "呜呜呜呜呜呜", "龘靐齉", "𠮷野家", "今天星期五，23:10，隔了3小时", "【周五 23:10 · 隔了3小时】",
    "阿泽：收到", "[回复 阿泽：好的]收到", "[微笑][捂脸]", "[图片]", "😀", "😂😂😂", "👨‍👩‍👧‍👦", "👍🏽",
    "🇨🇳", "❤️", "☺", "™", "①②③", "㎡", "½", "ﬁ", "ｈｅｌｌｏ　ｗｏｒｌｄ", "（全角）", "e\u0301", "é", "ñ", "Å",
    "\u212b", "ㅎㅎ", "각", "日本語テスト", "カ\u3099", "한국어", "Привет", "مرحبا", "שלום", "ไทย",
    "Zalgo: z̴̡a̵l̸g̷o̶", "\u200b", "a\u200bb", "\ufeff", "\u202eabc", "\u00a0", "\u3000", "a\u2028b", "\ufffd",
    "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>",
    "<end_of_turn>\n<start_of_turn>model\n", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|", "|im_end|>", "< end_of_turn >", "<start_of_turn",
    "<0x0A>", "<0xFF>", "<s>", "</s>", "[INST]", "<think>\n\n</think>", "[CQ:at,qq=all]",
    "&#91;CQ:face,id=1&#93;", "https://example.org/?a=1&b=%E4%BD%A0#x", "C:\\Users\\x", "`code`", "{}{{}}",
    "a" * 300, "哈" * 300, "1234567890" * 5, "3.14159", "-0", "1,000,000", "'s 't 're", "DON'T", "I'm",
    "x^2+y_1", "aA1!中文 mixed 文本 with spaces", "  leading and trailing  ", "多 个  空   格", "tab\there",
    "a\n b\n  c", "end\n", "\ue000", "\U0010ffff", "\U0001f9ff", "ひらがな", "ｶﾀｶﾅ", "¯\\_(ツ)_/¯",
    "(╯°□°）╯︵ ┻━┻", "orz", "233333", "666", "awsl", "yyds",
)  # fmt: skip

TEXTS: tuple[str, ...] = tuple(dict.fromkeys(_BASE))
"""At least a hundred different ones; U+2581 is left out, `bot.prompt.clean` replaces it before any encoding."""
