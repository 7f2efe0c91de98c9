#!/usr/bin/env bash
# Check deploy/ with promtool and amtool: every file loads, and every alert passes its cases.
set -euo pipefail
cd "${BASH_SOURCE[0]%/*}/.."
for name in promtool amtool; do
  if ! command -v "$name" >/dev/null; then
    echo "lint: deploy/ was not checked, because $name is not installed: apt-get install --no-install-recommends prometheus prometheus-alertmanager"
    [ "${CI:-}" != true ]
    exit
  fi
done
run() { out=$("$@" 2>&1) || { echo "$out"; return 1; }; }
run promtool check config deploy/prometheus/prometheus.yml
run promtool test rules deploy/prometheus/tests/*.yml
run amtool check-config deploy/alertmanager/alertmanager.yml
echo "deploy/: promtool and amtool accept every file, and every alert passes its cases"
