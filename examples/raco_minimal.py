"""RACO in one file: a small language model learns from comparisons with one preference per objective.

"Line n" is a line of Algorithm 1 of "Reward-free Alignment for Conflicting Objectives" (arXiv 2602.02495), whose
Appendix B.1 solves line 3 for two objectives; the loss is DPO's (arXiv 2305.18290, equation 7). All is plain PyTorch:
one backward pass per objective, the whole data set as one batch. The library does the same with one pass for all
objectives, in micro-batches and on many ranks; tests/test_minimal.py holds the two equal.

    python examples/raco_minimal.py          # seconds on a CPU; needs torch and transformers

The data are made up: the figures show that the method runs, not that it helps anyone.
Suffixes: N comparisons, M objectives, T tokens, V vocabulary, P parameters.
"""

import math
import random
from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

POLITE, URGENT = ["please", "thanks", "sorry"], ["now", "quickly", "must"]
WORDS = ["<pad>", "<eos>", *POLITE, *URGENT, "bring", "open", "the", "tea", "door"]
# name: (weight, score); of two responses the objective prefers the one that scores higher. Any number of objectives.
OBJECTIVES: dict[str, tuple[float, Callable[[list[str]], int]]] = {
    "polite": (0.5, lambda words: sum(word in POLITE for word in words)),
    "urgent": (0.3, lambda words: sum(word in URGENT for word in words)),
    "brief": (0.2, lambda words: -len(words)),
}
C, BETA, TAU = 0.4, 0.2, 1e-5  # the paper's c and beta; TAU: relative noise of float32 gradients
Row = tuple[list[int], list[int], list[int]]  # tokens of prompt, response a, response b


def make_data(rows: int, seed: int = 0) -> tuple[list[Row], Tensor]:
    """Comparisons, and preferences (N, M): 1 where the objective prefers a, 0 where b, NaN where it has no opinion."""
    draw, data, labels = random.Random(seed), [], []
    for _ in range(rows):
        prompt, a, b = ([draw.randrange(2, len(WORDS)) for _ in range(draw.randint(3, 7))] for _ in range(3))
        scores = [[score([WORDS[i] for i in side]) for side in (a, b)] for _, score in OBJECTIVES.values()]
        labels.append([math.nan if x == y else float(x > y) for x, y in scores])
        data.append((prompt, [*a, 1], [*b, 1]))
    return data, torch.tensor(labels, dtype=torch.float64)


