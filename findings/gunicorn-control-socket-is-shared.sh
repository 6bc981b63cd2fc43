#!/usr/bin/env bash
# gunicorn 27.0.1: all instances of a user have one control socket, and the last that starts takes it over.
#
# gunicorn opens a control socket by default: gunicorn.ctl in $XDG_RUNTIME_DIR, or else in ~/.gunicorn. A second instance
# of the same user, an app on another port or the new one of a deployment that overlaps, puts its own in the same place.
# Expected: a message that the place is taken, or a socket for each instance; and that an instance which ends removes
# its own socket only.
# Seen, on Python 3.11.7 and Linux: no message. `gunicornc` talks to the second instance, whichever was meant. When the
# first ends, the socket of the second is removed, and the second can no longer be controlled although it serves on.
# An own `--control-socket PATH` for each instance, or `--no-control-socket`, avoids it.
#
#   one instance: gunicornc talks to the first
#   two instances: gunicornc talks to the second
#   the first has ended, the second serves: gunicornc talks to nobody
#   warnings in the logs: 0
set -euo pipefail

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check gunicorn==27.0.1

cat >app.py <<'APP'
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]
APP

# Another home, so that no instance of the person who runs this is disturbed.
export HOME=$work/home
mkdir "$HOME"
unset XDG_RUNTIME_DIR

start() {
    env/bin/gunicorn --bind "unix:$work/$1.sock" app:app >"$1.txt" 2>&1 &
}

# Its socket and its control socket are there.
wait_for() {
    local attempt
    for attempt in {1..100}; do
        if serves "$1" && grep -q "Control socket listening" "$1.txt"; then return; fi
        sleep 0.1
    done
    echo "$1 did not start after $attempt attempts:" >&2
    cat "$1.txt" >&2
    return 1
}

serves() {
    curl --silent --fail --unix-socket "$1.sock" http://localhost/ >/dev/null
}

controlled() {
    env/bin/gunicornc -c "show listeners" 2>&1 | grep -oE '(first|second)\.sock' | cut -d. -f1 || echo nobody
}

say() {
    echo "$1" | tee -a seen.txt
}

start first
first=$!
wait_for first
say "one instance: gunicornc talks to the $(controlled)"

start second
wait_for second
serves first
say "two instances: gunicornc talks to the $(controlled)"

kill "$first"
wait "$first" || true
serves second
say "the first has ended, the second serves: gunicornc talks to $(controlled)"
say "warnings in the logs: $(cat first.txt second.txt | grep -cE 'WARN|ERROR' || true)"

diff seen.txt - <<'EXPECTED'
one instance: gunicornc talks to the first
two instances: gunicornc talks to the second
the first has ended, the second serves: gunicornc talks to nobody
warnings in the logs: 0
EXPECTED
