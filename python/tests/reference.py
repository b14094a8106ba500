"""Algorithm 1 of arXiv 2603.07122 in float64, line by line, and the bounds for float32."""

from dataclasses import dataclass
from typing import Any

import numpy as np

HALF_ULP = 2.0**-24


@dataclass(frozen=True)
class Rule:
    """The hyperparameters. `alpha` gives the blend's weight at a step."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decoupled_decay: float = 0.0
    l2: float = 0.0
    rate: float = 1.0
    with_eps: bool = False
    maximize: bool = False

    def alpha(self, step: int) -> float:
        alpha = 1.0 - step * self.rate
        return alpha if alpha >= 1e-12 else 0.0


@dataclass
class Stepped:
    """A float64 step from a float32 state, and how far a float32 step may be from it."""

    p: Any
    m: Any
    v: Any
    p_bound: Any
    m_bound: Any
    v_bound: Any


def step(rule: Rule, t: int, p: Any, g: Any, m: Any, v: Any) -> Stepped:
    p, g, m, v = (np.asarray(x, dtype=np.float64) for x in (p, g, m, v))
    beta1, beta2 = rule.betas
    if rule.maximize:
        g = -g
    g_summands = np.abs(g) + rule.l2 * np.abs(p)
    g = g + rule.l2 * p
    new_m = beta1 * m + (1 - beta1) * g
    new_v = beta2 * v + (1 - beta2) * g * g
    m_hat = new_m / (1 - beta1**t)
    v_hat = new_v / (1 - beta2**t)
    alpha = rule.alpha(t)
    adam = 1 / (np.sqrt(v_hat) + rule.eps)
    inverse = np.sqrt(v_hat) + (rule.eps if rule.with_eps else 0.0)
    update = rule.lr * m_hat * ((1 - alpha) * adam + alpha * inverse)
    decay = rule.lr * rule.decoupled_decay * p
    # The roundings of each quantity are relative to the sizes of its summands.
    m_summands = beta1 * np.abs(m) + (1 - beta1) * (g_summands + np.abs(m))
    u_summands = rule.lr * m_summands / (1 - beta1**t) * (
        (1 - alpha) * adam + alpha * inverse
    ) + np.abs(decay)
    new_p = p - decay - update
    tiny = 2.0**-126
    return Stepped(
        p=new_p,
        m=new_m,
        v=new_v,
        p_bound=1.5 * HALF_ULP * np.abs(new_p) + 40 * HALF_ULP * u_summands + tiny,
        m_bound=4 * HALF_ULP * m_summands + tiny,
        v_bound=6 * HALF_ULP * (beta2 * v + (1 - beta2) * g_summands**2) + tiny,
    )
