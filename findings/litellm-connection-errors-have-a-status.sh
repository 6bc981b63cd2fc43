#!/usr/bin/env bash
# litellm 1.110.2: a connection that is refused raises InternalServerError with status 500, which no server has sent.
#
# Callers tell a server that answers with an error from one that cannot be reached: the first has seen the request and
# may charge for it, and its status is passed on. litellm has a class for the second, APIConnectionError.
# Guessed: a refused connection raises APIConnectionError.
# Seen, on Python 3.11.7 and Linux: it raises InternalServerError, a subclass of openai's APIStatusError and not of its
# APIConnectionError, with status_code 500. litellm's own APIConnectionError says 500 as well.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check litellm==1.110.2 openai==3.57.0

cat >refused.py <<'PYTHON'
import os
import socket

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks a host on the internet for prices

import litellm
import openai

litellm.suppress_debug_info = True
with socket.socket() as taken:  # bound, and not listening: connections are refused
    taken.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    messages = [{"role": "user", "content": "Hi"}]
    try:
        litellm.completion(model="openai/m", api_base=address, api_key="k", messages=messages, max_retries=0)
    except Exception as error:
        print("litellm", type(error).__name__, error.status_code)
        print("a connection error:", isinstance(error, (litellm.APIConnectionError, openai.APIConnectionError)))
    try:
        openai.OpenAI(base_url=address, api_key="k", max_retries=0).chat.completions.create(model="m", messages=messages)
    except Exception as error:
        print("openai", type(error).__name__, getattr(error, "status_code", "no status"))
PYTHON

env/bin/python refused.py 2>/dev/null | tee seen.txt
diff seen.txt - <<'SEEN'
litellm InternalServerError 500
a connection error: False
openai APIConnectionError no status
SEEN
