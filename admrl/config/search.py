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
    "population",
    "default",
)
"""Every search by its name; see docs/search.md."""

GROUP = "admrl_searches"  # of entry points: searches of other packages

OBJECTIVES = ("worst", "cvar", "softmax", "mean")
SCALES = ("absolute", "ratio")
SCREEN_SCORES = ("return", "disagreement")
PROBE_SIGNALS = ("model-minus-real", "hindsight", "random")


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
    """Share of uniform tasks in mixture, cem, screened and population."""
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
    population_size: int = field(default=12, metadata={"range": (3, 100_000)})
    """Candidates of population in each round: a sixth just trained on, a sixth archived ones, else fresh points."""
    population_signal: str = field(default="model-minus-real", metadata={"choices": PROBE_SIGNALS})
    """What a candidate's gap is estimated by: return in the model minus real return, best stored return (hindsight)
    minus real return, or nothing (random, for comparison)."""
    num_probe_episodes: int = field(default=2, metadata={"range": (0, 1000)})
    """Real episodes of each candidate's policy; they join D and count as real samples, in place of as many of the
    further episodes of a round. 0: only with random, which then solves no candidate either."""
    num_probe_iterations: int = field(default=5, metadata={"range": (1, 100_000)})
    """Virtual-training iterations of the candidates, the model fitted meanwhile."""
    num_probe_samples: int = field(default=1600, metadata={"range": (1, 10_000_000)})
    """Virtual steps per update and candidate; a multiple of horizon x ensemble members."""
    population_distance: float = field(default=0.3, metadata={"range": (0, 2)})
    """Least distance between two tasks of a round, in unit coordinates (the space is 2 wide)."""
    archive_decay: float = field(default=0.7, metadata={"range": (0, 1)})
    """What is left of an archived gap after each round, because the model has been trained since."""
    min_gain: float | None = field(default=None, metadata={"range": (1e-9, 1e12)})
    """population: the training ends, before its number of tasks, once no candidate's gap is believed to reach this
    above what the noise of the estimates explains, in return per episode; None: it never ends early."""
    population_polish: bool = False
    """Move tasks that were just trained on up their task gradient, where its two halves agree, before they are
    candidates again. The gradient then costs what it costs adversarial."""
