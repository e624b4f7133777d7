"""The nouns of dreamgym: tasks, transitions, episodes, states, the environment protocol, seeding and errors.

Nothing in here imports torch, an environment or a network client; every other folder imports from here.
"""
