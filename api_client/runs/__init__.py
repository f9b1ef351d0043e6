"""What a training run's directory holds, on a disk and in object storage alike. No weights are read, nothing heavy.

Reading order: ``files`` and ``s3_files`` (the files of a run, by one interface), ``kinds`` (adapter, full weights or
wreckage), ``state_files`` (what lies beside weights), ``trainer_state`` (scores), ``checkpoints`` (which there are,
which one a reference means), ``base_models`` (what the run was made from).
"""
