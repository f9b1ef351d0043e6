"""Settings, site templates, Celery settings and logging set-up. Read once at start-up and passed on."""
