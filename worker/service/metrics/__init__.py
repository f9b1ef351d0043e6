"""What a worker counts, and where it can be read.

``observer`` is handed to the supervisor, the heart, the reaper and the callbacks, which tell it what happens;
``registry`` makes the series of ``api_client.contract.metric_names``; ``machine`` and ``gpus`` look at the machine when
asked; ``server`` answers ``/metrics``. A failure in here never reaches a stage.
"""
