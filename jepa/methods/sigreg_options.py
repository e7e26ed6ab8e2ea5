"""The section `loss.sigreg`, which several methods share: the options of SIGReg."""

from __future__ import annotations

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.losses.epps_pulley import IMPLEMENTATIONS
from jepa.losses.normality import STATISTICS
from jepa.losses.sigreg import DEFAULT_T_MAX, VIEWS

_CHOICES = {
    "form": tuple(DEFAULT_T_MAX),
    "views": VIEWS,
    "statistic": ("epps_pulley", *STATISTICS),
    "implementation": IMPLEMENTATIONS,
}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "slices": (lambda x: x >= 1, "give 1 or more"),
    "knots": (lambda x: x >= 2, "give 2 or more"),
    "t_max": (lambda x: x > 0, "give a number above 0, or leave it unset"),
    "chunk": (lambda x: x >= 1, "give 1 or more, or leave it unset"),
}


def check_sigreg(section: ConfigDict) -> None:
    """Checks names, ranges and what goes together; keys that a method does not have are not asked.

    Raises:
      UserError: the first mistake.
    """
    for key, known in _CHOICES.items():
        if key in section and section[key] not in known:
            raise UserError(
                f"config.loss.sigreg.{key} is {section[key]!r}; use one of {', '.join(known)}"
            )
    for key, (holds, mend) in _RANGES.items():
        value = section[key]
        # Not a number is in no range; None is what an option is that nobody has set.
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise UserError(f"config.loss.sigreg.{key} is {value}; {mend}")
    if section.statistic == "epps_pulley":
        return
    if section.chunk is not None:
        raise UserError(
            f"config.loss.sigreg.chunk is {section.chunk}, which statistic={section.statistic!r} "
            "does not have; leave it unset"
        )
    if section.implementation != "xla":
        raise UserError(
            f"config.loss.sigreg.implementation is {section.implementation!r}, which "
            f"statistic={section.statistic!r} does not have; use 'xla'"
        )
