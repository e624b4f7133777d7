"""The example's environment with episodes just long enough for its expert: runs of tests that learn little play each to its end."""

from dreamgym.envs.gym import GymAdapter
from examples.own_environment import Vault, expert, explore, panels

adapter = GymAdapter("vault", Vault, panels, "unlock the door", 6, {"random": explore, "expert": expert}, demonstrations=15)
