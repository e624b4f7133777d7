"""Policy learning: rollouts over ``Env``, group advantages, the clipped objective, the trainer. Knows only ``Env``."""
