"""Talking with a GGUF file in llama.cpp: ``session`` starts ``program``, in which llama.cpp may fail on its own."""
