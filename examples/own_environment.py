"""Your own environment in dreamgym: a Gymnasium text environment, plugged in and trained on in the dream.

dreamgym quickstart --run runs/own --config examples/own_environment.yaml
"""

from itertools import permutations
from string import printable

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamgym.envs.gym import GymAdapter

COLOURS, BOXES = ("red", "green", "blue", "white", "black", "brown", "golden"), ("crate", "chest", "drawer")
WORLDS = [(keys, door) for keys in permutations(COLOURS, 3) for door in keys]
ORDER = np.random.default_rng(0).permutation(len(WORLDS))


class Vault(gymnasium.Env[str, str]):
    """Find the key of the door's colour in one of the boxes; another key breaks the door. Seed n is world n: no two are alike."""

    observation_space, action_space = spaces.Text(500, charset=printable), spaces.Text(80, min_length=0, charset=printable)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        keys, self.door = WORLDS[ORDER[self.np_random.integers(len(WORLDS)) if seed is None else seed % len(WORLDS)]]
        self.place, self.open = {f"{k}_key": box for k, box in zip(keys, BOXES, strict=True)}, set()
        return self.text(), {"instruction": f"unlock the {self.door} door"}

    def text(self):
        boxes = [f"[room] {b}: {'open' if b in self.open else 'closed'}" for b in BOXES]
        keys = [f"[{p}] {k}: metal" for k, p in self.place.items() if p in self.open or p == "hand"]
        return "\n".join([*boxes, f"[room] door: {self.door} locked", *keys])

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
    key = f"{rng.choice(COLOURS)}_key"
    return str(rng.choice([f"open {rng.choice(BOXES)}", f"take {key}", f"unlock door with {key}", "look"], p=[0.35, 0.4, 0.2, 0.05]))


def expert(instruction, state, rng: np.random.Generator):
    key, boxes = f"{instruction.split()[2]}_key", [line.split()[1].rstrip(":") for line in state if line.endswith("closed")]
    spot = next((line.split("]")[0][1:] for line in state if f" {key}:" in line), None)
    return f"unlock door with {key}" if spot == "hand" else f"take {key}" if spot else f"open {rng.choice(boxes or BOXES)}"


panels = {"train": range(300), "probe": range(300, 320), "test": range(320, 370)}  # of 630 worlds
adapter = GymAdapter("vault", Vault, panels, "unlock the door", 10, {"random": explore, "expert": expert}, demonstrations=15)
