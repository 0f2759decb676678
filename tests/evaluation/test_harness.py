"""Tasks of lm-evaluation-harness: a made task against a direct computation, differences, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.evaluation.harness import Score, load_tasks, run_tasks, score_differences, score_figures, scores_of
from tests.models_made import make_model
from tests.tokenizers_made import byte_bpe

QUESTIONS = [
    ("The cat sat on the", ["mat", "moon", "ball"], 0),
    ("The moon is made of", ["cheese", "rock and dust"], 1),
    ("The sky is", ["blue", "black", "happy"], 0),
    ("A dog found a", ["story", "ball"], 1),
    ("The girl named Lily liked to", ["play outside", "answer"], 0),
]


def write_task(folder: Path, name: str = "made_questions") -> Path:
    """A task of several choices, its documents in a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}",
        "test_split: test",
        "output_type: multiple_choice",
        'doc_to_text: "{{question}}"',
        'doc_to_choice: "{{choices}}"',
        "doc_to_target: answer",
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    ]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder


def chosen(model: torch.nn.Module, tokenizer: Any) -> list[int]:
    """Per question the most probable answer, each continuation scored by itself."""
    found = []
    for question, choices, _ in QUESTIONS:
        scores = []
        for choice in choices:
            context, whole = tokenizer(question)["input_ids"], tokenizer(f"{question} {choice}")["input_ids"]
            with torch.no_grad():
                logps = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logps[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        found.append(int(np.argmax(scores)))
    return found


def test_a_made_task_is_scored_as_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = byte_bpe()
    tasks = load_tasks(["made_questions"], str(write_task(tmp_path / "tasks")))
    answers = np.array([answer for _, _, answer in QUESTIONS])
    right, scores = [], []
    for seed in (4, 0):
        model = make_model("qwen3", vocab_size=len(tokenizer), seed=seed)
        right.append(np.array(chosen(model, tokenizer)) == answers)
        scores.append(run_tasks(model, tokenizer, tasks, batch_size=4))
        score = scores[-1]["made_questions"]["acc"]
        assert score.documents is not None and score.documents.tolist() == right[-1].tolist()
        assert score.value == pytest.approx(right[-1].mean()) and score.count == 5 and score.higher_is_better
    assert (right[0] != right[1]).any()  # else the difference would be of equal answers
    change = score_differences(scores[1], scores[0], draws=200, seed=0)["made_questions"]["acc"]
    assert change["value"] == pytest.approx(right[1].mean() - right[0].mean())
    assert change["low"] <= change["value"] <= change["high"]
    short = run_tasks(model, tokenizer, tasks, limit=4)["made_questions"]["acc"]
    assert short.documents is not None and short.documents.tolist() == right[1][:4].tolist()


def test_only_means_over_documents_get_intervals() -> None:
    """Results as the harness gives them: a group, a filter, metrics that are no means."""

    def sample(form: str, **metrics: Any) -> dict[str, Any]:
        return {"filter": form, **metrics}

    found = scores_of(
        {
            "results": {
                "one": {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": "one", "sample_len": 2, "ppl,none": 7.0},
                "two": {"acc,none": 1.0, "match,strict": 0.0, "match,loose": 1.0, "sample_len": 1},
                "both": {"acc,none": 2 / 3, "alias": "both"},
                "uneven": {"acc,none": 0.75, "alias": "uneven"},
            },
            "group_subtasks": {"both": ["one", "two"], "uneven": ["both"]},
            "samples": {
                "one": [sample("none", acc=1.0, ppl=(2.0, 3)), sample("none", acc=0.0, ppl=(2.0, 3))],
                "two": [sample("none", acc=1.0), sample("strict", match=0.0), sample("loose", match=1.0)],
            },
            "higher_is_better": {"one": {"acc": True, "ppl": False}},
        }
    )
    assert list(found["two"]) == ["acc", "match (strict)", "match (loose)"]
    assert found["both"]["acc"].documents is not None and found["both"]["acc"].documents.tolist() == [1.0, 0.0, 1.0]
    assert found["uneven"]["acc"].documents is None  # weighted otherwise: no mean over documents
    assert found["one"]["ppl"].documents is None and found["one"]["ppl"].higher_is_better is False
    figures = score_figures(found, draws=100, seed=0)
    assert figures["one"]["ppl"] == {"value": 7.0, "low": None, "high": None, "n": 2, "higher_is_better": False}
    assert figures["both"]["acc"]["low"] < 2 / 3 < figures["both"]["acc"]["high"]


def test_differences_are_paired_by_document() -> None:
    a = {"t": {"acc": Score(0.5, np.array([1.0, 0.0, 1.0, 0.0]), 4, True)}}
    b = {"t": {"acc": Score(0.25, np.array([1.0, 0.0, 0.0, 0.0]), 4, True)}}
    same = score_differences(a, a, draws=100, seed=0)["t"]["acc"]
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    change = score_differences(a, b, draws=100, seed=0)["t"]["acc"]
    assert change["value"] == 0.25 and change["low"] >= 0  # never worse on any document


def test_without_the_harness_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install 'paretune\[lm-eval\]'"):
        load_tasks(["mmlu"])


def test_what_cannot_be_asked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    folder = write_task(tmp_path / "tasks")
    # the harness's own tasks, thousands of files, take too long to read for a test
    own = TaskManager(include_path=str(folder), include_defaults=False)
    with monkeypatch.context() as patch:
        patch.setattr("paretune.evaluation.harness._manager", lambda names, folder: own)
        with pytest.raises(InputError, match="unknown task 'made_question'. Did you mean 'made_questions'?"):
            load_tasks(["made_question"], str(folder))
    with pytest.raises(InputError, match="lm_eval_path: no such folder"):
        load_tasks(["made_questions"], str(tmp_path / "none"))
    lost = folder / "lost.yaml"
    lost.write_text((folder / "made_questions.yaml").read_text().replace("made_questions", "lost_questions"))
    with pytest.raises(InputError, match="cannot be loaded.*network"):
        load_tasks(["lost_questions"], str(folder))
