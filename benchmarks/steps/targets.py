"""What is run (groups of contestants), and what must hold (rows): a ratio, its target, and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.steps import paper
from benchmarks.steps.models import SHAPES, Case
from benchmarks.steps.timing import ratio

OURS = ("ours-2", "ours-8", "ours-16")
# Comparisons of a step: on a GPU as many as keep it busy and fit 80 GB, on a CPU few, which is the harder case for us.
BATCHES = {
    "tiny": {"tldr": 2, "chat": 2, "long": 2},
    "quick": {"tldr": 4, "chat": 4, "long": 2},
    "full": {"tldr": 4, "chat": 4, "long": 4},
    "0.6b": {"tldr": 16, "chat": 16, "long": 4},
    "4b": {"tldr": 4, "chat": 4, "long": 1},
    "8b": {"tldr": 4, "chat": 4, "long": 1},
}


@dataclass(frozen=True)
class Group:
    """Contestants that take turns on one case. Two groups of a case differ by `part`."""

    case: Case
    names: tuple[str, ...]
    part: str = ""

    @property
    def key(self) -> str:
        return self.case.key + self.part


@dataclass(frozen=True)
class Row:
    """One comparison: of whom, against whom, in what ("time", "memory"), at most what (None is only reported)."""

    how: str
    shape: str
    comparisons: int
    who: str
    against: str
    what: str
    target: float | None

    @property
    def case_key(self) -> str:
        return f"{self.how}/{self.shape}/{self.comparisons}"

    @property
    def text(self) -> str:
        how = "LoRA" if self.how == "lora" else "full"
        return f"{how}, {self.shape}, {self.comparisons} comparisons, {self.who}"


def groups(size: str, family: str, device: str, n: dict[str, int]) -> list[Group]:
    """What a size is measured on, the most telling first: a run may end before all are done.

    Args:
        n: comparisons of a step for each shape, `BATCHES` unless told otherwise.
    """

    def case(how: str, shape: str, comparisons: int | None = None) -> Case:
        return Case(family, size, shape, comparisons or n[shape], how == "full", device)

    if size in ("0.6b", "4b", "8b"):
        lora: tuple[str, ...] = ("trl", "scalar-shared", "ours-8") + (("ours-2", "ours-16") if size != "8b" else ())
        more: tuple[str, ...] = ("scalar-flat", "ours-1", "naive-8") if size == "0.6b" else ()
        found = [Group(case("lora", shape), lora + (more if shape != "long" else ())) for shape in SHAPES]
        if size == "0.6b":  # in parts that fit a GPU's memory: weights, Adam and m gradients are float32
            found += [
                Group(case("full", "tldr", 4), ("trl", "scalar-shared", "ours-2", "twopass-2")),
                Group(case("full", "tldr", 4), ("trl", "scalar-shared", "ours-8"), "+8"),
                Group(case("full", "tldr", 4), ("scalar-shared", "ours-16"), "+16"),
                Group(case("full", "tldr", 16), ("scalar-shared", "ours-2", "ours-8")),
            ]
        return found
    more = ("ours-4", "naive-2", "naive-4", "naive-8", "naive-16") if size == "full" else ("naive-2", "naive-8")
    lora = ("trl", "scalar-shared", *OURS)
    return [
        Group(case("lora", "tldr"), ("trl", "scalar-flat", "scalar-shared", "ours-1", *OURS, *more)),
        Group(case("full", "tldr"), ("trl", "scalar-shared", *OURS, "twopass-2")),
        Group(case("lora", "chat"), (*lora, "naive-8")),
        Group(case("lora", "long"), lora),
        Group(case("full", "tldr", 4 * n["tldr"]), ("scalar-shared", *OURS)),
    ]


def memory_jobs(size: str, family: str, n: dict[str, int]) -> list[tuple[Case, str]]:
    """Cases and contestants of the memory rows on a CPU."""
    found = []
    for row in rows(size, "cpu", n):
        if row.what == "memory":
            case = Case(family, size, row.shape, row.comparisons, row.how == "full")
            found += [(case, row.against), (case, row.who)]
    return list(dict.fromkeys(found))


def gpu_target(shape: str) -> float:
    """1.10 times the share of tokens that sharing prompts leaves."""
    prompt, response = SHAPES[shape]
    return round(1.10 * (prompt + 2 * response) / (2 * (prompt + response)), 3)


def rows(size: str, device: str, n: dict[str, int]) -> list[Row]:
    """Every target of a size, for these comparisons of a step."""
    full_n = 4 if device == "cuda" else n["tldr"]
    found = []
    if device == "cpu":
        found += [Row("lora", "tldr", n["tldr"], f"ours-{m}", "trl", "time", 0.35) for m in (1, 2, 8, 16)]
        found += [Row("lora", s, n[s], "ours-8", "trl", "time", t) for s, t in (("chat", 0.60), ("long", 0.45))]
    else:
        found += [Row("lora", s, n[s], "ours-8", "trl", "time", gpu_target(s)) for s in SHAPES]
        found += [Row("lora", "tldr", n["tldr"], f"ours-{m}", "trl", "time", None) for m in (1, 2, 16)]
    found += [Row("lora", s, n[s], name, "scalar-shared", "time", 1.08) for s in SHAPES for name in OURS]
    found += [Row("lora", s, n[s], "ours-8", "trl", "memory", 1.00) for s in SHAPES]
    if size in ("4b", "8b"):  # what a GPU has time for
        run = {name for group in groups(size, "qwen3", device, n) for name in group.names}
        return [row for row in found if row.who in run]
    found += [Row("lora", s, n[s], "ours-8", "naive-8", "time", t) for s, t in (("tldr", 0.13), ("chat", 0.22))]
    found.append(Row("full", "tldr", full_n, "ours-8", "trl", "time", 0.50))
    for name, target in zip(OURS, (1.08, 1.12, 1.20), strict=True):
        found.append(Row("full", "tldr", full_n, name, "scalar-shared", "time", target))
    found.append(Row("full", "tldr", full_n, "twopass-2", "scalar-shared", "time", None))
    found += [Row("full", "tldr", 4 * full_n, name, "scalar-shared", "time", None) for name in OURS]
    found.append(Row("full", "tldr", full_n, "ours-2", "trl", "memory", 1.25))
    found.append(Row("full", "tldr", full_n, "twopass-2", "trl", "memory", 1.00))
    return found


def judged(row: Row, record: dict[str, Any]) -> dict[str, Any]:
    """The row with what was measured, what paper says, and the verdict."""
    result: dict[str, Any] = vars(row) | {"ratio": None, "verdict": "not measured"}
    case = Case(record["family"], record["size"], row.shape, row.comparisons, row.how == "full", record["device"])
    both = [row.who, row.against]
    if row.what == "memory":
        result["paper"] = paper.peak_on_paper(row.who, case) / paper.peak_on_paper(row.against, case)
    elif record.get("rates"):
        rates = paper.Rates(**record["rates"])
        result["paper"] = paper.seconds_on_paper(row.who, case, rates) / paper.seconds_on_paper(
            row.against, case, rates
        )
    for key, group in record["groups"].items():
        found = group["contestants"]
        if key.partition("+")[0] != row.case_key or not set(both) <= set(found):
            continue
        missing = [f"{name} {found[name]['missing']}" for name in both if "missing" in found[name]]
        if missing:
            result["verdict"] = missing[0]
            continue
        measured = measured_ratio(row, found)
        if measured is not None:
            result |= measured
            met = row.target is None or measured["ratio"] <= row.target
            result["verdict"] = "reported" if row.target is None else "met" if met else "MISSED"
            break
    return result


def measured_ratio(row: Row, found: dict[str, Any]) -> dict[str, Any] | None:
    """The row's ratio from a group's contestants, with quartiles and pairs for time."""
    who, against = found[row.who], found[row.against]
    if row.what == "memory":
        if not who.get("memory") or not against.get("memory"):
            return None
        return {"ratio": who["memory"] / against["memory"], "bytes": [who["memory"], against["memory"]]}
    measured = ratio(who, against)
    if measured is not None:
        cpu = ratio(who, against, column=2)
        measured["cpu_ratio"] = cpu["ratio"] if cpu else None
    return measured


def table(judgements: Sequence[dict[str, Any]]) -> str:
    """What was asked, against whom, target, measured with quartiles, CPU time's ratio, pairs, paper, verdict."""
    head = ("what", "against", "in", "target", "measured", "quartiles", "CPU time", "pairs", "floor", "verdict")
    lines = [head]
    for j in judgements:
        cells = (
            Row(**{name: j[name] for name in Row.__dataclass_fields__}).text,
            j["against"],
            j["what"],
            "" if j["target"] is None else f"<= {j['target']:.2f}",
            _number(j["ratio"]),
            _detail(j),
            _number(j.get("cpu_ratio")),
            str(j.get("pairs", "")),
            _number(j.get("paper")),
            j["verdict"],
        )
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _detail(judgement: dict[str, Any]) -> str:
    """Quartiles of a time, bytes of a memory."""
    if judgement.get("quartiles"):
        return " to ".join(map(_number, judgement["quartiles"]))
    return " / ".join(f"{b / 2**20:,.0f}" for b in judgement["bytes"]) + " MiB" if judgement.get("bytes") else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
