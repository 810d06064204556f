#!/usr/bin/env bash
# check_communication_model.sh PROGRAM DOCUMENT: fails where the tables of docs/distributed.md are not what communication_model prints.
set -euo pipefail
diff <("$1") <(sed -n '/<!-- communication_model begins -->/,/<!-- communication_model ends -->/p' "$2" | sed '1d;$d') ||
  { echo "docs/distributed.md: put the output of communication_model between its two markers"; exit 1; }
