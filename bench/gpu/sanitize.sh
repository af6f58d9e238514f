#!/usr/bin/env bash
# Runs the kernel tests on the GPU under compute-sanitizer, a process for each test file, and adds up what it found.
# On a machine without network: bash FOLDER/run.sh bash bench/gpu/sanitize.sh memcheck
set -uo pipefail

usage() {
  cat <<'TEXT'
usage: bash bench/gpu/sanitize.sh [memcheck|racecheck|synccheck|initcheck] [options] [test file...]

Files: the kernel tests (libs/tensor/test/*.test.ts, but null.test.ts) where none are named. Ends with a table and fails where a tool found an
error, a test failed, or a file gave no summary.

  -t PATTERN  only tests whose names match (racecheck runs 10 to 100 times slower than the kernels)
  -j N        files at a time (default: 4)
  -s SECONDS  most for one file (default: 150); what ran until then counts
  -o FOLDER   logs, a file each (default: results/sanitize)
TEXT
}

tool=memcheck
pattern=
jobs=4
seconds=150
logs=results/sanitize
case "${1:-}" in
  memcheck | racecheck | synccheck | initcheck) tool=$1; shift ;;
  --help) usage; exit 0 ;;
esac
while getopts t:j:s:o: flag; do
  case $flag in
    t) pattern=$OPTARG ;;
    j) jobs=$OPTARG ;;
    s) seconds=$OPTARG ;;
    o) logs=$OPTARG ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
cd "$(dirname "$0")/../.."
if [ $# -eq 0 ]; then
  # The null backend's tests use no device, and so leave no summary.
  for file in libs/tensor/test/*.test.ts; do
    [ "$file" = libs/tensor/test/null.test.ts ] || set -- "$@" "$file"
  done
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
[ -n "$sanitizer" ] || { echo "sanitize.sh: expected compute-sanitizer on the PATH or in /usr/local/cuda, found none" >&2; exit 1; }
mkdir -p "$logs"

log_of() { echo "$logs/$tool-$(basename "$1" .test.ts).log"; }

check_file() { # test file; the limit stands inside, so that the tool still sums up what ran
  local bun_test=(bun test "$1" --timeout $((seconds * 1000)))
  [ -z "$pattern" ] || bun_test+=(-t "$pattern")
  local options=(--tool "$tool" --target-processes all --print-limit 20)
  [ "$tool" != racecheck ] || options+=(--racecheck-report analysis)
  MAGICDEC_TEST_BACKENDS=cuda timeout $((seconds + 60)) "$sanitizer" "${options[@]}" \
    timeout "$seconds" "${bun_test[@]}" >"$(log_of "$1")" 2>&1
}

for file in "$@"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  check_file "$file" &
done
wait

errors=0
summed=0
printf '%-28s %6s %6s  %s\n' "$tool" pass fail summary
for file in "$@"; do
  log=$(log_of "$file")
  pass=$(awk '$2 == "pass" { n = $1 } END { print n + 0 }' "$log")
  fail=$(awk '$2 == "fail" { n = $1 } END { print n + 0 }' "$log")
  # One for each process that used the GPU: none where a file's tests need no device.
  summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | sed 's/^=* *//' | sort | uniq -c | sed 's/^ *//' | paste -sd ';')
  printf '%-28s %6s %6s  %s\n' "$(basename "$file" .test.ts)" "$pass" "$fail" "${summary:-none: $(tail -1 "$log")}"
  found=$(sed -n 's/.*SUMMARY: \([0-9]*\) \(error\|hazard\).*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  errors=$((errors + found + fail))
  [ -z "$summary" ] || summed=$((summed + 1))
done
echo "$tool: $errors errors and failed tests; $summed of $# files gave a summary; logs in $logs"
[ "$errors" -eq 0 ] && [ "$summed" -eq $# ]
