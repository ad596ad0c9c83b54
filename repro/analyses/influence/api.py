"""What analyses use of influence functions.

factors = fit_factors(model, blocks.train, settings, store)
found = scores(model, factors, blocks.query, blocks.train, settings)
"""

from __future__ import annotations

from repro.analyses.influence.factors import Factors as Factors
from repro.analyses.influence.factors import fit_factors as fit_factors
from repro.analyses.influence.modules import Tracked as Tracked
from repro.analyses.influence.modules import tracked_modules as tracked_modules
from repro.analyses.influence.profile import Profile as Profile
from repro.analyses.influence.scoring import Scores as Scores
from repro.analyses.influence.scoring import scores as scores
from repro.analyses.influence.scoring import self_influence as self_influence
