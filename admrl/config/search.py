"""Names and settings of the task searches. Free of torch, so that the command line can describe them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

SEARCHES = (
    "adversarial",
    "momentum",
    "normalised",
    "adam",
    "multistart",
    "uniform",
    "gaussian",
    "gaussian_task",
    "grid",
    "cem",
    "cmaes",
    "gp",
    "botorch",
    "replay",
    "mixture",
    "screened",
    "default",
)
"""Every search by its name; see docs/search.md."""

GROUP = "admrl_searches"  # of entry points: searches of other packages

OBJECTIVES = ("worst", "cvar", "softmax", "mean")
SCALES = ("absolute", "ratio")
SCREEN_SCORES = ("return", "disagreement")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the task selectors other than the paper's three."""

    objective: str = field(default="worst", metadata={"choices": OBJECTIVES})
    """worst, cvar, softmax or mean: which of the screened tasks is chosen; see admrl.search.objective."""
    alpha: float = field(default=0.05, metadata={"range": (0.001, 1)})
    """Share of tasks of the CVaR, of the objective and of cem. RoML: 0.05."""
    temperature: float = field(default=0.5, metadata={"range": (1e-3, 1e3)})
    """Of the softmax objective, in standard deviations of the gaps."""
    scale: str = field(default="absolute", metadata={"choices": SCALES})
    """absolute (A* - A) or ratio (A* - A) / |A*|: what the searches are told."""
    step_length: float = field(default=0.2, metadata={"range": (1e-4, 2)})
    """First step of normalised, adam and multistart, in unit coordinates (the space is [-1, 1])."""
    nominal_share: float = field(default=0.2, metadata={"range": (0, 1)})
    """Share of uniform tasks in mixture, cem and screened."""
    replay_share: float = field(default=0.3, metadata={"range": (0, 1)})
    """Share of archived hard tasks in replay."""
    drift: float = field(default=0.1, metadata={"range": (0, 100)})
    """By how many of their standard deviations gaps move per task, because the model is being trained."""
    num_initial: int | None = field(default=3, metadata={"range": (2, 100_000)})
    """Tasks before the first model of gp, botorch, mixture and default; None: 2 k + 2."""
    num_candidates: int = field(default=64, metadata={"range": (2, 100_000)})
    """Tasks that are solved in the model, in one batch, before each task of screened."""
    num_screen_updates: int = field(default=30, metadata={"range": (1, 100_000)})
    """TRPO updates of each candidate's policy."""
    num_screen_samples: int = field(default=800, metadata={"range": (1, 10_000_000)})
    """Virtual steps per update and candidate; a multiple of horizon x ensemble members."""
    screen_by: str = field(default="return", metadata={"choices": SCREEN_SCORES})
    """What makes a candidate look hard: a low return in the model, or the ensemble's disagreement about it."""
    num_corrected: int = field(default=0, metadata={"range": (0, 1000)})
    """Best candidates whose return is corrected by one real episode each."""
    num_polish_steps: int = field(default=0, metadata={"range": (0, 1000)})
    """Steps of the chosen candidate up the gradient of its disagreement, with its policy held fixed."""
