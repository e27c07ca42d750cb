"""All settings of a search, as one frozen value that is written to `run.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from res2net.errors import UserError, unknown
from search.evaluators import Evaluator, evaluator_class
from search.groups import Budget, Scope, Scoring
from search.ledger import Rules
from search.objectives import COSTS
from search.resources import Resources
from trainers.recipes import RECIPES
from trainers.tasks import TASKS
from trainers.tasks.metrics import METRICS, metric_of

GROUPS: dict[str, type] = {"scope": Scope, "scoring": Scoring, "budget": Budget, "resources": Resources}
GROUP_OF: dict[str, str] = {f.name: group for group, cls in GROUPS.items() for f in fields(cls)}

TRIALS, EPOCHS = 12, 2  # the defaults of a search that is not planned
TIME = 180.0  # the default time of a search, in seconds
MOST_EPOCHS = 200  # the last rung of a planned search is below this epoch
SHARING = ("supernet", "inherit")  # evaluators that train shared weights

# The settings that may change when a search resumes. They say how long and where the search runs, not what it searches
# or how it scores networks.
FREE = (
    "data_dir",
    "trials",
    "time",
    "repeat",
    "confirm",
    "executor",
    "workers",
    "cpus_per_trial",
    "gpus_per_trial",
    "ray_address",
)
# The settings that may differ between the drivers of one study. Each driver may reach the study by its own URL.
FREE_OF_DRIVERS = (*FREE, "storage", "study")


@dataclass(frozen=True, slots=True, init=False)
class Settings:
    """The settings of a search: `Settings(space="scale", trials=32)`, or with groups, `Settings(scope=Scope(...))`.

    A setting that is not given takes the evaluator's default (`Evaluator.defaults`), else its group's default.
    Raise `UserError` with the setting's name for values that are unknown or contradict each other.
    """

    scope: Scope
    scoring: Scoring
    budget: Budget
    resources: Resources

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in (*GROUPS, *GROUP_OF):
                raise unknown("settings: key", name, (*GROUPS, *GROUP_OF))
        scoring = values.get("scoring")
        chosen = values.get(
            "evaluator", scoring.evaluator if scoring else Scoring.__dataclass_fields__["evaluator"].default
        )
        chosen = chosen or "scratch"  # both evaluators of a plan have the same defaults for other settings
        scope = values.get("scope")
        task = values.get("task", scope.task if scope else Scope.__dataclass_fields__["task"].default)
        defaults = dict(evaluator_class(chosen).defaults) | task_defaults(task)
        values = {k: v for k, v in defaults.items() if GROUP_OF[k] not in values} | values
        for group, cls in GROUPS.items():
            given = {k: v for k, v in values.items() if GROUP_OF.get(k) == group}
            base = values.get(group)
            object.__setattr__(self, group, cls(**given) if base is None else dataclasses.replace(base, **given))
        self._complete()
        self._check()

    def _complete(self) -> None:
        """Fill in the settings whose default depends on other settings.

        A search is planned from its time unless the user says how many networks to score, for how many epochs, or how
        to stop trials early. A search at equal MACs has no levels of cost to plan.
        """
        scoring, budget, recipe = self.scoring, self.budget, self.scoring.recipe
        scoring = dataclasses.replace(
            scoring,
            batch_size=recipe.batch_size if scoring.batch_size is None else scoring.batch_size,
            lr=recipe.lr if scoring.lr is None else scoring.lr,
        )
        asked = budget.trials is not None or scoring.epochs is not None or budget.scheduler != "none"
        plans = scoring.evaluator is None or evaluator_class(scoring.evaluator).plans
        if asked or self.scope.matching.active or not plans:
            scoring = dataclasses.replace(scoring, epochs=EPOCHS if scoring.epochs is None else scoring.epochs)
            budget = dataclasses.replace(budget, trials=TRIALS if budget.trials is None else budget.trials)
        elif budget.time is None:
            budget = dataclasses.replace(budget, time=TIME)
        if scoring.evaluator is None and budget.trials is not None:
            scoring = dataclasses.replace(scoring, evaluator="scratch")
        object.__setattr__(self, "scoring", scoring)
        object.__setattr__(self, "budget", budget)

    @property
    def planned(self) -> bool:
        """Whether the planner chooses the networks and their epochs from the time."""
        return self.budget.trials is None

    def _check(self) -> None:
        """Raise `UserError` for settings of different groups that contradict each other."""
        task, metric = self.scope.task, metric_of(self.scoring.metric)
        if metric.task.name != task:
            able = ", ".join(name for name, known in METRICS.items() if known.task.name == task)
            raise UserError(f"`metric`: {self.scoring.metric} is not for `task` {task}; accepted: {able}")
        if self.scope.timed and metric.task.head_kind is not None:
            name = "max_latency" if self.scope.max_latency is not None else "objective"
            raise UserError(f"`{name}`: latency is not for `task` {task}; accepted: {', '.join(COSTS)}")
        if metric.task.detects and self.scoring.evaluator in SHARING:
            raise UserError(
                f"`evaluator`: {self.scoring.evaluator} cannot score `task` {task}: the objects that two networks find "
                "have no common order, so shared weights cannot be distilled; accepted: grow, scratch"
            )
        self.evaluator.check(self.resources)
        if self.budget.scheduler != "none" and self.evaluator.estimates:
            raise UserError("`scheduler`: shared weights score a network in a single step; accepted: none")
        epochs = self.scoring.epochs
        if epochs is not None and self.budget.scheduler != "none" and self.budget.min_epochs >= epochs:
            raise UserError(
                f"`min_epochs`: {self.budget.min_epochs} leaves no rung below `epochs` {epochs}; "
                "accepted: less than `epochs`, or `scheduler` none"
            )

    @property
    def evaluator(self) -> Evaluator:
        """The evaluator, which decides how a network gets its score. Without the setting, a plan may grow networks."""
        return evaluator_class(self.scoring.evaluator or "grow")(self.scope, self.scoring, self.budget)

    @property
    def rules(self) -> Rules:
        """The settings that the ledger needs."""
        estimates = self.evaluator.estimates
        epochs = self.scoring.epochs
        rungs = () if estimates else self.budget.rungs(epochs or MOST_EPOCHS)
        return Rules(self.scope.costs, epochs, rungs, estimates, self.scoring.quality)

    def replace(self, **changes: Any) -> Settings:
        """Return the settings with some values changed. All other values stay, even after a change of the evaluator."""
        return Settings(**{group: getattr(self, group) for group in GROUPS} | changes)

    def values(self) -> dict[str, Any]:
        """Return all settings by name, without groups."""
        return {name: value for group in GROUPS for name, value in asdict(getattr(self, group)).items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by group, as plain values for JSON."""
        return {group: asdict(getattr(self, group)) for group in GROUPS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Return the settings that `to_dict` wrote. Also read settings of version 0.1, which have no groups.

        A missing setting gets its group's default, because the version that wrote the value lacked the setting. A
        missing recipe is the recipe of earlier versions (`fast`).
        """
        flat = {"recipe": RECIPES["fast"]} | {k: v for k, v in data.items() if k not in GROUPS}
        for group in GROUPS:
            flat |= data.get(group, {})
        for key in flat:
            if key not in GROUP_OF:
                raise unknown("settings: key", key, GROUP_OF)
        groups = {g: c(**{k: v for k, v in flat.items() if GROUP_OF[k] == g}) for g, c in GROUPS.items()}
        return cls(**groups)

    def differences(self, other: Settings, free: Sequence[str] = FREE) -> list[str]:
        """Return a text such as "`seed` 1, not 0" for each setting that differs and is not in `free`; `other` has 1."""
        ours, theirs = self.values(), other.values()
        return [
            f"`{k}` {_brief(theirs[k])}, not {_brief(ours[k])}" for k in ours if k not in free and ours[k] != theirs[k]
        ]


def task_defaults(task: str) -> dict[str, Any]:
    """Return the settings whose default depends on the task. For an unknown task, return none: `Scope` refuses it."""
    if task not in TASKS or task == Scope.__dataclass_fields__["task"].default:
        return {}
    known = TASKS[task]
    return {"metric": known.metrics[0].name, "recipe": RECIPES[known.recipe]}


def _brief(value: Any) -> Any:
    """Return a setting's value for an error. Shorten a latency table to the conditions of its measurement."""
    if isinstance(value, Mapping) and "entries" in value:
        return f"of {value['hardware']} ({value['form']}, batch {value['batch_size']}, {len(value['entries'])} pieces)"
    return value
