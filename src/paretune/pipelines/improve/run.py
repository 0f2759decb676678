"""All rounds: runs what is not there, stops where the signs say so, keeps the best by the held-out sources."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.pipelines.improve.plan import ImprovePlan, begin, locked
from paretune.pipelines.improve.rounds import check_round, run_round
from paretune.training.record import commit, versions, write_json

Tell = Callable[[Mapping[str, Any]], None]


def run_improve(plan: ImprovePlan, tell: Tell) -> dict[str, Any]:
    """Runs the rounds that are not finished; the same plan goes on where it was killed.

    Args:
        tell: is given each round's content when it is finished, or found finished.

    Returns:
        The content of improve.json: `status`, "finished" or "stopped" with a `reason`, `best` {round, model, gain},
        and all rounds.

    Raises:
        InputError: the folder belongs to other settings, and whatever the parts raise.
    """
    with locked(plan.folder):
        begin(plan)
        rounds: list[dict[str, Any]] = []
        reason = None
        for number in range(plan.rounds + 1):
            content = run_round(plan, number, rounds)
            check_round(content, plan.round_folder(number))
            tell(content)
            reason = content.get("stopped")
            if reason is not None:
                break
            rounds.append(content)
            reason = stop_reason([one["signs"] for one in rounds], plan.patience)
            _write(plan, rounds, "running", None)
            if reason is not None:
                break
        return _write(plan, rounds, "finished" if reason is None else "stopped", reason)


def stop_reason(signs: Sequence[Mapping[str, Any]], patience: int) -> str | None:
    """Why to stop after these rounds, or None: the rule of `is_hacked` held in the last `patience` rounds.

    Args:
        signs: from the start on.
    """
    last = [one for one in signs[1:]][-patience:]
    if len(last) < patience or not all(one["hacked"] for one in last):
        return None
    trained, held_out = (last[-1][role]["change"] for role in ("trained", "held_out"))
    rounds = "in the last round" if patience == 1 else f"in each of the last {patience} rounds"
    return (
        f"reward hacking: {rounds} the trained sources rose and the held-out sources fell by more than their standard "
        f"errors (last: trained {_change(trained)}, held out {_change(held_out)}, in units of the spread at the start)"
    )


def _change(change: Mapping[str, Any]) -> str:
    return f"{change['mean']:+.3f} ± {change['standard_error']:.3f}"


def best_round(rounds: Sequence[Mapping[str, Any]]) -> int:
    """The round of the highest held-out gain since the start; the earliest of equals. 0: nothing was better."""
    gains = [one["signs"]["held_out"]["gain"] for one in rounds]
    return max(range(len(gains)), key=lambda i: (-float("inf") if gains[i] is None else gains[i], -i))


def _write(plan: ImprovePlan, rounds: Sequence[Mapping[str, Any]], status: str, reason: str | None) -> dict[str, Any]:
    best = best_round(rounds)
    model = str(rounds[best]["model"])
    content = {
        "status": status,
        "reason": reason,
        "best": {"round": best, "model": model, "gain": rounds[best]["signs"]["held_out"]["gain"]},
        "rounds": list(rounds),
        "settings": dict(plan.settings),
        "prompts": {"trained": len(plan.prompts), "held_out": len(plan.watched)},
        "notices": list(plan.notices),
        "versions": versions(),
        "commit": commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(plan.folder / "improve.json", content)
    if status != "running":
        _point(plan.folder, model)
    return content


def _point(folder: Path, model: str) -> None:
    """folder/best leads to the best model's directory; a hub id has none, and only improve.json names it."""
    link, new = folder / "best", folder / f".best.{os.getpid()}"
    if not Path(model).is_dir():
        link.unlink(missing_ok=True)
        return
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(Path(model).absolute(), folder.absolute()), target_is_directory=True)
    os.replace(new, link)
