"""Studies: a whole job from prompts to a report.

import monosem as ms
ms.studies.run("sentiment")              # a shipped concept, or the path of your own YAML
"""

from .config import DEMO, StudyConfig, load, shipped
from .study import StudyResult, open_study, run

__all__ = ["DEMO", "StudyConfig", "StudyResult", "load", "open_study", "run", "shipped"]
