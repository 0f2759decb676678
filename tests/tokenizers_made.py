"""Small real tokenizers, trained here on a few sentences, with chat templates of the kinds that models ship.

Every function returns a new fast tokenizer that survives `save_pretrained` and `AutoTokenizer.from_pretrained`. The
templates are ours, written to show the traits of their families and nothing else: ChatML (a newline after the end of
turn, no BOS), Qwen3 (an empty thought before the last answer), a thinking generation prompt, Llama-3 (BOS in the
template, special headers), Gemma (BOS, system text merged into the first user turn, alternation enforced, turns that do
not end with the tokenizer's EOS), and a plain one without any end of turn.
"""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "Is the moon made of cheese? No, it is made of rock and dust.",
    "Once upon a time there was a little girl named Lily who liked to play outside.",
    "Question: What is the colour of the sky? Answer: The sky is blue in the day and black at night.",
    "user: Tell me a story. assistant: A dog found a ball, and the dog was very happy!",
    "system: You are a helpful assistant. You answer in one short sentence.\n\nThank you.\n",
    "I do not know, but I can help you to find out: one, two, three, four, five.",
] * 4

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN3 = """{%- for message in messages %}
{%- if message['role'] == 'assistant' and loop.last %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message['content'] + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

THINKING = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"""

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}{%- set first = '' %}{%- set turns = messages %}{%- endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
{{- (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

PLAIN_CHAT = """{%- for message in messages %}
{{- message['role'] + ': ' + message['content'] + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"""


def byte_bpe(
    *, add_bos: bool = False, pad: bool = True, eos: bool = True, template: str | None = None, size: int = 400
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Qwen and Llama-3 have it; `add_bos` adds a post-processor that puts `<s>` in front.

    Without `add_bos` it has no BOS token at all, as Qwen.
    """
    special = (["<s>"] if add_bos else []) + (["</s>"] if eos else []) + (["<pad>"] if pad else [])
    return _byte_bpe(special, [], "<s>" if add_bos else None, "</s>" if eos else None, "<pad>" if pad else None,
                     template, size, add_bos)  # fmt: skip


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Qwen-like: EOS is `<|im_end|>`, no BOS, `<think>` is one token but no special one."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _byte_bpe(special, ["<think>", "</think>"], None, "<|im_end|>", "<|endoftext|>", template, 420, False)


def qwen3() -> PreTrainedTokenizerFast:
    """As Qwen3: full conversations hold an empty thought in the last answer, the generation prompt does not."""
    return chatml(QWEN3)


def thinking() -> PreTrainedTokenizerFast:
    """The generation prompt opens a thought that finished conversations do not hold: never a prefix of them."""
    return chatml(THINKING)


def llama3() -> PreTrainedTokenizerFast:
    """Llama-3-like: BOS from the template and from the tokenizer's post-processor, EOS `<|eot_id|>`, no pad."""
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    return _byte_bpe(special, [], "<|begin_of_text|>", "<|eot_id|>", None, LLAMA3, 420, True)


def gemma() -> PreTrainedTokenizerFast:
    """Gemma-like: turns end with `<end_of_turn>` while the tokenizer's EOS is `<eos>`."""
    tokenizer = metaspace(size=320, bos="<bos>", eos="<eos>", more=["<start_of_turn>", "<end_of_turn>"])
    tokenizer.chat_template = GEMMA
    return tokenizer


def plain_chat() -> PreTrainedTokenizerFast:
    """A chat template of plain words, with no end of turn at all."""
    return byte_bpe(template=PLAIN_CHAT)


def metaspace(
    *, size: int = 320, bos: str = "<s>", eos: str = "</s>", more: list[str] | None = None
) -> PreTrainedTokenizerFast:
    """Llama-2-like: spaces as U+2581, one put in front of the text, byte fallback, BOS added by itself, no pad."""
    special = ["<unk>", bos, eos, *(more or [])]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special + bytes_, show_progress=False)
    words = pre_tokenizers.Split(Regex("▁[^▁]*"), behavior="isolated")  # for training only, as sentencepiece splits
    tokenizer.pre_tokenizer = words
    tokenizer.train_from_iterator([sentence.replace("\n", " ") for sentence in SENTENCES], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = _leading(tokenizer, bos)
    state = json.loads(tokenizer.to_str())
    # Given to the trainer as special tokens so that they exist; to the tokenizer they are ordinary text.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>")


def word_level(*, add_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word, unknown words `[UNK]`; `[CLS]` in front and `[SEP]` behind when `add_eos`."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    if add_eos:
        pairs = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _byte_bpe(
    special: list[str],
    added: list[str],
    bos: str | None,
    eos: str | None,
    pad: str | None,
    template: str | None,
    size: int,
    add_bos: bool,
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    if add_bos and bos is not None:
        tokenizer.post_processor = _leading(tokenizer, bos)
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    given = {name: token for name, token in names.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **given)


def _leading(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
