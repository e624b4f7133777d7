"""A programmatic second opinion for examples/own_environment.py: a dreamed success counts only where this agrees.

dreamgym quickstart --run runs/vault --config examples/own_environment.yaml \
    experience.second_opinion.verifier=examples.vault_verifier:unlocked
"""


def unlocked(instruction: str, state: tuple[str, ...], actions: tuple[str, ...]) -> bool:
    """``unlock the red door`` is done where the last action turns the red key, and that key is in the hand."""
    key = f"{instruction.split()[2]}_key"
    return actions[-1] == f"unlock door with {key}" and any(line.startswith(f"[hand] {key}:") for line in state)
