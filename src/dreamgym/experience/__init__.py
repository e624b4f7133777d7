"""The experience model: grammar, annotation, supervised fine-tuning, prediction and audit (arXiv 2511.03773 §4.1)."""
