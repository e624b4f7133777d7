"""Your own environment in dreamgym: a Gymnasium text environment, plugged in and trained on in the dream.

dreamgym quickstart --run runs/own --config examples/own_environment.yaml
"""

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamgym.envs.gym import GymAdapter

COLOURS, BOXES = ("red", "green", "blue", "white"), ("crate", "chest", "drawer")


class Vault(gymnasium.Env[str, str]):
    """Find the key of the door's colour in one of the boxes; unlocking the door with another key breaks it."""

    observation_space, action_space = spaces.Text(500), spaces.Text(80)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        keys = [str(c) for c in self.np_random.permutation(COLOURS)[:3]]
        self.door = str(self.np_random.choice(keys))
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
    return f"unlock door with {key}" if spot == "hand" else f"take {key}" if spot else f"open {rng.choice(boxes)}"


panels = {"train": range(300), "probe": range(1000, 1020), "test": range(2000, 2050)}
adapter = GymAdapter("vault", Vault, panels, "unlock the door", 10, {"random": explore, "expert": expert}, demonstrations=15)
