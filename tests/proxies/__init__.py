"""What real proxies do to a stream: nginx, HAProxy, Apache and Caddy in front of an app on hypercorn.

`ways` has the configurations, which begin with those of docs/how-to/deploy.md, and what is expected of each; `app` is
the app, whose model waits for the checks; `checks` has the checks; `report` compares and prints. Nothing is compared
with a time: a stream is passed on if its first event arrives before the app has written the last, and a client's
leaving is noticed before or with the next event, or not. `python -m tests.proxies` needs the Debian packages `nginx`,
`haproxy`, `apache2` and `caddy`, and starts processes of its own on loopback ports, with their files in a new folder.
"""
