"""The worker: Celery plumbing on top, plain stages below.

Reading order: ``tasks`` (a message arrives) -> ``supervisor`` (lease, child process, result) -> ``stage_process`` (the
child) -> ``stages`` (the work) -> ``checkpoint``, ``adapters``, ``convert``, ``quantize``, ``storage`` (formats).
"""
