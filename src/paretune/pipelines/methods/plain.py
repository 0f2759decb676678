"""Methods that are one training with a combiner: every combiner by its name, weighted-loss DPO, one objective alone."""

from __future__ import annotations

import inspect
from dataclasses import replace

from paretune.combine import COMBINERS, find_combiner
from paretune.errors import InputError
from paretune.pipelines.methods.contract import Method, Request, changed_args, train_one

# Combiners that ignore the weights: one run serves every weighting.
WEIGHTLESS = {"mgda", "mgda_decoupled", "gapo", "cagrad_uniform", "imtl_g", "famo"}
# Combiners that are controls of studies: runs, but nothing to compare as a method.
CONTROLS = {"random_correction", "replay"}


def combiner_method(name: str) -> Method:
    """The method that a combiner is.

    Raises:
        InputError: there is no such combiner.
    """
    text = (inspect.getdoc(find_combiner(name)) or name).split("\n\n")[0].replace("\n", " ")
    return Method(
        title=text, source="docs/methods.md", settings={"combiner": name}, uses_weights=name not in WEIGHTLESS
    )


def single_objective(request: Request) -> str:
    """The one that `single` trains on: as asked, else that of the largest weight (the first of equals).

    Raises:
        InputError: there is no such objective.
    """
    weights = request.weights
    name = str(request.option("objective", max(weights, key=weights.__getitem__)))
    if name not in weights:
        expected = f"one of {', '.join(weights)}"
        raise InputError("no such objective", where="method_options objective", expected=expected, found=name)
    return name


def train_single(request: Request) -> None:
    """DPO on one objective: the others keep their labels, and their figures, with weight 0."""
    name = single_objective(request)
    objectives = [replace(o, weight=float(o.name == name)) for o in request.objectives]
    args = changed_args(request.args, combiner="linear")
    train_one(replace(request, objectives=objectives, args=args), asked=request)


PLAIN: dict[str, Method] = {
    **{name: combiner_method(name) for name in COMBINERS if name not in CONTROLS},
    "dpo-lw": Method(
        title="weighted-loss DPO: one DPO loss per objective, summed with the weights; the same as linear",
        source="arXiv 2602.02495, section 5 (DPO LW)",
        settings={"combiner": "linear"},
    ),
    "single": Method(
        title="DPO on one objective alone",
        source="arXiv 2305.18290, equation 7",
        settings={"combiner": "linear"},
        train=train_single,
        check=lambda request: [f"one training, on {single_objective(request)} alone"],
        options={"objective": "The objective; without it, the one of largest weight."},
    ),
}
