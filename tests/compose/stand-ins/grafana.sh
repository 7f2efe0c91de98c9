#!/bin/sh -e
# As the image's own start does it: what cannot be read becomes an empty password, in silence.
export GF_SECURITY_ADMIN_PASSWORD="$(cat "$GF_SECURITY_ADMIN_PASSWORD__FILE")"
exec python3 /usr/share/grafana/grafana.py
