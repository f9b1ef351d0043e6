"""``python -m api_client.cli``."""

from api_client.cli import main

main()
