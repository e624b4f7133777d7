"""A Gymnasium text environment of your own, plugged in and trained on in the dream:
dreamgym quickstart --run runs/own --config examples/own_environment.yaml"""

from itertools import permutations
from string import printable

import gymnasium
import numpy as np

from dreamgym.envs.gym import GymAdapter

COLOURS, BOXES = ("red", "green", "blue", "white", "black", "brown", "golden"), ("crate", "chest", "drawer")
WORLDS = np.random.default_rng(0).permutation([(*keys, door) for keys in permutations(COLOURS, 3) for door in keys])


class Vault(gymnasium.Env[str, str]):
    """Find the key of the door's colour in one of the boxes; another key breaks the door. Seed n is world n: no two are alike."""
    observation_space = action_space = gymnasium.spaces.Text(500, min_length=0, charset=printable)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        *keys, self.door = WORLDS[self.np_random.integers(len(WORLDS)) if seed is None else seed % len(WORLDS)]
        self.place, self.open = {f"{k}_key": box for k, box in zip(keys, BOXES, strict=True)}, {"hand"}
        return self.text(), {"instruction": f"unlock the {self.door} door"}

    def text(self):
        boxes = [f"[room] {b}: {'open' if b in self.open else 'closed'}" for b in BOXES]
        keys = [f"[{p}] {k}: metal" for k, p in self.place.items() if p in self.open]
        return "\n".join([*boxes, *keys, f"[room] door: {self.door} locked"])

    def step(self, action):
        words = action.split()
        if len(words) == 2 and words[0] == "open" and words[1] in BOXES:
            self.open.add(words[1])
        elif len(words) == 2 and words[0] == "take" and self.place.get(words[1]) in self.open:
            self.place[words[1]] = "hand"
        elif len(words) == 4 and words[:3] == ["unlock", "door", "with"] and self.place.get(words[3]) == "hand":
            return self.text(), float(words[3] == f"{self.door}_key"), True, False, {}
        return self.text(), 0.0, False, False, {}


def explore(instruction, state, rng: np.random.Generator):
    closed, keys = ([line.split()[1].rstrip(":") for line in state if what in line] for what in ("closed", "_key:"))
    box, key = rng.choice(closed or BOXES), rng.choice([*keys, f"{rng.choice(COLOURS)}_key"])
    p = [0.6, 0.2, 0.15, 0.05] if closed else [0.1, 0.45, 0.4, 0.05]  # what no log shows of a world, the dream has to invent
    return str(rng.choice([f"open {box}", f"take {key}", f"unlock door with {key}", "look"], p=p))


def expert(instruction, state, rng: np.random.Generator):
    key, boxes = f"{instruction.split()[2]}_key", [line.split()[1].rstrip(":") for line in state if line.endswith("closed")]
    spot = next((line.split("]")[0][1:] for line in state if f" {key}:" in line), None)
    return f"unlock door with {key}" if spot == "hand" else f"take {key}" if spot else f"open {rng.choice(boxes or BOXES)}"


panels = {"train": range(500), "probe": range(500, 520), "test": range(520, 570)}  # of 630 worlds
adapter = GymAdapter("vault", Vault, panels, "unlock the door", 10, {"random": explore, "expert": expert}, demonstrations=15)
