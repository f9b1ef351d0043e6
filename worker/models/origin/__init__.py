"""Is the packaged model the one that was trained? Every step is checked against what took no part in it.

The base and the adapter are run by transformers and PEFT (:mod:`worker.models.origin.whole_model`), which knows nothing
of the overlay; weights are compared tensor by tensor, after the merge and in the file
(:mod:`worker.models.origin.weights`); prompts are rendered and cut by llama.cpp out of the file and by transformers out
of the run's own tokenizer (:mod:`worker.models.origin.prompts`). The first step that differs is where the fault is
(:mod:`worker.models.origin.trace`).
"""
