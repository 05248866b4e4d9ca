"""What all parts of a report work with, for one model: prompts as the model gets them, the judge, what was fitted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..judges import Judge, Verdict
from ..judges.judge import judged
from ..models import Model
from ..models.identity import identity
from ..progress import Meter
from .config import ROLES, RobustnessConfig
from .vectors import Vectors, fitted

Say = Callable[[str], None]


@dataclass
class Context:
    """One model under test."""

    config: RobustnessConfig
    model: Model
    say: Say
    judge: Judge
    undefended: Model | None = None  # reads how likely responses are, where its tokens are the same
    meter: Meter | None = None
    memory: dict[Any, Any] = field(default_factory=dict)  # what parts share within one run

    @cached_property
    def prompts(self) -> dict[str, list[str]]:
        """By role, in the model's chat format where the config says so."""
        return {role: self.asked(self.config.of(role)) for role in ROLES}

    def asked(self, prompts: Sequence[str]) -> list[str]:
        return [self.model.chat(prompt) for prompt in prompts] if self.config.chat else list(prompts)

    @cached_property
    def vectors(self) -> Vectors:
        """Fitted when first needed: a resumed report whose attacks are all done fits nothing."""
        self.say("fitting the direction")
        return fitted(self.model, self.config, self.prompts)

    def remembered(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave when it was called under this name first."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    @cached_property
    def reader(self) -> Model:
        """What tells how likely a response is: the model without defence, or `model` where its tokens are others."""
        other = self.undefended or self.model
        same = identity(other).get("tokenizer") == identity(self.model).get("tokenizer")
        return other if same else self.model

    def advance(self, arms: int) -> None:
        if self.meter is not None:
            self.meter.advance(arms)

    def verdicts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        return judged(self.judge, prompts, responses)
