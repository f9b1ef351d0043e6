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

redis_password=$(random) access_key=$(random) secret_key=$(random) metrics_token=$(random) operator_token=$(random)
redis_hash=$(printf '%s' "$redis_password" | sha256sum | cut -d' ' -f1)

put redis_url "redis://trainpack:$redis_password@redis:6379/0"
put redis_password "$redis_password"
put users.acl "$(sed "s/@PASSWORD_SHA256@/$redis_hash/" "$(dirname "$0")/users.acl.in")
"
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
