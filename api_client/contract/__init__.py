"""The contract: what a request, a plan, a job, an error and an output are. Light, pure, and the same for all sides."""
