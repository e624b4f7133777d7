"""dreamgym: train LLM agents with RL inside a learned, reasoning experience model (DreamGym, arXiv 2511.03773)."""
