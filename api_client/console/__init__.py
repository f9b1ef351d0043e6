"""The HTTP API and web console: a thin front of ``PackagingClient``. Begin with ``app``; ``gate`` and ``auth`` follow.

Needs the extra ``console``. Nothing here imports torch, the worker or its settings; questions about files go to a
worker (``api_client.ledger.questions``).
"""