def response_logprobs(model: nn.Module, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    """log pi(response | prompt) of each pair, (N,): the sum over the response's tokens, in nats."""
    rest = [max(len(p) + len(r) for p, r in pairs) - len(p) - len(r) for p, r in pairs]
    tokens_NT = torch.tensor([[*p, *r, *[0] * k] for (p, r), k in zip(pairs, rest, strict=True)])
    scored_NT = torch.tensor([[0] * len(p) + [1] * len(r) + [0] * k for (p, r), k in zip(pairs, rest, strict=True)])
    logps_NTV = model(input_ids=tokens_NT).logits[:, :-1].log_softmax(-1)  # position t predicts token t + 1
    return (logps_NTV.gather(-1, tokens_NT[:, 1:, None]).squeeze(-1) * scored_NT[:, 1:]).sum(-1)


def margins(model: nn.Module, data: list[Row]) -> Tensor:
    """log pi(a) - log pi(b), (N,); minus the reference's it is the implicit margin Delta."""
    logps = [response_logprobs(model, [(row[0], row[side]) for row in data]) for side in (1, 2)]
    return logps[0] - logps[1]


def losses(delta_N: Tensor, preferences_NM: Tensor) -> Tensor:
    """L_i, (M,): the mean of -log sigma(+-beta Delta) over the comparisons that objective i has an opinion on."""
    signs_NM = (2 * preferences_NM - 1).nan_to_num(0.0).to(delta_N.dtype)
    losses_NM = -F.logsigmoid(BETA * signs_NM * delta_N[:, None])
    return (losses_NM * signs_NM.abs()).sum(0) / signs_NM.abs().sum(0)


def on_face(Q: Tensor, R: Tensor, totals: Tensor, face: tuple[int, ...]) -> Tensor:
    """Columns x (M, K) that minimise x'Qx/2 - R'x among those that are 0 off the face and sum to `totals` (K,)."""
    at, k = torch.tensor(face), len(face)
    kkt = torch.ones(k + 1, k + 1, dtype=torch.float64)
    kkt[:k, :k], kkt[k, k] = Q[at][:, at], 0.0
    x = torch.linalg.lstsq(kkt, torch.cat([R[at], totals[None]]), driver="gelsd").solution
    return torch.zeros_like(R).index_copy(0, at, x[:k])


def faces(m: int) -> list[tuple[int, ...]]:
    return [face for size in range(m) for face in combinations(range(m), size + 1)]


def solve_dual(H: Tensor, w: Tensor, s: float) -> tuple[Tensor, float]:
    """Line 3: p = argmin over the simplex of h(p) = <G_p, g_0> + s ||G_p||; and a bound on h(p) - min h.

    On its face the minimiser is the point nearest to -mu g_0, p = alpha + mu beta, where ||G_p|| = s mu, that is
    mu^2 = alpha'H alpha / (s^2 - beta'H beta). Each face gives one candidate (two objectives: Appendix B.1).
    """
    b, candidates = H @ w, []
    for face in faces(len(w)):
        alpha, beta = on_face(H, torch.stack([0 * b, -b], 1), torch.tensor([1.0, 0.0]).double(), face).T
        room = s * s - float(beta @ H @ beta)
        p = alpha + math.sqrt(max(float(alpha @ H @ alpha), 0.0) / room) * beta if room > 0 else -alpha
        if p.min() >= -1e-12:  # room <= 0: h falls towards the face's border, which has its own candidate
            p = p.clamp_min(0) / p.clamp_min(0).sum()
            candidates.append((float(b @ p + s * (p @ H @ p).clamp_min(0).sqrt()), p))
    value, p = min(candidates, key=lambda candidate: candidate[0])
    length = (p @ H @ p).clamp_min(1e-300).sqrt()
    return p, value - float((b + s * (H @ p) / length).min())  # weak duality: nothing on the simplex is lower by more


def nearest(H: Tensor, p: Tensor, w: Tensor) -> Tensor:
    """Of all mixtures as good as p within TAU the one nearest the weights: equal gradients leave p open, line 4 asks.

    q = argmin over the simplex of TAU^2 ||q - w||^2 + (q - p)'H(q - p), with tr H = 1; again face by face.
    """
    Q, R, one = TAU**2 * torch.eye(len(w)).double() + H, (TAU**2 * w + H @ p)[:, None], torch.ones(1).double()
    candidates = [q for face in faces(len(w)) if (q := on_face(Q, R, one, face)[:, 0]).min() >= 0]
    q = min(candidates, key=lambda q: float(TAU**2 * (q - w) @ (q - w) + (q - p) @ H @ (q - p)))
    return p if (q - p).abs().max() <= TAU else q


def raco(H: Tensor, w: Tensor, c: float = C, clip: bool = True) -> tuple[Tensor, Tensor, float]:
    """Coefficients a of G_0 = sum_i a_i g_i, the mixture p and its certificate; from the Gram (M, M), weights (M,)."""
    H = H / H.trace().clamp_min(1e-300)  # only ratios matter
    g0 = float((w @ H @ w).clamp_min(0).sqrt())  # ||g_0||, line 2
    if c == 0 or g0 == 0:
        return w, w, 0.0
    p, gap = solve_dual(H, w, c * g0)
    p = nearest(H, p, w)
    p_clipped = torch.minimum(p, w) if clip else p  # line 4, not renormalised
    length = float((p_clipped @ H @ p_clipped).clamp_min(0).sqrt())  # ||G_p~||, line 5
    if length <= TAU * float((p_clipped**2 * H.diagonal().clamp_min(g0 * g0)).sum().sqrt()):
        return w, p, gap  # it is 0 within the noise: no correction
    return w + c * g0 / length * p_clipped, p, gap  # line 6


def train(model: nn.Module, data: list[Row], preferences_NM: Tensor, optimizer: torch.optim.Optimizer, steps: int):
    """Steps of Algorithm 1; the reference is the model as it comes in. Yields each step's losses, margins, p, gap."""
    w = torch.tensor([weight for weight, _ in OBJECTIVES.values()]).double()
    parameters = list(model.parameters())
    reference_N = margins(model, data).detach()
    for _ in range(steps):
        delta_N = margins(model, data) - reference_N
        losses_M = losses(delta_N, preferences_NM)
        g = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses_M]  # line 1
        g_MP = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in g]).double()
        a, p, gap = raco(g_MP @ g_MP.T, w)  # lines 2 to 6
        for parameter, *parts in zip(parameters, *g, strict=True):
            parameter.grad = sum(a_i * part for a_i, part in zip(a.tolist(), parts, strict=True))
        optimizer.step()  # line 7
        towards_M = ((2 * preferences_NM - 1) * delta_N.detach()[:, None]).nanmean(0)  # positive: as it prefers
        yield losses_M.tolist(), towards_M.tolist(), p.tolist(), gap


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes))


if __name__ == "__main__":
    policy = make_model()
    adamw = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
    for step, (*figures, gap) in enumerate(train(policy, *make_data(64), adamw, steps=41)):
        columns = zip(OBJECTIVES, *figures, strict=True)
        told = [f"{name}: loss {loss:.3f} margin {margin:+.2f} p {p:.2f}" for name, loss, margin, p in columns]
        if step % 5 == 0:
            print(f"step {step:2d}   {'   '.join(told)}   gap {gap:.0e}")
