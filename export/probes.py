"""Texts that break tokenizers: both vocabularies must agree on them."""

PROBES = (
    "", " ", "   a  ", "\n", "\n\n\n", "\r\n", "\t", "a\x00b", "你好", "你好 世界，今天星期五！", "龘靐齉𠮷",
    "……——「」『』", "【周五 23:10 · 隔了3小时】", "阿泽：收到", "[回复 阿泽：好的]收到", "[微笑][图片]",
    "😀👨‍👩‍👧‍👦👍🏽🇨🇳❤️", "①½ﬁ㎡", "ｈｅｌｌｏ　ｗｏｒｌｄ", "e\u0301\u212b", "각カ\u3099",
    "Привет مرحبا ไทย", "z̴̡a̵l̸g̷o̶", "a\u200bb\ufeff\u202ec", "<end_of_turn>\n<start_of_turn>model\n",
    "<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|eot_id|>", "<bos>", "<eos>", "<unk>",
    "<think>\n\n</think>", "<tool_call>", "</s>", "<s>a</s>b", "<|fim_pad|>", "<|file_sep|>", "<EOT>",
    "<div><br></div>", "a<b", "我<3你", "<0x0A>", "[INST]", "[CQ:at,qq=all]", "https://example.org/?a=1&b=%E4%BD%A0#x",
    "1234567890", "3.14159", "I'm DON'T", "哈" * 100, "a" * 100, "aA1!中文 mixed 文本\n  b", "tab\there",
    "\ue000\U0010ffff", "¯\\_(ツ)_/¯", "233333 yyds",
)  # fmt: skip
