#!/bin/sh
# Create or update the virtual environment .venv: `workflow/setup.sh run`; `test`, `cluster`, `scores` and `bench` add the
# test tools, plugins for batch systems, what METEOR and CIDEr need, and what the benchmark compares with.
# Every file that pip fetches is checked against the hashes in the lock files (workflow/lock.py writes them).
# Does nothing when the lock files have not changed since it last finished. PYTHON chooses the interpreter.
# The sets can be added in any order, and again; of two set-ups at once the second waits for the first.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
unfinished=$venv/unfinished  # present from the start of an environment to its end: an interrupted one is begun again

fail() {
    echo "error: $*" >&2
    exit 1
}

# An interpreter that works and is at least 3.11; the two versions that were tested come first.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON: no such interpreter."
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "PYTHON=$PYTHON is older than Python 3.11, which this project needs."
        command -v "$PYTHON"
        return
    fi
    for allowed in '(3, 11) <= version < (3, 13)' '(3, 11) <= version'; do
        for candidate in python3 python3.12 python3.11 python3.13 python3.14; do
            if "$candidate" -c "import sys; version = sys.version_info; sys.exit(not $allowed)" 2>/dev/null; then
                command -v "$candidate"
                return
            fi
        done
    done
    fail "No Python 3.11 or newer was found; install one, or name it: make ${target:-setup} PYTHON=/path/to/python3.11."
}

# Wait for another set-up in this folder. The lock belongs to file descriptor 9, so it ends with this script and the
# programs that it has started, also after kill -9; no stale lock can stay behind.
wait_for_others() {
    python=$venv/bin/python
    "$python" -c '' 2>/dev/null || python=$(find_python)
    exec 9>>.venv.lock
    "$python" - <<'END'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another set-up runs in this folder; waiting until it ends", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except KeyboardInterrupt:
    sys.exit(130)
except OSError as error:
    print(f"notice: .venv.lock: {error.strerror}; start no other set-up in this folder meanwhile", file=sys.stderr)
END
}

# fairseq is compiled here, so its prerequisites are checked before gigabytes are fetched.
check_prerequisites() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$1 has no venv module; install it (on Debian and Ubuntu the package python3-venv or python3.11-venv)."
    compiler=${CXX:-c++}
    # shellcheck disable=SC2086 -- CXX may carry options
    echo 'int main() { return 0; }' | $compiler -x c++ -fsyntax-only - 2>/dev/null ||
        fail "No working C++ compiler ($compiler) was found, and fairseq is compiled during set-up; install g++, or name one: CXX=/path/to/c++."
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$include/Python.h" ] ||
        fail "Python's headers are missing ($include/Python.h); install them (on Debian and Ubuntu the package python3-dev or python3.11-dev)."
}

create_venv() {
    python=$(find_python)
    check_prerequisites "$python"
    echo "Creating $venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    rm -rf "$venv"
    mkdir "$venv"
    : >"$unfinished"
    "$python" -m venv "$venv"
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --progress-bar off --disable-pip-version-check --no-deps --no-build-isolation "$@"
}

# Only files whose hash stands in the lock file $1, and nothing that does not stand there.
try_locked() {
    pip_install --require-hashes --requirement "$@"
}

install_locked() {
    try_locked "$@" ||
        fail "pip could not install the locked versions (its own message is above). Run make again once that is mended."
}

# Those entries of requirements.lock that are (1) or are not (0) of these packages, hashes included, in a file of its own.
entries() {
    awk -v wanted="$1" -v names=" $2 " '/^#/ { next } /^[^ ]/ { split($0, entry, "=="); found = index(names, " " entry[1] " ") > 0 }
        found == wanted' requirements.lock >"$venv/entries.lock"
    echo "$venv/entries.lock"
}

# Whether the torch that is installed is a build for GPUs and lacks what that needs.
needs_cuda() {
    "$venv/bin/python" - <<'END'
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
needed = [Requirement(text) for text in requires("torch")]
needed = {requirement.name for requirement in needed if not requirement.marker or requirement.marker.evaluate({"extra": ""})}
sys.exit("triton" not in needed)
END
}

install_run() {
    # Without build isolation: isolated, fairseq's build would fetch a second torch. What its build imports comes first.
    echo "Installing the build tools and the locked versions (1/3)"
    install_locked "$(entries 1 'setuptools wheel')"
    # A folder of wheels on this machine (PIP_FIND_LINKS) comes first, with the build of torch for CPUs alone perhaps: of
    # two files pip prefers the one whose hash an index told before it was fetched, which is the larger one for GPUs.
    try_locked "$(entries 1 torch)" --no-index >/dev/null 2>&1 || true
    install_locked "$(entries 0 fairseq-fixed)"
    if needs_cuda; then
        install_locked requirements-cuda.lock
    fi
    echo "Compiling fairseq once: this takes some minutes (2/3)"
    install_locked "$(entries 1 fairseq-fixed)"
    rm -f "$venv/entries.lock"
    echo "Installing the project itself (3/3)"
    pip_install --no-index --editable . || fail "The project itself could not be installed (pip's message is above)."
}

# The added sets are small and are installed anew, lest half a package stays behind of a set-up that was killed.
install_test() {
    echo "Installing the test tools"
    install_locked requirements-test.lock --force-reinstall
}

install_cluster() {
    echo "Installing Snakemake's plugins for batch systems (15 MB)"
    install_locked requirements-cluster.lock --force-reinstall
}

install_scores() {
    echo "Installing METEOR, CIDEr and the Treebank tokeniser (100 MB)"
    install_locked requirements-scores.lock --force-reinstall
    command -v java >/dev/null 2>&1 || echo "They also need Java, and there is no java on the PATH yet."
}

# Not among the other packages: adapters needs an older transformers than the tests have.
install_bench() {
    echo "Installing PEFT, adapters and their transformers (150 MB)"
    rm -rf "$venv/bench"
    install_locked requirements-bench.lock --target "$venv/bench"
}

# One install step, skipped when this folder and the files the step depends on ($2 ...) are those it last finished with.
ensure() {
    step=$1
    shift
    stamp=$venv/$step-$( (pwd && cat "$@") | cksum | tr ' ' '-')
    [ -f "$stamp" ] && return
    "install_$step"
    "$venv/bin/python" workflow/environment.py || fail "The environment is not complete (what is missing is above)."
    rm -f "$venv/$step"-*
    : >"$stamp"
}

kind=${1:-run}
target=$([ "$kind" = run ] && echo setup || echo "setup-$kind")
wait_for_others
if [ -f "$unfinished" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    create_venv
fi
ensure run requirements.lock requirements-cuda.lock setup.py workflow/environment.py
rm -f "$unfinished"
if [ "$kind" != run ]; then
    ensure "$kind" requirements.lock "requirements-$kind.lock"
fi
