"""Announcing the end of a job to an address that its producer named.

The script that ends a job writes the announcement down (``announce`` in ``lua/prelude.lua``), so that it happens with
the end or not at all. ``courier`` takes what is due and delivers it: ``addresses`` decides where it may go, ``post``
sends it, ``summary`` says what is in it, ``deliveries`` records what came of it. Nothing here can hold a job up or
change how it ended. Signatures are those of ``api_client.contract.callbacks``.
"""
