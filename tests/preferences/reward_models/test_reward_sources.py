"""Reward models as sources: what they read, which head answers, implicit rewards; against transformers used plainly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from paretune.errors import InputError
from paretune.preferences.asking import Tally, ask
from paretune.preferences.reward_models import models
from paretune.preferences.reward_models.implicit import implicit_source
from paretune.preferences.reward_models.models import (
    Reading,
    new_reward_model,
    response_rewards,
    save_reward_model,
    set_padding,
)
from paretune.preferences.reward_models.sources import reward_model_source
from paretune.preferences.reward_models.texts import encode, form_for
from paretune.preferences.source import Item, Source
from tests.cli.made import save_model
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe, chatml, llama3, word_level

PROMPTS = ["The cat sat on the", "Is the moon made of", "Once upon a"]
RESPONSES = [" mat and looked at the moon.", " cheese? No.", " time there was a little girl named Lily."]


def answers(source: Source, prompts: Any = PROMPTS, responses: Any = RESPONSES) -> list[float]:
    items = [Item(prompt, (response,)) for prompt, response in zip(prompts, responses, strict=True)]
    return ask(source, items, None, Tally())


def saved(path: Path, tokenizer: Any, heads: list[str], level: str | None = None) -> Path:
    """A reward model as others publish one: nothing of ours in its configuration."""
    base = save_model(path / "base", tokenizer=tokenizer)
    model = new_reward_model(str(base), heads, level)
    set_padding(model, tokenizer)
    model.save_pretrained(path / "rm")
    tokenizer.save_pretrained(path / "rm")
    assert "paretune" not in (path / "rm" / "config.json").read_text()
    return path / "rm"


@torch.no_grad()
def logits(path: Path, ids: list[int], auto: Any = AutoModelForSequenceClassification, **more: Any) -> torch.Tensor:
    found: torch.Tensor = auto.from_pretrained(path).eval()(input_ids=torch.tensor([ids]), **more).logits[0]
    return found


def test_every_head_is_an_objective_and_all_cost_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_bpe()
    path = saved(tmp_path, tokenizer, ["helpful", "harmless", "brief"])
    calls: list[int] = []
    plain = models.response_rewards
    monkeypatch.setattr(models, "response_rewards", lambda *given: calls.append(1) or plain(*given))
    named = answers(reward_model_source("helpful", str(path), {"batch_size": 2}))
    assert len(calls) == 2
    others = [
        answers(reward_model_source(name, str(path), {"batch_size": 2, **own}))
        for name, own in (("x", {"head": "harmless"}), ("x", {"head": 2}), ("brief.1", {}))
    ]
    assert len(calls) == 2, "the other heads were known already"
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
        wanted = logits(path, ids).tolist()
        assert [named[i], others[0][i], others[1][i], others[2][i]] == pytest.approx([*wanted, wanted[2]], abs=1e-5)
    with pytest.raises(InputError, match="one of helpful, harmless, brief"):
        reward_model_source("polite", str(path), {})
    with pytest.raises(InputError, match="no such head"):
        reward_model_source("helpful", str(path), {"head": 3})


@pytest.mark.parametrize("make", [chatml, llama3])
def test_a_conversation_is_read_as_its_template_writes_it(make: Any, tmp_path: Path) -> None:
    """To the last character: ChatML ends in a newline behind the end of turn, and models of others read there."""
    tokenizer = make()
    path = saved(tmp_path, tokenizer, ["good"])
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    found = answers(reward_model_source("good", str(path), {}), chats)
    plain = answers(reward_model_source("good", str(path), {}))
    assert found == pytest.approx(plain, abs=1e-5), "plain text is put into messages"
    for chat, response, score in zip(chats, RESPONSES, found, strict=True):
        whole = [*chat, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        assert score == pytest.approx(logits(path, list(ids))[0].item(), abs=1e-5)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    made = word_level()
    ids = [(token, made.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def test_an_encoder_reads_two_segments(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, num_labels=1, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = answers(reward_model_source("x", str(tmp_path), {}))
    for prompt, response, score in zip(PROMPTS, RESPONSES, found, strict=True):
        pair = tokenizer(prompt, response)
        segments = torch.tensor([pair["token_type_ids"]])
        assert segments.max() == 1
        assert score == pytest.approx(logits(tmp_path, pair["input_ids"], token_type_ids=segments).item(), abs=1e-5)
    assert len({round(score, 4) for score in found}) == 3


def test_which_form_a_tokenizer_asks_for() -> None:
    assert form_for(byte_bpe(), None) == "joined" == form_for(chatml(), False)
    assert form_for(chatml(), None) == "chat" == form_for(llama3(), True)
    assert form_for(bert_tokenizer(), None) == "pair" and form_for(byte_bpe(add_bos=True), None) == "joined"
    with pytest.raises(InputError, match="no chat template|has none"):
        form_for(byte_bpe(), True)


def test_tokens_of_others_need_to_be_told_how(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    path = saved(tmp_path, tokenizer, ["good"], "sum")
    with pytest.raises(InputError, match="sum or mean"):
        reward_model_source("good", str(path), {})
    found = answers(reward_model_source("good", str(path), {"token_level": "mean"}))
    for prompt, response, score in zip(PROMPTS, RESPONSES, found, strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        ids = [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
        tokens = logits(path, ids, AutoModelForTokenClassification)
        assert score == pytest.approx(tokens[start:].mean().item(), abs=1e-5)
    sequence = saved(tmp_path / "other", tokenizer, ["good"])
    with pytest.raises(InputError, match="scores whole sequences"):
        reward_model_source("good", str(sequence), {"token_level": "sum"})


def test_prompts_are_cut_and_responses_are_not(tmp_path: Path) -> None:
    tokenizer = byte_bpe(add_bos=True)
    (one,) = encode(tokenizer, "joined", [PROMPTS[0]], [RESPONSES[0]], None)
    assert one is not None
    for cut in range(one.start - 1):
        (kept,) = encode(tokenizer, "joined", [PROMPTS[0]], [RESPONSES[0]], len(one.ids) - cut)
        if cut > one.start - 2:
            assert kept is None
            continue
        assert kept is not None and len(kept.ids) == len(one.ids) - cut
        assert kept.ids[0] == tokenizer.bos_token_id and kept.ids[kept.start :] == one.ids[one.start :]
    path = saved(tmp_path, tokenizer, ["good"])
    short = answers(reward_model_source("good", str(path), {"max_length": 24}), PROMPTS, [*RESPONSES[:2], " a" * 40])
    assert math.isnan(short[2]) and not math.isnan(short[1])


def test_rewards_of_many_objectives_beside_their_sum() -> None:
    """ArmoRM's own code gives (R, 19) rewards and their gated sum as logits."""

    class Gated(nn.Module):
        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(rewards=torch.arange(6).view(2, 3).half(), logits=torch.zeros(2, 1))

    found = response_rewards(Gated(), {}, None)
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]] and found.dtype == torch.float32


