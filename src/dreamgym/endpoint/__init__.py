"""Language models behind an OpenAI-compatible server (vLLM, SGLang, ``transformers serve``, hosted): the one way to call them."""
