#!/usr/bin/env bash
# Lines of each package of the ground floor that its own tests run; fails where it is less than 95 %.
#
#   scripts/coverage.sh                 every package, two at a time
#   scripts/coverage.sh coding tensors  some of them
#   JOBS=1 LEAST=90 scripts/coverage.sh
#
# What was not run is in .cache/coverage/PACKAGE.txt, with the output of the tests.

set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-.venv/bin/python} LEAST=${LEAST:-95} LOGS=.cache/coverage
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
mkdir -p "$LOGS"

# the longest first
ALL=(tensors allocate calibrate coding tune measure models numerics entropy channels errors progress)

measure() {
  local package=$1 log=$LOGS/$1.txt tests=tests/$1 share
  export COVERAGE_FILE=$PWD/$LOGS/$package.data
  rm -f "$COVERAGE_FILE"
  case $package in
    errors | progress) tests=tests/test_$package.py ;;
    tensors) tests="tests/tensors tests/contracts/test_tensors.py" ;;
  esac
  if [[ ! -e ${tests%% *} ]]; then
    if [[ -z $(find "src/laconic/$package" -name '*.py' ! -name '__init__.py') ]]; then
      printf '%-10s nothing in it yet\n' "$package"
      return
    fi
    printf '%-10s no tests in %s\n' "$package" "$tests"
    return 1
  fi
  # shellcheck disable=SC2086
  if ! "$PYTHON" -m pytest $tests -p no:cacheprovider --cov="laconic.$package" \
    --cov-report=term-missing >"$log" 2>&1; then
    printf '%-10s tests failed, see %s\n' "$package" "$log"
    return 1
  fi
  share=$("$PYTHON" -m coverage report --format=total --precision=1)
  printf '%-10s %5s %%%s\n' "$package" "$share" "$(worst "$log")"
  awk -v share="$share" -v least="$LEAST" 'BEGIN { exit share < least }'
}

worst() { # its files with less than that, for information
  awk -v least="$LEAST" '/^src\/.*%/ { sub("%", "", $4); if ($4 + 0 < least) printf "  %s %s %%", $1, $4 }' "$1"
}
export -f measure worst

packages=("$@")
((${#packages[@]})) || packages=("${ALL[@]}")
if ! printf '%s\n' "${packages[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'measure {}'; then
  echo "less than $LEAST % of a package's lines, or failed tests"
  exit 1
fi
