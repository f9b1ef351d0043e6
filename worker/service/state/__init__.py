"""Leases, fencing and the states of jobs: deciding (pure, ``decisions``) apart from doing (``transitions``, Lua).

States and edges; one Lua script per edge, each checking the token that the newest attempt holds::

    stage:  pending --enqueue--> queued --begin--> running --complete--> succeeded
                                   ^                  |
                                   |-- end_attempt ---|  retried (delay), crashed, rescued, handed back
                                   `-- rewind --------|  an earlier stage's files are missing: it runs again
                                                      `- end_attempt --> failed | cancelled
    job:    queued --begin--> running --complete--> succeeded
                                 `----end_attempt--> failed | cancelled       replay: ended -> queued

A lease is an entry in the sorted set of running stages. Its holder renews it; who watches it judges by its own
monotonic clock whether it still moves (``worker.service.reaper``), never by comparing wall clocks. The token fences:
whoever does not hold the stage's present token writes nothing, however late it wakes up.
"""
