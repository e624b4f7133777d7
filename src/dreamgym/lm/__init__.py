"""Language models as tokens in, tokens out, on Hugging Face classes. Extra: ``[train]`` (torch, transformers)."""
