# What .ci/run and .ci/long have in common; to be sourced by them. It changes to the checkout.
# shellcheck shell=bash
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
pins=$checkout/.ci/constraints.txt
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
exec </dev/null

export CI=true PY_COLORS=0 PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONSTRAINT=$pins PIP_BUILD_CONSTRAINT=$pins
unset PYTHONDONTWRITEBYTECODE # several processes import the same modules

step() {
    printf '\n=== %s (after %d s) ===\n' "$1" "$SECONDS"
}

# Also installs the packages that are named, if there is no program of that name.
install_debian_packages() {
    local packages=() name
    for name in "$@"; do
        PATH=$PATH:/usr/sbin command -v "$name" >/dev/null || packages+=("$name")
    done
    local added=("${packages[@]}")
    command -v curl >/dev/null || packages+=(curl)
    command -v git >/dev/null || packages+=(git)
    command -v go >/dev/null || packages+=(golang-go)
    [ -d /usr/share/gocode/src/github.com/gin-gonic/gin ] || packages+=(golang-github-gin-gonic-gin-dev)
    [ -x /usr/sbin/nginx ] || packages+=(nginx)
    command -v node >/dev/null || packages+=(nodejs)
    command -v npm >/dev/null || packages+=(npm)
    command -v redis-server >/dev/null || packages+=(redis-server)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
    if ((${#packages[@]} == 0)) && find_browser; then echo "all there"; return; fi
    as_root apt-get -o Acquire::Retries=3 update
    find_browser || packages+=("$(browser_package)")
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -o Acquire::Retries=3 install -y --no-install-recommends "${packages[@]}"
    # Debian starts a service as soon as it is installed; the tests start their own processes.
    if ((${#added[@]})) && [ -d /run/systemd/system ]; then as_root systemctl disable --now "${added[@]}"; fi
}

# tests/machine.py looks for the same.
find_browser() {
    command -v chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable >/dev/null
}

browser_package() {
    if apt-cache show chromium-headless-shell >/dev/null 2>&1; then echo chromium-headless-shell; else echo chromium; fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Leaves each version as $work/<version>/bin/python3, to be put first in PATH as the machine's own python3.
find_pythons() {
    python3 -m venv "$work/uv"
    "$work/uv/bin/pip" install uv
    local version python search pyenv=${PYENV_ROOT:-$HOME/.pyenv}
    for version in "$@"; do
        # pyenv's shims stand in for Pythons that are not chosen; uv must see the real ones before them.
        search=$(printf '%s:' "$pyenv/versions/$version".*/bin)$PATH
        python=$(PATH=$search UV_PYTHON_DOWNLOADS=never "$work/uv/bin/uv" python find --no-project "$version") \
            || { echo "No Python $version on this machine: install it, with its venv module." >&2; exit 1; }
        echo "$version: $python"
        mkdir -p "$work/$version/bin"
        # Not a link: a virtual environment made through one does not find its home.
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" >"$work/$version/bin/python3"
        chmod +x "$work/$version/bin/python3"
    done
}

# Whatever an environment holds must have its pin.
check_pins() {
    local name
    "$1/bin/pip" freeze --exclude quart-openai-sse | while IFS='=@ ' read -r name _; do
        grep -qi "^$name==" "$pins" || { echo "$name is not pinned in .ci/constraints.txt" >&2; exit 1; }
    done
}
