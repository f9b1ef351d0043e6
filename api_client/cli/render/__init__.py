"""What people see: pure functions from jobs and events to lines of text of a given width."""
