"""`python -m quart_openai_sse.cli`."""

from quart_openai_sse.cli import main

main()
