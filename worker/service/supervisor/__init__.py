"""Running one stage in a child process and recording what came of it.

Reading order: ``supervisor`` (one attempt from lease to record) -> ``watch`` (the loop beside the running child) ->
``process`` (the child as its parent sees it) -> ``child`` (the child itself). Beside them: ``heart`` renews leases,
``relay`` carries log and progress, ``scratch`` and ``upstream`` look after files.

Nothing here knows tensors, and nothing here imports torch: the fork server, a process of its own, has it loaded.
"""