def test_what_is_saved_says_how_it_is_read_and_its_fingerprint_is_of_its_content(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    base = save_model(tmp_path / "base", tokenizer=tokenizer)
    model = new_reward_model(str(base), ["a", "b"], None)
    set_padding(model, tokenizer)
    reading = Reading(form="joined", center=(10.0, 0.0), scale=(2.0, 1.0), max_length=30)
    save_reward_model(model, tokenizer, reading, str(tmp_path / "rm"))
    again, found = models.read_config(str(tmp_path / "rm"))
    assert found == reading and models.heads_of(again) == ["a", "b"]
    source = reward_model_source("a", str(tmp_path / "rm"), {})
    ids = [*tokenizer(PROMPTS[0] + RESPONSES[0])["input_ids"], tokenizer.eos_token_id]
    before = answers(source)
    assert before[0] == pytest.approx(10 + 2 * logits(tmp_path / "rm", ids)[0].item(), abs=1e-4)
    (tmp_path / "rm" / "run.json").write_text("{}")
    assert reward_model_source("a", str(tmp_path / "rm"), {}).fingerprint == source.fingerprint
    with torch.no_grad():
        model.score.weight[0, 0] += 1e-3
    save_reward_model(model, tokenizer, reading, str(tmp_path / "rm"))
    changed = reward_model_source("a", str(tmp_path / "rm"), {})
    assert changed.fingerprint != source.fingerprint and answers(changed) != before


# ---- implicit ----


def summed_logps(model: nn.Module, tokenizer: Any, prompt: str, response: str) -> float:
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
    return float(logps.gather(1, ids[0, 1:, None])[start - 1 :].sum())


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_an_implicit_reward_is_the_log_ratio(family: str, tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    size = {"vocab_size": len(tokenizer)}
    policy, reference = (make_model(family, seed=seed, std=0.1, **size) for seed in (0, 1))
    for name, model in (("policy", policy), ("reference", reference)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    given = {"reference": str(tmp_path / "reference"), "beta": 0.25, "batch_size": 2}
    found = answers(implicit_source("x", str(tmp_path / "policy"), given))
    for prompt, response, score in zip(PROMPTS, RESPONSES, found, strict=True):
        logps = [summed_logps(model, tokenizer, prompt, response) for model in (policy, reference)]
        assert score == pytest.approx(0.25 * (logps[0] - logps[1]), abs=1e-3)
    same = implicit_source("x", str(tmp_path / "policy"), {"reference": str(tmp_path / "policy")})
    assert answers(same) == pytest.approx([0.0] * 3, abs=1e-5)


def test_an_adapter_needs_no_reference(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    alone = answers(implicit_source("x", str(tmp_path / "adapter"), {}))
    beside = answers(implicit_source("x", str(tmp_path / "adapter"), {"reference": str(base)}))
    assert alone == pytest.approx(beside, abs=1e-4) and max(map(abs, alone)) > 0.01
    kept = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == str(base)


def test_a_reward_model_may_start_from_an_adapter(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    model = new_reward_model(str(tmp_path / "adapter"), ["a", "b"], None)
    ids = torch.tensor([[5, 9, 11, 30]])
    with torch.no_grad():
        wanted = adapted(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        found = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(found, wanted, atol=1e-4) and model.config.id2label == {0: "a", 1: "b"}
