#!/bin/sh
# Run a program with secrets from files: FROM_FILE_NAME=/path becomes NAME=<content of the file>.
# For Docker and systemd secrets. Kubernetes sets variables from its secrets by itself.
set -eu
for entry in $(env | sed -n 's/^FROM_FILE_\([A-Z0-9_]*\)=.*/\1/p'); do
    path=$(printenv "FROM_FILE_$entry")
    value=$(cat "$path") # unreadable: the program does not start
    export "$entry=$value"
    unset "FROM_FILE_$entry"
done
exec "$@"
