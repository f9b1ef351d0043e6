"""Where files come from and go to. Plain functions and classes: no queue, no tensors.

Reading order: ``paths`` (policy, room on the disk), ``atomic`` and ``checksums`` (local files); ``s3``, ``s3_upload``,
``s3_download``, ``s3_limits`` (transfers, on the edge of ``api_client.s3``); ``inputs``, ``selection``, ``cache``,
``hub`` (what a job reads).
"""
