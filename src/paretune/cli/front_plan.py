"""The keys of `paretune front`, and the plan that they come to: everything is checked before anything is trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.cli.engines import EngineKeys
from paretune.cli.keys import DataKeys, ModelKeys, key, lora_config, objectives_of
from paretune.cli.settings import Settings, convert, hints_of, make_config, nearest
from paretune.errors import InputError
from paretune.training.given import full_path, full_paths

if TYPE_CHECKING:
    from paretune.objectives import Objective
    from paretune.pipelines.front.plan import Entry, Plan, WorldPlan

# What a world's runs are trained with where nothing else is asked for: the demo's figures.
WORLD_CONFIG: dict[str, Any] = {
    **{"learning_rate": 1e-4, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "max_steps": 50},
    **{"beta": 0.1, "logging_steps": 5, "precompute_ref_log_probs": True},
}
_ELSEWHERE = {
    "combiner": "name the methods: methods: [linear, raco]", "seed": "give seeds: [0, 1, 2]",
    "resume_from_checkpoint": "a front goes on by itself",
    "max_hours": "stop the command (SIGTERM, ctrl-C) when its time is up: the same command goes on",
}  # fmt: skip


@dataclass
class FrontKeys(ModelKeys, DataKeys, EngineKeys):
    """Keys of `paretune front` beside the fields of `RACOConfig`."""

    methods: str | list = key("Names, or {name, label, settings, options}; 'all' takes every method.", "linear,raco")
    weightings: int | list = key("So many, evenly within the simplex; or a list of {objective: weight}.", 5)
    seeds: int | list = key("A list of seeds, or how many, from 0.", 3)
    objectives: str | list | dict | None = key("As in train, without weights [a world's own].")
    world: str | dict | None = key("A world of the sandbox: summaries, safety; or {name, labelling, prompts, …}.")
    eval_data: str | list | dict | None = key("Held-out rows, given as data is; or see eval_fraction.")
    ref_model: str | None = key("The reference, where it is not the model that training starts from.")
    prompts: str | list | dict | None = key("Held-out prompts: a file or hub id of rows with a prompt, or texts.")
    scores: dict | None = key(
        "Objective -> what scores a response: module:function as TRL's rewards, a rule, or a source as in label."
    )
    eval_prompts: int = key("How many held-out prompts.", 256)
    eval_samples: int = key("Responses to each.", 4)
    temperatures: float | list = key("Of the samples; KL needs 1, and pick and figures take the first. [1.0, 0.6]")
    max_new_tokens: int = key("Of a response.", 256)
    measure: str = key("Where nothing is sampled: accuracy or margin on held-out comparisons.", "accuracy")
    reference_point: float | list | dict = key("Of the hypervolume, in scaled scores: one number, or each.", -0.5)
    other_references: list | None = key("More reference points, to see what depends on it. [0, -1]")
    output_dir: str = key("The front's folder.", "front")
    workers: int | None = key("Cells side by side [the cores, 8 at most; or the GPUs; on Ray what there is room for].")
    retries: int = key("How often a cell that crashed is started again.", 1)
    keep_models: bool = key("false removes weights that nothing needs any more; pick has none to name then.", True)
    dry_run: bool = key("Check everything and list the cells; train nothing.", False)
    pick: str | None = key("A query, see above.")


def make_plan(settings: Settings) -> Plan:
    """What is asked for, checked.

    Raises:
        InputError: what a person can put right.
    """
    from paretune.pipelines.front.plan import Plan, Scoring, even_weightings
    from paretune.training.config import RACOConfig

    keys: FrontKeys = settings.own
    keys.check()
    keys.check_engine()
    config = dict(settings.config)
    for name, instead in _ELSEWHERE.items():
        if name in config:
            raise InputError(f"{name} is not a front's to set", fix=f"Instead, {instead}.")
    world = _world(keys)
    if world is not None:
        config = {**WORLD_CONFIG, **config}
    objectives = _objectives(keys, world)
    _check_scoring(keys, world, config, [o.name for o in objectives])
    make_config(RACOConfig, {**config, "output_dir": keys.output_dir})
    m = len(objectives)
    given = keys.weightings
    grid = even_weightings(m, given) if isinstance(given, int) else _weightings(given, [o.name for o in objectives])
    temperatures = _numbers("temperatures", keys.temperatures if keys.temperatures is not None else [1.0, 0.6], low=0.0)
    scoring = Scoring(
        sources=dict(keys.scores or {}),
        prompts=None if world else full_paths(keys.prompts),
        eval_prompts=_count("eval_prompts", keys.eval_prompts),
        eval_samples=_count("eval_samples", keys.eval_samples),
        temperatures=tuple(temperatures),
        max_new_tokens=_count("max_new_tokens", keys.max_new_tokens),
        measure=keys.measure,
    )
    return Plan(
        objectives=tuple(objectives),
        entries=tuple(_entries(keys.methods, config)),
        weightings=tuple(grid),
        seeds=tuple(_seeds(keys.seeds)),
        config=config,
        model=None if keys.model is None else full_path(keys.model),
        data=full_paths(keys.data),
        eval_data=full_paths(keys.eval_data),
        ref_model=None if keys.ref_model is None else full_path(keys.ref_model),
        adapter=lora_config(keys.lora),
        reading=keys.read_options(),
        loading={"dtype": keys.dtype, "quantize": keys.quantization == "4bit"},
        world=world,
        scoring=scoring,
        keep_models=keys.keep_models,
    )


def _world(keys: FrontKeys) -> WorldPlan | None:
    from paretune.pipelines.front.plan import WorldPlan
    from paretune.sandbox import WORLDS
    from paretune.sandbox.labels import PRESETS

    if keys.world is None:
        return None
    given = {"name": keys.world} if isinstance(keys.world, str) else dict(keys.world)
    known = [f.name for f in dataclasses.fields(WorldPlan)]
    for name in given:
        if name not in known:
            raise InputError(f"unknown option {name!r}", where="world", fix=nearest(str(name), known))
    for name, choices in (("name", WORLDS), ("labelling", PRESETS)):
        if (name in given or name == "name") and given.get(name) not in choices:
            expected = f"one of {', '.join(choices)}"
            raise InputError(f"unknown {name}", where="world", expected=expected, found=given.get(name))
    for name in ("prompts", "pairs_per_prompt", "base_steps", "oracle_of"):
        if name in given:
            _count(f"world {name}", given[name])
    for name in ("model", "data", "eval_data", "prompts", "scores", "ref_model"):
        if getattr(keys, name) is not None:
            raise InputError(f"a world brings its own {name}", where="world", fix=f"Leave out {name}, or world.")
    return WorldPlan(**given)


def _objectives(keys: FrontKeys, world: WorldPlan | None) -> list[Objective]:
    from paretune.losses import check_losses
    from paretune.sandbox import WORLDS

    given = objectives_of(keys.objectives)
    if world is not None:
        names = list(WORLDS[world.name].objectives)
        given = given if given is not None else objectives_of(names)
        if given is None or [o.name for o in given] != names:
            raise InputError("objectives that are not the world's", expected=", ".join(names), found=keys.objectives)
    if given is None:
        raise InputError("objectives is missing", fix="Give their names: objectives: [helpful, harmless].")
    if len(given) < 2:
        raise InputError("one objective has no front", expected="at least two objectives", found=given[0].name)
    check_losses(given)
    return given


def _check_scoring(keys: FrontKeys, world: WorldPlan | None, config: Mapping[str, Any], names: list[str]) -> None:
    if world is not None:
        return
    from paretune.pipelines.front.scoring import read_prompts, score_source
    from paretune.policy.loading import check_model_path

    for name in ("model", "data"):
        if getattr(keys, name) is None:
            raise InputError(f"{name} is missing", fix=f"Give {name}, or a world of the sandbox: --world safety.")
    check_model_path(str(keys.model))
    if (keys.prompts is None) != (keys.scores is None):
        fix = "Give both, or neither to score held-out comparisons."
        raise InputError("prompts and scores go together", fix=fix)
    if keys.scores is not None:
        if set(keys.scores) != set(names):
            expected = f"one source for each of {', '.join(names)}"
            raise InputError("scores do not fit", where="scores", expected=expected, found=", ".join(keys.scores))
        for name, source in keys.scores.items():
            score_source(name, source)
        read_prompts(full_paths(keys.prompts), 1)
        return
    if keys.measure not in ("accuracy", "margin"):
        raise InputError("bad measure", expected="accuracy or margin", found=keys.measure)
    if keys.eval_data is None and config.get("eval_fraction") is None:
        fix = "Give prompts and scores, or eval_data, or eval_fraction."
        raise InputError("nothing to score the methods on", fix=fix)


def _entries(methods: str | list, config: Mapping[str, Any]) -> list[Entry]:
    from paretune.pipelines.front.plan import Entry
    from paretune.pipelines.methods import METHODS
    from paretune.training.config import RACOConfig

    if methods in ("all", ["all"]):
        methods = [name for name in METHODS if name != "single"]
    given = [x.strip() for x in methods.split(",")] if isinstance(methods, str) else list(methods)
    entries: list[Entry] = []
    hints = hints_of(RACOConfig)
    for one in given:
        asked = {"name": one} if isinstance(one, str) else one
        if not isinstance(asked, dict) or not isinstance(asked.get("name"), str):
            expected = "a name, or {name, label, settings, options}"
            raise InputError("bad method", where="methods", expected=expected, found=one)
        name = asked["name"]
        for option in asked:
            if option not in ("name", "label", "settings", "options"):
                known = ("name", "label", "settings", "options")
                raise InputError(f"unknown option {option!r}", where=f"methods {name}", fix=nearest(str(option), known))
        if name not in METHODS:
            raise InputError(f"unknown method {name!r}", where="methods", fix=nearest(name, METHODS))
        own = dict(asked.get("settings") or {})
        for option in own:
            if option not in hints or option in _ELSEWHERE:
                fix = nearest(str(option), hints) if option not in hints else f"Instead, {_ELSEWHERE[option]}."
                raise InputError(f"unknown setting {option!r}", where=f"methods {name}", fix=fix)
            own[option] = convert(option, own[option], hints[option], f"methods {name}")
        make_config(RACOConfig, {**config, **own, "output_dir": "front"})
        entries.append(Entry(name, str(asked.get("label", name)), own, dict(asked.get("options") or {})))
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            fix = "Give one of them another label: {name: raco, label: raco-c0.2, settings: {c: 0.2}}."
            raise InputError(f"two methods are called {label!r}", where="methods", fix=fix)
        if not re.fullmatch(r"\w[\w.+-]{0,99}", label) or label.split("-")[0] in ("single", "base"):
            expected = "letters, digits and . + - _, not beginning with single or base"
            raise InputError("bad label", where="methods", expected=expected, found=label)
    if not entries:
        raise InputError("no methods", where="methods", expected="at least one")
    return entries


def _weightings(given: list, names: list[str]) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    for one in given:
        where = f"weightings {one}"
        if isinstance(one, dict) and set(one) == set(names):
            one = [one[name] for name in names]
        if not isinstance(one, list) or len(one) != len(names):
            expected = f"a weight for each of {', '.join(names)}"
            raise InputError("bad weighting", where=where, expected=expected)
        values = _numbers("weight", one, low=0.0)
        if not sum(values) > 0 or max(values) == sum(values):
            fix = "Leave it out: every objective is trained alone anyway, as the ends of all fronts."
            raise InputError("a weighting needs two weights above 0", where=where, fix=fix)
        found.append(tuple(value / sum(values) for value in values))
    if not found:
        raise InputError("no weightings", where="weightings", expected="at least one")
    return found


def reference_points(keys: FrontKeys, names: list[str]) -> list[list[float]]:
    """The declared reference point and the others, (m,) each, in scaled scores."""
    others = keys.other_references if keys.other_references is not None else [0.0, -1.0]
    points = []
    for where, one in [("reference_point", keys.reference_point), *(("other_references", x) for x in others)]:
        if isinstance(one, dict) and set(one) == set(names):
            one = [one[name] for name in names]
        values = [one] * len(names) if isinstance(one, int | float) else one
        if not isinstance(values, list) or len(values) != len(names):
            expected = f"a number, or one for each of {', '.join(names)}"
            raise InputError("bad reference point", where=where, expected=expected, found=one)
        points.append(_numbers(where, values, low=float("-inf")))
    return points


def _seeds(given: int | list) -> list[int]:
    seeds = list(range(given)) if isinstance(given, int) else given
    fits = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not fits or len(set(seeds)) < len(seeds):
        raise InputError("bad seeds", expected="different whole numbers >= 0, or how many", found=given)
    return seeds


def _numbers(name: str, given: Any, *, low: float) -> list[float]:
    values = given if isinstance(given, list) else [given]
    fits = all(isinstance(x, int | float) and not isinstance(x, bool) and low <= x < float("inf") for x in values)
    if not values or not fits:
        raise InputError(f"bad {name}", expected=f"numbers{'' if low < 0 else f' >= {low:g}'}", found=given)
    return [float(x) for x in values]


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"bad {name}", expected="a whole number of at least 1", found=value)
    return value
