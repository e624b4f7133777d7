"""Experience models for tests that know the vault's rules (``examples/own_environment.py``), or know them wrongly."""

from dreamgym.core.grammar import Reply, render_reply
from dreamgym.core.state import Change, entity, line
from dreamgym.experience.model import Prediction


class VaultModel:
    """Predicts the vault from state and world sheet. ``gullible`` models also believe ``action`` texts, ``retrieval`` or any ``key``."""

    def __init__(self, gullible: str = "") -> None:
        self.gullible = gullible
        self.retrieval = None

    def use(self, retrieval):
        self.retrieval = retrieval

    def recall(self, request):
        return None

    def costs(self):
        return {}

    def predict(self, requests):
        return [self._one(r) for r in requests]

    def draw(self, requests, m):
        return [self.predict([r] * m) for r in requests]

    def _one(self, r):
        words, held = r.action.split(), {entity(s) for s in r.state if s.startswith("[hand]")}
        change, outcome = Change(), "go"
        if len(words) == 2 and words[0] == "open" and line("room", words[1], "closed") in r.state:
            inside = [s for s in r.sheet if s.startswith(f"[{words[1]}] ")]
            change = Change((line("room", words[1], "closed"),), tuple(sorted([line("room", words[1], "open"), *inside])))
        elif len(words) == 2 and words[0] == "take" and words[1].endswith("_key") and words[1] not in held:
            here = [s for s in r.state if entity(s) == words[1]]
            change = Change(tuple(here), (line("hand", words[1], "metal"),)) if here else change
        elif len(words) == 4 and words[:3] == ["unlock", "door", "with"] and words[3] in held:
            right = words[3] == f"{r.instruction.split()[2]}_key" or self.gullible == "key"
            outcome = "won" if right else "lost"
        if self.gullible == "action" and "success" in r.action:
            outcome = "won"
        if self.gullible == "retrieval" and self.retrieval and self.retrieval.topk([r], 1)[0][0].transition.outcome == "won":
            outcome = "won"
        reply = Reply("", change, outcome)
        return Prediction(reply, None, render_reply(reply))
