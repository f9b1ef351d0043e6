#!/bin/sh
# Make the secrets that compose.yaml reads: ./secrets, random, once. An existing directory is left alone.
#
# The files are readable by all, since containers read them under users of their own; the directory is yours alone.
set -eu
directory=${1:-secrets}
if [ -e "$directory" ]; then
    echo "$directory is there already; nothing done" >&2
    exit 1
fi
umask 077
mkdir -p "$directory"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() { printf '%s' "$2" >"$directory/$1" && chmod 444 "$directory/$1"; }

redis_password=$(random) console_password=$(random) producer_password=$(random) observer_password=$(random)
access_key=$(random) secret_key=$(random) metrics_token=$(random) operator_token=$(random)
hash_of() { printf '%s' "$1" | sha256sum | cut -d' ' -f1; }
here=$(dirname "$0")

put redis_url "redis://trainpack:$redis_password@redis:6379/0"
put redis_password "$redis_password"
# for the console, for whoever submits, and for whoever only looks on
put console_redis_url "redis://trainpack-console:$console_password@redis:6379/0"
put producer_redis_url "redis://trainpack-producer:$producer_password@redis:6379/0"
put observer_redis_url "redis://trainpack-observer:$observer_password@redis:6379/0"
put users.acl "$(cat "$here/users.acl.in" "$here/roles.acl.in" | sed -e "s/@PASSWORD_SHA256@/$(hash_of "$redis_password")/" \
    -e "s/@CONSOLE_SHA256@/$(hash_of "$console_password")/" -e "s/@PRODUCER_SHA256@/$(hash_of "$producer_password")/" \
    -e "s/@OBSERVER_SHA256@/$(hash_of "$observer_password")/")
"
put seal_key "$(random)"
put s3_access_key "$access_key"
put s3_secret_key "$secret_key"
put s3.json "{\"identities\": [{\"name\": \"trainpack\", \"credentials\": [{\"accessKey\": \"$access_key\", \
\"secretKey\": \"$secret_key\"}], \"actions\": [\"Read\", \"Write\", \"List\", \"Tagging\"]}]}"
put seaweedfs.env "WEED_JWT_SIGNING_KEY=$(random)
WEED_JWT_FILER_SIGNING_KEY=$(random)
WEED_JWT_FILER_SIGNING_READ_KEY=$(random)
"
put console_session_key "$(random)"
put console_metrics_token "$metrics_token"
put console_tokens.toml "[[tokens]]
name = \"prometheus\"
role = \"read\"
secret = \"$metrics_token\"

[[tokens]]
name = \"operator\"
role = \"operate\"
secret = \"$operator_token\"
"
put flower_basic_auth "operator:$(random)"
put grafana_admin_password "$(random)"
echo "made $directory; the console's token for people is 'operator' in $directory/console_tokens.toml" >&2
