"""An experience model that does not answer where it is not sure: further draws of the same step must agree with its answer.

    model = Cautious(model, draws_under, samples=4, above=0.5)     # Satisfies ExperienceModel

The disagreement of ``samples`` draws at temperature 1 with the answer (other change or other outcome) is the step's uncertainty
(``fidelity.Row.disagreement``). Above the bound the step is invalid: its episode is cut there and leaves before group
statistics, so a policy is paid for nothing that the model only guessed. It costs ``samples`` further replies per new question.
"""

from collections.abc import Callable, Sequence

from dreamgym.core.types import StopReason
from dreamgym.experience.fidelity import Draw, disagreement
from dreamgym.experience.model import ExperienceModel, Prediction
from dreamgym.experience.prompt import Request
from dreamgym.replay.contract import Retrieval


class Cautious:
    """``model``, silent where its draws disagree. ``draws_under``: draws that retrieve from a snapshot."""

    def __init__(
        self, model: ExperienceModel, draws_under: Callable[[Retrieval], Draw], retrieval: Retrieval, samples: int, above: float
    ) -> None:
        self.model, self.draws_under, self.samples, self.above = model, draws_under, samples, above
        self.asked = self.refused = 0
        self.use(retrieval)

    def use(self, retrieval: Retrieval) -> None:
        self.model.use(retrieval)
        self.draw = self.draws_under(retrieval)
        self._doubts: dict[tuple[object, ...], float] = {}

    def costs(self) -> dict[str, int]:
        return {**self.model.costs(), "experience_calls_asked_again": self.asked, "experience_calls_uncertain": self.refused}

    def recall(self, request: Request) -> Prediction | None:
        known = self.model.recall(request)
        if known is None or known.reply is None:
            return known
        doubt = self._doubts.get(_key(request, known))
        return None if doubt is None else self._held(known, doubt)

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        said = self.model.predict(requests)
        keys = [_key(r, p) for r, p in zip(requests, said, strict=True)]
        new = {k: (r, p) for k, r, p in zip(keys, requests, said, strict=True) if p.reply and k not in self._doubts}
        drawn = self.draw([r for r, _ in new.values()], self.samples) if new else []
        for (key, (_, p)), row in zip(new.items(), drawn, strict=True):
            self._doubts[key] = disagreement(p, row)
            self.asked += 1
            self.refused += self._doubts[key] > self.above
        return [self._held(p, self._doubts[k]) if p.reply else p for k, p in zip(keys, said, strict=True)]

    def _held(self, said: Prediction, doubt: float) -> Prediction:
        if doubt <= self.above:
            return said
        return Prediction(None, StopReason.INVALID_UNCERTAIN, f"(uncertain: {doubt:.2f} of the draws say otherwise) {said.text}")


def _key(r: Request, p: Prediction) -> tuple[object, ...]:
    return (r.task, r.instruction, r.sheet, r.past, r.state, r.action, p.text)
