"""Studies: a whole job from prompts to a report.

import monosem as ms
ms.studies.run("sentiment")              # a shipped concept, or the path of your own YAML
"""

from .config import DEMO, StudyConfig, shipped_concepts
from .study import StudyResult, run

__all__ = ["DEMO", "StudyConfig", "StudyResult", "run", "shipped_concepts"]
