#!/bin/sh -e
# As in the image's own start, an unreadable file silently becomes an empty password.
export GF_SECURITY_ADMIN_PASSWORD="$(cat "$GF_SECURITY_ADMIN_PASSWORD__FILE")"
exec python3 /usr/share/grafana/grafana.py
